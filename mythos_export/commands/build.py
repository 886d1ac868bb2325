"""`mythos-export build BUNDLE --sm 8.9`: engines from a bundle; needs neither torch nor onnx, nor (RTX) a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from engines.receipts import Receipt, receipt_path
from engines.tensorrt_library import architecture, find_library
from mythos_export.building.build import BuildFailed, build_engines, check_request
from mythos_export.building.profiles import make_profile
from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json, size
from mythos_export.progress import Reporter

__all__ = ["run"]


def run(
    path: Path, *, sm: list[str], runtime: str | None, timing_cache: Path | None, json: bool, **sizes: str | None
) -> None:
    """Build for each architecture in turn; exit code 1 if one fails."""
    library = find_library(runtime)
    wanted = [architecture(text) for text in sm]
    bundle = Bundle.open(path, check_hashes=False)
    check_request(bundle, library, wanted)
    profile = make_profile(bundle.manifest.limits, **sizes)
    report = Reporter(quiet=json)
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    report.say(f"building with {library.label}")
    receipts = []
    try:
        for each in wanted:
            cache = timing_cache or _default_cache()
            receipts.append(build_engines(bundle, library, each, profile, report, cache=cache))
    except BuildFailed as error:
        print(f"failed: {' '.join(str(error).split())}; nothing was kept of it", file=sys.stderr)
        raise typer.Exit(1) from error
    if json:
        print_json({"bundle": str(path), "receipts": [receipt.model_dump() for receipt in receipts]})
        return
    for receipt in receipts:
        _say(path / receipt_path(bundle, receipt.sm).relative_to(bundle.path), receipt)


def _say(file: Path, receipt: Receipt) -> None:
    """Say what was built; `file` is the receipt's, as the user names the bundle."""
    total = sum(engine.entry.size for engine in receipt.engines)
    print(f"{file}: {len(receipt.engines)} engines, {size(total)}, {receipt.precision}")
    for engine in receipt.engines:
        if engine.gemms is not None:
            found = engine.gemms
            print(
                f"  {engine.file}: all {found.quantized} quantised products run in {found.type} "
                f"({found.in_loop} of them in the loop, {found.kernels} kernels in all)"
            )


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mythos-export"
