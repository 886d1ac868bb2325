"""What quantising costs: a bundle against the model in full precision, each running freely.

Not a question of right or wrong, as the comparison with an equally rounded PyTorch is: it is what a user
pays, per loop count and per depth. Only a model that has lost more than it kept is refused. All measures are of
probabilities, or of logits less what all of a position share: an offset of all logits changes nothing and counts for
nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from mythos_export.parity.cases import Case
from mythos_export.parity.compare import measure_logits
from mythos_export.parity.exported import ExportedRun
from mythos_export.parity.reference import ReferenceRun

__all__ = ["DepthLoss", "Loss", "loss_failures", "loss_warnings", "measure_loss", "render_loss"]

# A model is refused where the next token's distribution is that of another model, and pointed out where a user will
# notice. Top-1 of tokens that are nearly tied changes with no harm, so it counts only where the distribution has moved.
REFUSED_KL, WARNED_KL = 1.0, 0.1  # nats, mean over the positions of a prompt
REFUSED_TOP1, REFUSED_TOP1_KL = 0.25, 0.5  # share of positions whose best token stays, and from which KL on it counts
WARNED_TOP1, WARNED_TOP1_KL = 0.9, 0.05
ANSWERS_NOTHING, NOTHING_TOP1 = 1.0, 0.5  # relative error of logits that are all equal, and what then is left


class DepthLoss(BaseModel):
    """One depth of the loop."""

    depth: int
    hidden_error: float  # norm of the difference of the hidden states over the norm of the original's
    router_agreement: float  # share of tokens sent to the same experts


class Loss(BaseModel):
    """One prompt at one loop count."""

    loops: int
    relative_error: float  # of the logits less their mean: norm of the difference over the norm
    error_over_range: float
    cosine: float
    kl: float  # nats
    top1_agreement: float
    halting_agreement: float
    depths: list[DepthLoss]


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
        f"{_shown(loss)}: quantized, this is another model; try --keep auto, more calibration data or another precision"
        for loss in losses
        if _is_ruined(loss)
    ]


def loss_warnings(losses: list[Loss]) -> list[str]:
    """What a user will notice; the worst loop count stands for all."""
    noticed = [
        loss
        for loss in losses
        if not _is_ruined(loss)
        and (loss.kl >= WARNED_KL or (loss.top1_agreement < WARNED_TOP1 and loss.kl >= WARNED_TOP1_KL))
    ]
    if not noticed:
        return []
    worst = max(noticed, key=lambda loss: loss.kl)
    return [f"warning: {_shown(worst)}: quantizing costs much here; --keep auto leaves in float what costs most"]


def _is_ruined(loss: Loss) -> bool:
    """Whether any measure says so; one that is not a number does."""
    return (
        not loss.kl < REFUSED_KL
        or (loss.top1_agreement < REFUSED_TOP1 and loss.kl >= REFUSED_TOP1_KL)
        or (loss.top1_agreement < NOTHING_TOP1 and not loss.relative_error < ANSWERS_NOTHING)
    )


def _shown(loss: Loss) -> str:
    return (
        f"at {loss.loops} loops the next token's distribution differs by {loss.kl:.2g} nats from the original's, and "
        f"the best token stays in {loss.top1_agreement:.0%} of the positions"
    )


def render_loss(losses: list[Loss]) -> list[str]:
    """A row per loop count, then the depths of the deepest."""
    if not losses:
        return []
    rows = [
        f"{loss.loops:>5}  {loss.relative_error:<13.2%} {loss.cosine:<8.5f} {loss.kl:<9.1e} "
        f"{loss.top1_agreement:<7.2%} "
        f"{min(depth.router_agreement for depth in loss.depths):<7.2%} {loss.halting_agreement:.2%}"
        for loss in losses
    ]
    deepest = max(losses, key=lambda loss: loss.loops)
    return [
        "against the model in fp32 (what quantising costs)",
        "loops  |error|/|fp32| cosine   KL        top-1   router  halting",
        *rows,
        f"at {deepest.loops} loops: depth, hidden |error| / |fp32|, router agreement",
        *(f"  {depth.depth:>3}  {depth.hidden_error:7.2%}  {depth.router_agreement:7.2%}" for depth in deepest.depths),
        *loss_warnings(losses),
    ]


def _relative(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(wanted - got) / max(float(np.linalg.norm(wanted)), 1e-30))


def _agreement(wanted: NDArray[np.int64], got: NDArray[np.int64]) -> float:
    return float((np.sort(wanted, axis=-1) == np.sort(got, axis=-1)).all(axis=-1).mean())
