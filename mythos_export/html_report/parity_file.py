"""`parity.json` as the report reads it: any release's, from anywhere, and no more of it than is shown.

The check that writes the file needs torch; reading it needs nothing. What is not finite is null there (a case of
which every position stands behind a near-tie has no errors), and what an older release did not write is empty.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mythos_export.bundle import Bundle, BundleError

__all__ = ["PARITY", "Case", "Depth", "Flip", "GraphCases", "Loss", "Parity", "Tolerance", "read_parity"]

PARITY = "parity.json"
_MAX_BYTES = 64 << 20
_MOST_CASES, _MOST_DEPTHS, _MOST_FLIPS = 512, 4096, 512  # far beyond what a check writes

Error = Annotated[FiniteFloat, Field(ge=0)] | None
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Loops = Annotated[int, Field(ge=1, le=1 << 31)]
Count = Annotated[int, Field(ge=0, le=1 << 31)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Depth(_Read):
    """One depth of the loop."""

    depth: Loops
    hidden_error: Error
    router_agreement: Share
    act_weight_error: Error = None


class Flip(_Read):
    """A discrete decision that came out differently."""

    kind: str
    sequence: Count
    position: Count
    depth: Count
    margin: Error


class Case(_Read):
    """One way of feeding, at one loop count (or a mix of them)."""

    kind: str
    loops: list[Loops] = Field(min_length=1)
    tokens: Count
    excluded: Count
    max_abs_error: Error
    error_over_range: Error
    kl: FiniteFloat | None
    top1_agreement: Share
    near_ties: Count
    halting_agreement: Share
    halting_depths: list[Count] = Field(default=[], max_length=_MOST_DEPTHS)
    trajectory: list[Depth] = Field(max_length=_MOST_DEPTHS)
    flips: list[Flip] = Field(max_length=_MOST_FLIPS)
    failures: list[str]


class GraphCases(_Read):
    """All cases of one graph."""

    file: str
    depth: Loops | str
    cases: list[Case] = Field(max_length=_MOST_CASES)


class Loss(_Read):
    """What quantising costs, at one loop count."""

    loops: Loops
    relative_error: Error
    cosine: FiniteFloat | None
    kl: FiniteFloat | None
    top1_agreement: Share
    halting_agreement: Share
    depths: list[Depth] = Field(max_length=_MOST_DEPTHS)


class Tolerance(_Read):
    """What counted as equal."""

    typical: Error
    logits: Error
    hidden: Error
    near_tie: Error
    top1_margin: Error


class Parity(_Read):
    """The whole comparison."""

    loops: list[Loops]
    tolerance: Tolerance
    weights_compared: Count
    weights_differing: list[str]
    graph_check: str
    graphs: list[GraphCases]
    loss: list[Loss] = Field(default=[], max_length=_MOST_CASES)
    failures: list[str]


def read_parity(bundle: Bundle) -> Parity | None:
    """The comparison of a bundle with PyTorch; None if none was made.

    Raises:
        BundleError: it is damaged.
    """
    if PARITY not in bundle.manifest.files:
        return None
    path = bundle.file(PARITY)
    if bundle.manifest.files[PARITY].size > _MAX_BYTES:
        raise BundleError(f"{path}: too large to be a comparison; export the bundle again")
    try:
        return Parity.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where[:200]}: {first['msg'][:200]}; export the bundle again") from error
