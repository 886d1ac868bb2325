"""One case, two runs: how far apart they are, where they part, and whether that is rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from mythos_export.parity.cases import Case
from mythos_export.parity.exported import ExportedRun, Inside
from mythos_export.parity.reference import ReferenceRun
from mythos_export.parity.tolerances import Tolerance

__all__ = ["CaseResult", "DepthResult", "Flip", "compare_case", "measure_logits", "uncompared_case"]

_TINY = 1e-30  # keeps a range of zero from dividing
_MAX_FLIPS = 20  # listed; the count is complete


class DepthResult(BaseModel):
    """One depth of the loop."""

    depth: int  # 1 for the first loop
    hidden_error: float  # max absolute error over the range of the reference's hidden state
    router_agreement: float  # share of tokens sent to the same experts
    act_weight_error: float  # max absolute error of the share this depth has in the output


class Flip(BaseModel):
    """A discrete decision that came out differently."""

    kind: str  # router or halting
    sequence: int
    position: int
    depth: int
    margin: float  # how far the reference was from deciding so itself


class CaseResult(BaseModel):
    """One case compared."""

    kind: str
    loops: list[int]
    tokens: int  # positions compared
    excluded: int  # positions after a near-tie that flipped: reported, not held against the tolerance
    max_abs_error: float
    mean_abs_error: float
    error_over_range: float
    typical_error: float  # of the median position, over the range
    relative_error: float  # of the norms
    cosine: float
    kl: float  # mean KL divergence of the next-token distribution, nats
    top1_agreement: float  # outside near-ties
    near_ties: int  # positions whose two best tokens are closer than rounding
    smallest_top1_margin: float  # over the logit range
    halting_agreement: float
    halting_depths: list[int] = []  # positions that the graph halted at depth 1, 2, ...; the last: there, or never
    trajectory: list[DepthResult]
    first_depth_out: int | None
    flips: list[Flip]
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Is everything within tolerance?"""
        return not self.failures


def compare_case(
    case: Case,
    reference: ReferenceRun,
    run: ExportedRun,
    probed: ExportedRun,
    tolerance: Tolerance,
    *,
    guided: bool = False,
) -> CaseResult:
    """Compare what PyTorch and a graph computed.

    Args:
        run: by the graph as it ships.
        probed: by the same graph with probes.
        guided: PyTorch followed the graph's routing, so that a flip of the router reaches nothing.
    """
    inside = probed.inside
    failures = _shape_failures(case, reference, run, inside)
    if failures or inside is None:
        return uncompared_case(case, failures)
    flips = _flips(case, reference, inside, run)
    clean = _untouched(case, [flip for flip in flips if not guided or flip.kind != "router"], tolerance)
    failures += _flip_failures(flips, tolerance, guided=guided)
    if not clean.any():
        return uncompared_case(case, failures, excluded=int(case.real.sum()))
    trajectory = _trajectory(case, reference, inside, clean)
    first_out = next((depth.depth for depth in trajectory if not depth.hidden_error <= tolerance.hidden), None)
    values = measure_logits(reference.logits[clean], run.logits[clean], top1_margin=tolerance.top1_margin)
    if not values["error_over_range"] <= tolerance.logits:
        failures.append(f"logits differ by {values['error_over_range']:.3g} of their range")
    if values["top1_agreement"] < 1:
        failures.append(f"top-1 agrees in {values['top1_agreement']:.2%} of the positions outside near-ties")
    if first_out is not None:
        failures.append(f"hidden state leaves tolerance at depth {first_out}")
    gap = np.abs(probed.logits[clean] - run.logits[clean]).max() / max(np.ptp(reference.logits[clean]), _TINY)
    if not gap <= tolerance.logits:
        failures.append("the probed graph computes something else than the one that ships")
    return CaseResult(
        kind=case.kind,
        loops=list(case.loops),
        tokens=int(clean.sum()),
        excluded=int((case.real & ~clean).sum()),
        halting_agreement=float((reference.halting_depth == run.halting_depth)[case.real].mean()),
        halting_depths=[int((run.halting_depth[case.real] == depth + 1).sum()) for depth in range(case.trips)],
        trajectory=trajectory,
        first_depth_out=first_out,
        flips=flips[:_MAX_FLIPS],
        failures=failures,
        **values,
    )


def _shape_failures(case: Case, reference: ReferenceRun, run: ExportedRun, inside: Inside | None) -> list[str]:
    ran = min(run.depths_cached, len(inside.hidden) if inside is not None else 0)
    if ran < case.trips:
        return [f"ran {ran} loops where {case.trips} were asked for"]
    if run.logits.shape != reference.logits.shape:
        return [f"logits have shape {run.logits.shape}, expected {reference.logits.shape}"]
    if not np.isfinite(run.logits[case.real]).all():
        return ["logits are not finite"]
    return []


def _flips(case: Case, reference: ReferenceRun, inside: Inside, run: ExportedRun) -> list[Flip]:
    """Router and halting decisions that differ, at depths that count for their sequence."""
    flips = []
    wanted, got = np.sort(reference.experts, axis=-1), np.sort(inside.experts[: case.trips], axis=-1)
    margins = _router_margins(reference)
    for depth, sequence, position in np.argwhere((wanted != got).any(axis=-1)).tolist():
        if case.mask[sequence, position] and depth < case.loops[sequence]:
            margin = float(margins[depth, sequence, position])
            flips.append(Flip(kind="router", sequence=sequence, position=position, depth=depth + 1, margin=margin))
    for sequence, position in np.argwhere(reference.halting_depth != run.halting_depth).tolist():
        if case.mask[sequence, position]:
            depth = int(min(reference.halting_depth[sequence, position], run.halting_depth[sequence, position]))
            margin = float(np.abs(reference.cumulative_p[depth - 1, sequence, position] - reference.act_threshold))
            flips.append(Flip(kind="halting", sequence=sequence, position=position, depth=depth, margin=margin))
    return flips


def _router_margins(reference: ReferenceRun) -> NDArray[np.float32]:
    """Gap between the last expert chosen and the first one not, over the spread of the scores: [t, b, s]."""
    scores = np.sort(reference.router_scores, axis=-1)
    k = reference.experts.shape[-1]
    if k == scores.shape[-1]:
        return np.full(scores.shape[:-1], np.inf, np.float32)
    spread = np.maximum(scores[..., -1] - scores[..., 0], _TINY)
    return (scores[..., -k] - scores[..., -k - 1]) / spread


def _untouched(case: Case, flips: list[Flip], tolerance: Tolerance) -> NDArray[np.bool_]:
    """[b, s]: real positions that no excusable flip can have reached: those before it in its sequence."""
    clean = case.real.copy()
    for flip in flips:
        if flip.margin <= tolerance.near_tie:
            clean[flip.sequence, flip.position :] = False
    return clean


def _flip_failures(flips: list[Flip], tolerance: Tolerance, *, guided: bool) -> list[str]:
    near_ties = [flip for flip in flips if flip.kind == "router" and flip.margin <= tolerance.near_tie and not guided]
    wrong = [
        flip
        for flip in flips
        if flip.margin > tolerance.near_tie and not any(_reaches(cause, flip) for cause in near_ties)
    ]
    if not wrong:
        return []
    first = min(wrong, key=lambda flip: flip.depth)
    where = f"first at depth {first.depth}, margin {first.margin:.3g}"
    return [f"{len(wrong)} {first.kind} decisions differ that are no near-tie ({where})"]


def _reaches(cause: Flip, flip: Flip) -> bool:
    """Whether other experts at one depth change what is decided elsewhere.

    They change the token's hidden state behind that depth, and by the cache rows of all further depths every later
    token of the sequence. Halting is decided on the hidden state behind its own depth.
    """
    first = cause.depth if flip.kind == "halting" else cause.depth + 1
    return cause.sequence == flip.sequence and cause.position <= flip.position and first <= flip.depth


def _trajectory(case: Case, reference: ReferenceRun, inside: Inside, clean: NDArray[np.bool_]) -> list[DepthResult]:
    results = []
    for depth in range(case.trips):
        counted = clean & (np.array(case.loops)[:, None] > depth)
        if not counted.any():
            continue
        wanted, got = reference.hidden[depth][counted], inside.hidden[depth][counted]
        same = np.sort(reference.experts[depth], axis=-1) == np.sort(inside.experts[depth], axis=-1)
        weights = np.abs(reference.act_weight[depth] - inside.act_weight[depth])[counted]
        results.append(
            DepthResult(
                depth=depth + 1,
                hidden_error=float(np.abs(wanted - got).max() / max(np.ptp(wanted), _TINY)),
                router_agreement=float(same.all(axis=-1)[counted].mean()),
                act_weight_error=float(weights.max()),
            )
        )
    return results


def measure_logits(wanted: NDArray[np.float32], got: NDArray[np.float32], *, top1_margin: float) -> dict[str, Any]:
    """Measures over positions [n, vocab].

    `relative_error` and `cosine` are of logits less their mean at each position: what all logits of a position share
    changes no probability, and would hide or feign an error.
    """
    ours, theirs = got.astype(np.float64), wanted.astype(np.float64)
    error, extent = np.abs(theirs - ours), max(float(np.ptp(theirs)), _TINY)
    best = np.sort(theirs, axis=-1)
    margins = (best[:, -1] - best[:, -2]) / extent if theirs.shape[-1] > 1 else np.full(len(theirs), np.inf)
    decided = margins > top1_margin
    agree = (theirs.argmax(-1) == ours.argmax(-1))[decided]
    p, q = _log_softmax(theirs), _log_softmax(ours)
    original, changed = theirs - theirs.mean(-1, keepdims=True), ours - ours.mean(-1, keepdims=True)
    norms = np.linalg.norm(original) * np.linalg.norm(changed)
    return {
        "max_abs_error": float(error.max()),
        "mean_abs_error": float(error.mean()),
        "error_over_range": float(error.max() / extent),
        "typical_error": float(np.median(error.max(-1)) / extent),
        "relative_error": float(np.linalg.norm(original - changed) / max(np.linalg.norm(original), _TINY)),
        "cosine": float((original * changed).sum() / max(norms, _TINY)),
        "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "top1_agreement": float(agree.mean()) if len(agree) else 1.0,
        "near_ties": int((~decided).sum()),
        "smallest_top1_margin": float(margins.min()),
    }


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def uncompared_case(case: Case, failures: list[str], *, excluded: int = 0) -> CaseResult:
    """A case that could not be compared value by value."""
    inf = float("inf")
    return CaseResult(
        kind=case.kind,
        loops=list(case.loops),
        tokens=0,
        excluded=excluded,
        max_abs_error=inf,
        mean_abs_error=inf,
        error_over_range=inf,
        typical_error=inf,
        relative_error=inf,
        cosine=0.0,
        kl=inf,
        top1_agreement=0.0,
        near_ties=0,
        smallest_top1_margin=0.0,
        halting_agreement=0.0,
        trajectory=[],
        first_depth_out=None,
        flips=[],
        failures=failures,
    )
