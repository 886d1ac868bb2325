"""`mythos-export report BUNDLE`: its report.html anew, with what has been measured since."""

from __future__ import annotations

from pathlib import Path

from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json, size
from mythos_export.progress import Reporter

__all__ = ["run"]


def run(path: Path, *, accuracy: Path | None, latency: Path | None, json: bool) -> None:
    """Make the report of an existing bundle again."""
    from mythos_export.html_report.write import REPORT, remake_report
    from mythos_export.records.measurements import Evaluation, Latency, read_measurement

    report = Reporter(quiet=json)
    bundle = Bundle.open(path, check_hashes=False)
    measured = (
        read_measurement(Evaluation, accuracy, bundle) if accuracy is not None else None,
        read_measurement(Latency, latency, bundle) if latency is not None else None,
    )
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    made = remake_report(bundle, *measured)
    written = made.file(REPORT)
    if json:
        print_json({"bundle": str(path), "report": str(written), "bytes": made.manifest.files[REPORT].size})
    else:
        print(f"{written}: {size(made.manifest.files[REPORT].size)}")
