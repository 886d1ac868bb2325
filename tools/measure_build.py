"""Export a model for TensorRT, build its engine, each in a process of its own; wall time, engine size, peak memory.

    python -m tools.measure_build --scale 1b --precision fp16 --sm 8.9 --output /tmp/out

Peak RSS is the operating system's own figure for the whole child process. It counts pages of the weights' file
that TensorRT maps, which are not memory that it takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.measure_export import measure

__all__ = ["measure_build"]


def measure_build(scale: str, precision: str, sm: str, folder: Path) -> dict[str, object]:
    """Both steps; sizes in GB (1e9 bytes), times in seconds, memory in GiB.

    Raises:
        RuntimeError: one of them failed.
    """
    options = ["--scale", scale, "--target", "tensorrt", "--precision", precision, "--no-validate", "--force"]
    exported = measure([*options, "--output", str(folder)])
    built = measure(["build", str(folder), "--sm", sm])
    if exported["exit_code"] or built["exit_code"]:
        raise RuntimeError("the export or the build failed; see above")
    receipt = json.loads((folder / "engines" / f"sm{sm.replace('.', '')}.json").read_text(encoding="utf-8"))
    return {
        "scale": scale,
        "precision": precision,
        "sm": sm,
        "runtime": f"{receipt['runtime']} {receipt['runtime_version']}",
        "export_seconds": exported["seconds"],
        "build_seconds": built["seconds"],
        "build_peak_rss_gib": built["peak_rss_gib"],
        "weights_gb": round((folder / "model.onnx.data").stat().st_size / 1e9, 2),
        "engine_gb": round(sum(engine["entry"]["size"] for engine in receipt["engines"]) / 1e9, 2),
    }


def main() -> int:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="1b")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--sm", default="8.9")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    print(json.dumps(measure_build(given.scale, given.precision, given.sm, given.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
