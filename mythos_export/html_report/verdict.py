"""What a bundle's comparison with PyTorch came to, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mythos_export.bundle import Manifest
from mythos_export.html_report.words import listed, percent, plural, short, subsampled
from mythos_export.records.parity import ParityReport

__all__ = ["Verdict", "verdict_of"]

_MOST_LOOPS = 12
_ROUNDED = {"fp16": "the same weights and cache in fp16", "bf16": "the same weights and cache in bf16"}


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what it rests on."""

    kind: Literal["equal", "unknown", "different"]
    title: str
    reason: str


def verdict_of(manifest: Manifest, parity: ParityReport | None) -> Verdict:
    """Say it."""
    summary = manifest.parity
    if summary is None or parity is None:
        return Verdict(
            "unknown",
            "Not compared with PyTorch",
            "It was exported with --no-validate, so nothing here shows that it computes what was trained. "
            "`mythos-export verify` compares it now; exporting it again without that option puts the proof in it.",
        )
    if not summary.passed or parity.failures:
        return Verdict("different", "Not equal to PyTorch", (parity.failures or ["the comparison failed"])[0])
    shown = [str(summary.loops[index]) for index in subsampled(len(summary.loops), _MOST_LOOPS)]
    at = f"{listed(shown)} {'loop' if summary.loops == [1] else 'loops'}"
    if left_out := len(summary.loops) - len(shown):
        at += f" and {plural(left_out, 'count')} between"
    if manifest.quantization is not None:
        return Verdict("equal", f"Equal to PyTorch that rounds alike, at {at}", _price(parity))
    other = _ROUNDED.get(manifest.precision)
    worst = f"The worst logit differs by {short(summary.max_error_over_range)} of the range of the logits"
    return Verdict(
        "equal",
        f"Equal to PyTorch at {at}",
        f"{worst}; {short(summary.tolerance)} is allowed." + (f" PyTorch computed with {other}." if other else ""),
    )


def _price(parity: ParityReport) -> str:
    """What quantizing costs, against the model in fp32."""
    if not parity.loss:
        return "What quantizing costs was not measured."
    worst = max(parity.loss, key=lambda loss: loss.relative_error or 0.0)
    top1 = min(loss.top1_agreement for loss in parity.loss)
    return (
        "What quantizing costs, against the model in fp32: the logits are off by at most "
        f"{percent(worst.relative_error)} (at {plural(worst.loops, 'loop')}), and the likeliest token is the same in "
        f"at least {percent(top1)} of the positions."
    )
