"""`mythos-export verify BUNDLE`: hashes again, weights again, comparison again."""

from __future__ import annotations

from pathlib import Path

import typer

from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json
from mythos_export.loops import parse_loops
from mythos_export.progress import Reporter

__all__ = ["run"]


def run(path: Path, *, loops: str | None, checkpoint: Path | None, json: bool) -> None:
    """Verify a bundle; exit code 1 if it fails."""
    if loops is not None:
        parse_loops(loops)  # a mistake shows before gigabytes are hashed
    report = Reporter(quiet=json)
    bundle = Bundle.open(path, check_hashes=False)
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    from mythos_export.parity.report import render
    from mythos_export.parity.run import check_parity
    from mythos_export.parity.source import loop_counts, source_of_bundle

    config, source = source_of_bundle(bundle, checkpoint)
    result = check_parity(bundle, source, config, loop_counts(bundle, config, loops), report)
    if json:
        print_json({"passed": result.passed, **result.model_dump()})
    else:
        print(render(result))
        print(f"{path}: {'equal to PyTorch' if result.passed else 'FAILED'}")
    if not result.passed:
        raise typer.Exit(1)
