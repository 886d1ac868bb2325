"""`mythos-export evaluate BUNDLE`: task accuracy per k and loop count, against PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import engines
from mythos_export.bundle import Bundle
from mythos_export.commands.output import print_json
from mythos_export.loops import LoopsError, parse_loops
from mythos_export.progress import Reporter

if TYPE_CHECKING:
    from mythos_export.evaluate import Answers

__all__ = ["run"]


def run(path: Path, *, loops: str, per_hop: int, seed: int, reference: bool, json: bool) -> None:
    """Evaluate; exit code 1 if an fp32 bundle answers anything PyTorch does not, or a quantised one costs too much."""
    from mythos_export.evaluate import check_task, evaluate, failure, render
    from reference_model.open_mythos.nano.task import MAX_HOPS

    counts = parse_loops(loops).depths
    if not counts:
        raise LoopsError(f"--loops is {loops!r}; give loop counts such as 1,2,4,8")
    if per_hop < 1 or seed < 0:
        raise typer.BadParameter("--per-hop must be at least 1, and --seed not negative")
    report = Reporter(quiet=json)
    bundle = Bundle.open(path)
    check_task(bundle)
    asked = MAX_HOPS * per_hop * len(counts) * (2 if reference else 1)
    with report.step("answer", asked) as advance:
        result = evaluate(
            _engine(path),
            _pytorch(bundle) if reference else None,
            counts,
            per_hop=per_hop,
            seed=seed,
            precision=bundle.manifest.precision,
            progress=advance,
        )
    if json:
        print_json(result.model_dump())
    else:
        print(render(result))
    if reason := failure(result, bundle.manifest.limits.max_loop_iters):
        print(f"failed: {reason}", file=sys.stderr)
        raise typer.Exit(1)


def _engine(path: Path) -> Answers:
    engine = engines.load(path, check_hashes=False)
    return lambda ids, loops: engine.logits(ids, loops, logits_to_keep=1)[:, -1].argmax(-1)


def _pytorch(bundle: Bundle) -> Answers:
    import torch

    from mythos_export.parity.source import source_of_bundle
    from reference_model.checkpoint import load_model

    torch.set_num_threads(1)  # nano's operators take microseconds; threads only wait for each other
    config, source = source_of_bundle(bundle, None)
    model = load_model(source, config)

    def answers(ids, loops):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            return model(torch.from_numpy(ids), loops, logits_to_keep=1).logits[:, -1].argmax(-1).numpy()

    return answers
