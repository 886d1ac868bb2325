"""`mythos-export clean FOLDER`: what killed exports left behind."""

from __future__ import annotations

from pathlib import Path

from mythos_export.bundle import BundleError
from mythos_export.commands.output import print_json, size
from mythos_export.staging import remove_abandoned

__all__ = ["run"]


def run(folder: Path, *, json: bool) -> None:
    """Remove it, and say what it was."""
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    removed = remove_abandoned(folder)
    if json:
        print_json({"removed": {str(path): count for path, count in removed.items()}})
        return
    for path, count in removed.items():
        print(f"removed {path}: {size(count)}")
    if not removed:
        print(f"{folder}: nothing that an export left behind")
