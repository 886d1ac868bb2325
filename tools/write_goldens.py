"""Golden inputs and outputs of a bundle, from PyTorch, as polygraphy reads them.

    python -m tools.write_goldens runs/demo --loops 1,2,4 --output runs/goldens

makes `loops1.inputs.json` and `loops1.outputs.json`, and so on: a prompt in one call. `polygraphy run` then says
whether any runtime computes what PyTorch computed; the last lines of the output are the commands.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import save_json

from engines.cache import storage_dtype
from mythos_export.bundle import Bundle, BundleError
from mythos_export.parity.cases import Case, cases_for
from mythos_export.parity.reference import reference_model, run_reference
from mythos_export.parity.source import loop_counts, source_of_bundle
from mythos_export.parity.stored import compare_weights
from mythos_export.parity.tolerances import TOLERANCES
from mythos_export.signature import cache_dtype

__all__ = ["command", "write_goldens"]

OUTPUTS = ("logits", "halting.depth")


def write_goldens(bundle: Bundle, folder: Path, loops: str | None) -> dict[int, float]:
    """Write a pair of files for each loop count.

    PyTorch computes with the weights that the bundle holds, rounded as they are.

    Returns:
        By loop count, how far a logit may be off: the tolerance of the bundle's precision times their range.

    Raises:
        BundleError: it is quantised; PyTorch rounds activations in the parity check only.
    """
    if bundle.manifest.quantization is not None:
        raise BundleError(f"{bundle.path}: quantised; `mythos-export verify` compares such a bundle, goldens cannot")
    config, source = source_of_bundle(bundle, None)
    counts = loop_counts(bundle, config, loops)
    stored = compare_weights(bundle, source, config, lambda _: None)
    share, tolerances = TOLERANCES[bundle.manifest.precision].logits, {}
    folder.mkdir(parents=True, exist_ok=True)
    model = reference_model(source, config, stored, cache_dtype(bundle.manifest.precision))
    for case in cases_for(config, counts):
        if case.kind == "prefill":
            run = run_reference(model, case)
            found = {"logits": run.logits.astype(np.float32), "halting.depth": run.halting_depth.astype(np.int64)}
            stem = folder / f"loops{case.trips}"
            save_json([_inputs(bundle, case)], f"{stem}.inputs.json")
            results = RunResults([("pytorch", [IterationResult(outputs=found, runner_name="pytorch")])])
            save_json(results, f"{stem}.outputs.json")
            tolerances[case.trips] = share * float(np.ptp(run.logits))
    return tolerances


def _inputs(bundle: Bundle, case: Case) -> dict[str, np.ndarray]:
    batch = len(case.loops)
    past = {
        f"past.{part.name}": np.zeros(
            (case.trips if part.depth == "loops" else part.depth, batch, 0, *part.row), storage_dtype(part.dtype)
        )
        for part in bundle.manifest.cache
    }
    return {
        "input_ids": case.ids,
        "attention_mask": case.mask,
        "position_ids": (case.mask.cumsum(axis=1) - 1).clip(min=0),
        "n_loops": np.array(case.loops, np.int64),
        "logits_to_keep": np.array(0, np.int64),
        **past,
    }


def command(bundle: Bundle, folder: Path, count: int, tolerance: float) -> list[str]:
    """The `polygraphy run` that compares ONNX Runtime with the goldens of a loop count."""
    stem = folder / f"loops{count}"
    return [
        *("polygraphy", "run", str(bundle.file("model.onnx")), "--onnxrt", "--onnx-outputs", *OUTPUTS),
        *("--load-inputs", f"{stem}.inputs.json", "--load-outputs", f"{stem}.outputs.json"),
        *("--atol", f"logits:{tolerance:g}", "--rtol", "logits:0"),
    ]


def main() -> int:
    """Write them and say what to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--loops")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    for count, tolerance in write_goldens(bundle, arguments.output, arguments.loops).items():
        print(shlex.join(command(bundle, arguments.output, count, tolerance)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
