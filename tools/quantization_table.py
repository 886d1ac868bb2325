"""What quantising nano costs: each precision, shared against per-depth ranges, both targets, at every depth.

    python tools/quantization_table.py [--methods minmax,mse] [--per-hop 50]

For each variant a bundle is made and held against the fp32 bundle on nano's test prompts: the
error of the hidden state at each depth and of the logits at each loop count (norm of the difference
over the norm, one prefill of all prompts), router agreement, and accuracy over k = 1..6.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.choose import QuantizeOptions
from engines.generation import RunningBatch
from engines.onnxruntime import OnnxRuntimeEngine
from engines.prompts import read_prompts
from mythos_export.bundle import Bundle
from mythos_export.parity.probe import ProbedGraph
from mythos_export.pipeline import ExportRequest, export
from mythos_export.progress import Reporter
from reference_model.checkpoint import open_checkpoint
from reference_model.open_mythos import nano
from reference_model.open_mythos.config import config_for_scale
from reference_model.open_mythos.nano.task import TRAINED_HOPS, Prompts, generate

DEPTHS = 16  # twice the trained depth
LOOPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, DEPTHS)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="minmax", help="calibration methods, comma-separated")
    parser.add_argument("--per-hop", type=int, default=40, help="test prompts for each k in 1..6")
    arguments = parser.parse_args()
    prompts = generate("test", arguments.per_hop * TRAINED_HOPS, 0, (1, TRAINED_HOPS))
    with tempfile.TemporaryDirectory() as folder:
        plain = Measured(make(Path(folder), "fp32", QuantizeOptions()), prompts)
        rows = {
            f"{precision} {ranges}, {method}": Measured(make(Path(folder), precision, options), prompts)
            for precision in ("int8", "fp8")
            for method in arguments.methods.split(",")
            for ranges in ("shared", "per-depth")
            for options in [QuantizeOptions(ranges=ranges, method=method)]  # type: ignore[arg-type]
        }
        for precision, target in (("int4", "portable"), ("int8", "onnxruntime"), ("int4", "onnxruntime")):
            name = precision if target == "portable" else f"{precision}, {target}"
            rows[name] = Measured(make(Path(folder), precision, QuantizeOptions(), target), prompts)
    depths = range(1, DEPTHS + 1)
    table(
        "hidden state: |difference| / |fp32| in %, by depth",
        depths,
        {n: row.hidden_errors(plain) for n, row in rows.items()},
    )
    table(
        "logits: |difference| / |fp32| in %, by loop count",
        LOOPS,
        {n: row.logit_errors(plain) for n, row in rows.items()},
    )
    table("router agreement in %, by depth", depths, {n: row.router_agreement(plain) for n, row in rows.items()})
    table(
        "accuracy in %, k = 1..6, by loop count",
        LOOPS,
        {n: row.accuracy(prompts) for n, row in {"fp32": plain, **rows}.items()},
    )


def make(folder: Path, precision: str, options: QuantizeOptions, target: str = "portable") -> Bundle:
    """Export nano."""
    request = ExportRequest(
        name="nano",
        config=config_for_scale("nano"),
        source=open_checkpoint(nano.CHECKPOINT),
        output=folder / f"{target}-{precision}-{options.ranges}-{options.method}",
        target=target,
        precision=precision,
        tokenizer=nano.CHECKPOINT.with_name("tokenizer.json"),
        quantize=options,
    )
    return export(request, Reporter(), None)


class Measured:
    """What a bundle computes for the prompts."""

    def __init__(self, bundle: Bundle, prompts: Prompts) -> None:
        engine = OnnxRuntimeEngine(bundle, spinning=False)
        graph = ProbedGraph(engine, bundle.manifest.graphs[0])
        self.logits: list[np.ndarray] = []
        for loops in LOOPS:
            running = RunningBatch(graph, bundle.manifest, np.full(len(prompts), loops), prompts.ids.shape[1])
            self.logits.append(running.extend(read_prompts(prompts.ids, None, bundle.manifest.limits))[:, -1])
        self.hidden = graph.inside["hidden"]  # of the deepest run: [t, b, s, d]
        self.experts = np.sort(graph.inside["experts"], axis=-1)

    def hidden_errors(self, plain: Measured) -> list[float]:
        """By depth."""
        return [_error(ours, theirs) for ours, theirs in zip(self.hidden, plain.hidden)]

    def logit_errors(self, plain: Measured) -> list[float]:
        """By loop count."""
        return [_error(ours, theirs) for ours, theirs in zip(self.logits, plain.logits)]

    def router_agreement(self, plain: Measured) -> list[float]:
        """By depth: tokens sent to the same experts."""
        return [100 * float((ours == theirs).all(-1).mean()) for ours, theirs in zip(self.experts, plain.experts)]

    def accuracy(self, prompts: Prompts) -> list[float]:
        """By loop count."""
        return [100 * float((logits.argmax(-1) == prompts.answer).mean()) for logits in self.logits]


def _error(ours: Any, theirs: Any) -> float:
    return 100 * float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def table(title: str, columns: Sequence[int], rows: dict[str, list[float]]) -> None:
    """One Markdown table."""
    print(f"\n{title}\n\n| | " + " | ".join(map(str, columns)) + " |\n|---" + "|---" * len(columns) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


if __name__ == "__main__":
    main()
