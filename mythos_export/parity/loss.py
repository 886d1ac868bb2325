"""What quantising costs: a bundle against the model in full precision, each running freely.

Not a question of right or wrong, as the comparison with an equally rounded PyTorch is: it is what a user
pays, per loop count and per depth. Only a model that has lost more than it kept is refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mythos_export.commands.output import text_table
from mythos_export.parity.cases import Case
from mythos_export.parity.compare import measure_logits
from mythos_export.parity.exported import ExportedRun
from mythos_export.parity.reference import ReferenceRun
from mythos_export.records.parity import DepthLoss, Loss

__all__ = ["loss_failures", "measure_loss", "render_loss"]

_TOO_MUCH = 1.0  # relative error of a model that answers nothing at all


def measure_loss(case: Case, original: ReferenceRun, run: ExportedRun, probed: ExportedRun) -> Loss:
    """Compare a prefill with what PyTorch computes from the checkpoint's own weights."""
    inside, real = probed.inside, case.real
    assert inside is not None
    values = measure_logits(original.logits[real], run.logits[real], top1_margin=0.0)
    return Loss(
        loops=case.trips,
        halting_agreement=float((original.halting_depth == run.halting_depth)[real].mean()),
        depths=[
            DepthLoss(
                depth=depth + 1,
                hidden_error=_relative(original.hidden[depth][real], inside.hidden[depth][real]),
                router_agreement=_agreement(original.experts[depth][real], inside.experts[depth][real]),
            )
            for depth in range(case.trips)
        ],
        **{name: values[name] for name in ("relative_error", "error_over_range", "cosine", "kl", "top1_agreement")},
    )


def loss_failures(losses: list[Loss]) -> list[str]:
    """What is not worth shipping."""
    return [
        f"at {loss.loops} loops the logits' error is {loss.relative_error:.2f} of the logits themselves: "
        "quantised, the model is no better than one that answers nothing; try --keep auto, or more calibration data"
        for loss in losses
        if not loss.relative_error < _TOO_MUCH
    ]


def render_loss(losses: list[Loss]) -> list[str]:
    """A row per loop count, then the depths of the deepest."""
    if not losses:
        return []
    rows = [
        [
            str(loss.loops),
            f"{loss.relative_error:.2%}",
            f"{loss.cosine:.5f}",
            f"{loss.kl:.1e}",
            f"{loss.top1_agreement:.2%}",
            f"{min(depth.router_agreement for depth in loss.depths):.2%}",
            f"{loss.halting_agreement:.2%}",
        ]
        for loss in losses
    ]
    deepest = max(losses, key=lambda loss: loss.loops)
    depths = [[str(each.depth), f"{each.hidden_error:.2%}", f"{each.router_agreement:.2%}"] for each in deepest.depths]
    return [
        "against the model in fp32 (what quantising costs)",
        text_table(("loops", "|error|/|fp32|", "cosine", "KL", "top-1", "router", "halting"), rows, left=()),
        f"at {deepest.loops} loops",
        text_table(("depth", "hidden |error| / |fp32|", "router"), depths, left=()),
    ]


def _relative(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(wanted - got) / max(float(np.linalg.norm(wanted)), 1e-30))


def _agreement(wanted: NDArray[np.int64], got: NDArray[np.int64]) -> float:
    return float((np.sort(wanted, axis=-1) == np.sort(got, axis=-1)).all(axis=-1).mean())
