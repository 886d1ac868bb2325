"""`mythos-export inspect BUNDLE`: what is in it; needs neither torch nor onnx."""

from __future__ import annotations

import sys
from pathlib import Path

from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json
from mythos_export.inspection.inspect import inspect
from mythos_export.progress import Reporter

__all__ = ["run"]

_LONGEST = 1 << 16


def run(path: Path, *, json: bool) -> None:
    """Check a bundle's hashes and print what it holds."""
    bundle = Bundle.open(path, check_hashes=False)
    # said only where it takes long enough to be waited for: on a terminal
    report = Reporter(quiet=json or not sys.stderr.isatty())
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    found = inspect(bundle)
    if json:
        print_json({"bundle": str(path), **found.model_dump()})
        return
    from rich.console import Console

    from mythos_export.inspection.tree import tree

    # in a file or a pipe a line is as long as it is
    width = None if sys.stdout.isatty() else _LONGEST
    Console(highlight=False, width=width).print(tree(found))
