"""Files of a repository: linked where that is possible, so that a bundle of gigabytes is there once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mythos_export.bundle import MANIFEST, Bundle

__all__ = ["place", "place_bundle", "replace_entries", "workplace"]


def place(source: Path, target: Path) -> None:
    """Link a file, or copy it where its file system or owner does not allow that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):  # it may be a link too, and writing to it would write to the bundle
        raise FileExistsError(errno.EEXIST, "named twice", str(target))
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target, follow_symlinks=False)


def place_bundle(bundle: Bundle, folder: Path) -> None:
    """The files that a bundle's manifest lists, and the manifest; nothing else that lies there."""
    for name in (*bundle.manifest.files, MANIFEST):
        place(bundle.path / name, folder / name)


@contextlib.contextmanager
def workplace(destination: Path) -> Iterator[Path]:
    """A folder beside the destination to write in; it is gone afterwards, and so are parents made for nothing."""
    missing = [parent for parent in destination.parents if not parent.exists()]
    folder: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        yield folder
    finally:
        try:
            _discard(folder, missing)
        except KeyboardInterrupt:  # an impatient second Ctrl-C
            _discard(folder, missing)
            raise


def _discard(folder: Path | None, missing: list[Path]) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in missing:
        with contextlib.suppress(OSError):  # it holds the repository
            parent.rmdir()


def replace_entries(new: Path, destination: Path, old: Path) -> None:
    """Give everything in `new` its place in `destination`: all of it, or after a failure none.

    Args:
        new: folder on the same file system.
        destination: made from `new` as a whole if it is not there, or empty.
        old: empty folder that takes what is replaced.
    """
    if not destination.exists() or not any(destination.iterdir()):
        if destination.exists():
            destination.rmdir()
        new.rename(destination)
        return
    names = sorted(path.name for path in new.iterdir())
    try:
        for name in names:
            if os.path.lexists(destination / name):
                (destination / name).rename(old / name)
            (new / name).rename(destination / name)
    except BaseException:  # an interruption too
        for name in names:
            _restore(name, new, destination, old)
        raise


def _restore(name: str, new: Path, destination: Path, old: Path) -> None:
    """Wherever the exchange of one entry had come to."""
    if not os.path.lexists(new / name):
        (destination / name).rename(new / name)
    if os.path.lexists(old / name):
        (old / name).rename(destination / name)
