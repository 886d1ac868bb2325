"""What counts as equal, per precision; stated here, in `parity.json`, and nowhere else.

The reference's weights, cache and quantised activations are rounded as the bundle rounds them; what is
compared is the computation. Portable bf16 bundles compute in fp32, so only a rounding of cached rows that falls the
other way is left to them; those that multiply in bf16 are held to eight times what fp16 is, for bf16 has three
bits less. Where activations are rounded to a few bits, PyTorch and a runtime now and then
round one of them to different sides, and that one step is far larger than any other difference: so the
median is held to much less than the worst.

Errors are shares of the range (max - min) of the reference's values. Router and halting margins say
how near a tie must be for a flip to be rounding: a flip by more is a failure, unless such a near-tie before it in its
sequence has sent a token to other experts.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["TOLERANCES", "Tolerance", "tolerance_of"]


_NARROW = 512  # model dim up to which most tokens see no value rounded to the other side
_IF_WIDE = {"typical": 6e-2, "logits": 2e-1}


class Tolerance(BaseModel):
    """Bounds of one precision."""

    model_config = ConfigDict(frozen=True)

    typical: float  # max absolute logit error of the median position, over the logit range, in the median case
    logits: float  # max absolute logit error over the logit range
    hidden: float  # the same, for the hidden state at each depth
    near_tie: float  # margin below which a router or halting decision may flip
    top1_margin: float  # top-1 margin over the logit range below which another token is a near-tie


TOLERANCES = {
    "fp32": Tolerance(typical=3e-5, logits=1e-4, hidden=1e-4, near_tie=1e-4, top1_margin=2e-4),
    "fp16": Tolerance(typical=3e-3, logits=3e-3, hidden=3e-3, near_tie=1e-2, top1_margin=6e-3),
    "bf16": Tolerance(typical=3e-3, logits=3e-3, hidden=3e-3, near_tie=1e-2, top1_margin=6e-3),
    "bf16 products": Tolerance(typical=2.4e-2, logits=2.4e-2, hidden=2.4e-2, near_tie=8e-2, top1_margin=4.8e-2),
    "int8": Tolerance(typical=5e-3, logits=1e-1, hidden=5e-2, near_tie=5e-2, top1_margin=2e-1),
    "fp8": Tolerance(typical=5e-3, logits=1e-1, hidden=5e-2, near_tie=5e-2, top1_margin=2e-1),
    "int4": Tolerance(typical=3e-5, logits=1e-4, hidden=1e-4, near_tie=1e-4, top1_margin=2e-4),
}


def tolerance_of(precision: str, *, rounds_activations: bool, rounds_products: bool = False, dim: int) -> Tolerance:
    """What counts as equal.

    Args:
        rounds_activations: of int4, whose kernels may round them to int8 as they come: then it is held to what int8 is.
        rounds_products: of bf16, which may be computed with or only stored.
        dim: of the model. In a wide one some value is rounded to the other side at every token, so that the median
            shows it too.
    """
    held_to = "int8" if precision == "int4" and rounds_activations else precision
    if held_to in ("int8", "fp8") and dim > _NARROW:
        return TOLERANCES[held_to].model_copy(update=_IF_WIDE)
    return TOLERANCES["bf16 products" if precision == "bf16" and rounds_products else held_to]
