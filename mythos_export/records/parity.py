"""`parity.json`: the comparison of a bundle with PyTorch, as the check writes it and anyone reads it.

JSON has no infinity and no NaN: both are written as null (a case of which every position stands behind a near-tie has
no errors) and read as NaN. What an older release did not write has a default.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from mythos_export.bundle import Bundle, BundleError, ParitySummary
from mythos_export.records.files import read_model

__all__ = [
    "PARITY",
    "CaseResult",
    "DepthLoss",
    "DepthResult",
    "Flip",
    "GraphReport",
    "Loss",
    "ParityReport",
    "Tolerance",
    "read_parity",
]

PARITY = "parity.json"
_MOST_CASES, _MOST_DEPTHS, _MOST_FLIPS = 4096, 4096, 512  # far beyond what a check writes


def _nan(value: Any) -> Any:
    return math.nan if value is None else value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


Number = Annotated[float, BeforeValidator(_nan)]
Error = Annotated[float, BeforeValidator(_nan), AfterValidator(_not_negative)]
Share = Annotated[float, Field(ge=0, le=1)]
Loops = Annotated[int, Field(ge=1, le=1 << 31)]
Count = Annotated[int, Field(ge=0, le=1 << 31)]


class Tolerance(BaseModel, frozen=True):
    """Bounds of one precision."""

    typical: Error  # max absolute logit error of the median position, over the logit range, in the median case
    logits: Error  # max absolute logit error over the logit range
    hidden: Error  # the same, for the hidden state at each depth
    near_tie: Error  # margin below which a router or halting decision may flip
    top1_margin: Error  # top-1 margin over the logit range below which another token is a near-tie


class DepthResult(BaseModel):
    """One depth of the loop."""

    depth: Loops  # 1 for the first loop
    hidden_error: Error  # max absolute error over the range of the reference's hidden state
    router_agreement: Share  # share of tokens sent to the same experts
    act_weight_error: Error = math.nan  # max absolute error of the share this depth has in the output


class Flip(BaseModel):
    """A discrete decision that came out differently."""

    kind: str  # router or halting
    sequence: Count
    position: Count
    depth: Count
    margin: Error  # how far the reference was from deciding so itself


class CaseResult(BaseModel):
    """One case compared: one way of feeding, at one loop count or a mix of them."""

    kind: str
    loops: list[Loops] = Field(min_length=1)
    tokens: Count  # positions compared
    excluded: Count  # positions after a near-tie that flipped: reported, not held against the tolerance
    max_abs_error: Error
    mean_abs_error: Error
    error_over_range: Error
    typical_error: Error  # of the median position, over the range
    relative_error: Error  # of the norms
    cosine: Number
    kl: Number  # mean KL divergence of the next-token distribution, nats
    top1_agreement: Share  # outside near-ties
    near_ties: Count  # positions whose two best tokens are closer than rounding
    smallest_top1_margin: Error  # over the logit range
    halting_agreement: Share
    # positions that the graph halted at depth 1, 2, ...; the last: there, or never
    halting_depths: list[Count] = Field(default=[], max_length=_MOST_DEPTHS)
    trajectory: list[DepthResult] = Field(max_length=_MOST_DEPTHS)
    first_depth_out: int | None
    flips: list[Flip] = Field(max_length=_MOST_FLIPS)
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Is everything within tolerance?"""
        return not self.failures


class GraphReport(BaseModel):
    """All cases of one graph."""

    file: str
    depth: Loops | str
    cases: list[CaseResult] = Field(max_length=_MOST_CASES)


class DepthLoss(BaseModel):
    """What quantizing costs at one depth of the loop."""

    depth: Loops
    hidden_error: Error  # norm of the difference of the hidden states over the norm of the original's
    router_agreement: Share  # share of tokens sent to the same experts


class Loss(BaseModel):
    """What quantizing costs one prompt at one loop count, against the model in fp32."""

    loops: Loops
    relative_error: Error  # of the logits: norm of the difference over the norm
    error_over_range: Error
    cosine: Number
    kl: Number  # nats
    top1_agreement: Share
    halting_agreement: Share
    depths: list[DepthLoss] = Field(max_length=_MOST_DEPTHS)


class ParityReport(BaseModel):
    """The whole comparison of a bundle with PyTorch."""

    precision: str
    loops: list[Loops]
    tolerance: Tolerance
    weights_compared: Count
    weights_differing: list[str]
    graph_check: str
    graphs: list[GraphReport]
    loss: list[Loss] = Field(default=[], max_length=_MOST_CASES)  # empty where nothing is quantized
    failures: list[str]

    @property
    def passed(self) -> bool:
        """Is everything within tolerance?"""
        return not self.failures

    def summary(self) -> ParitySummary:
        """What the manifest keeps."""
        cases = [case for graph in self.graphs for case in graph.cases if case.tokens or case.failures]
        return ParitySummary(
            passed=self.passed,
            loops=self.loops,
            max_error_over_range=max((case.error_over_range for case in cases), default=float("inf")),
            tolerance=self.tolerance.logits,
            top1_agreement=min((case.top1_agreement for case in cases), default=0.0),
        )


def read_parity(bundle: Bundle) -> ParityReport | None:
    """The comparison of a bundle with PyTorch; None if none was made.

    Raises:
        BundleError: it is damaged.
    """
    if PARITY not in bundle.manifest.files:
        return None
    return read_model(ParityReport, bundle.file(PARITY), "export the bundle again", failure=BundleError)
