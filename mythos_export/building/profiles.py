"""Which sizes an engine is built for: from `1:128:2048` to the shapes of every input."""

from __future__ import annotations

import re
from collections.abc import Mapping

from engines.receipts import Axis, Profile
from mythos_export.bundle import Limits, TensorSpec

__all__ = ["ProfileError", "make_profile", "shapes_of"]

_AXIS = re.compile(r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})|([0-9]{1,9})")
_LEAST = {"batch": 1, "seq": 1, "past": 0, "loops": 1}

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, to tune for, most


class ProfileError(ValueError):
    """Sizes that mean nothing, or contradict each other or the model."""


def make_profile(limits: Limits, **options: str | None) -> Profile:
    """Check the options `batch`, `seq`, `past` and `loops` against each other and the model.

    Args:
        options: `MIN:OPT:MAX`, one number for all three, or None for what suits the model.

    Raises:
        ProfileError: not that, not in order, below what there can be, or beyond the model's longest sequence.
    """
    longest = limits.max_seq_len
    some = min(128, longest)
    usual = {
        "batch": Axis(min=1, opt=1, max=4),
        "seq": Axis(min=1, opt=some, max=longest),
        "past": Axis(min=0, opt=longest // 2, max=longest),
        "loops": Axis(min=1, opt=limits.max_loop_iters, max=2 * limits.max_loop_iters),
    }
    axes = {name: _axis(name, text, usual[name]) for name in _LEAST for text in [options.get(name)]}
    for name in ("seq", "past"):
        if axes[name].max > longest:
            raise ProfileError(
                f"--{name} goes up to {axes[name].max}, but the model's max_seq_len is {longest}; lower it"
            )
    if axes["seq"].min + axes["past"].min > longest:
        together = axes["seq"].min + axes["past"].min
        raise ProfileError(f"--seq and --past are {together} tokens at least, but max_seq_len is {longest}; lower one")
    return Profile(**axes)


def _axis(name: str, text: str | None, usual: Axis) -> Axis:
    if text is None:
        return usual
    found = _AXIS.fullmatch(text.strip())
    if found is None:
        raise ProfileError(f"--{name} is {text[:80]!r}; give MIN:OPT:MAX, such as {usual.min}:{usual.opt}:{usual.max}")
    low, middle, high = (int(part or found[4]) for part in found.groups()[:3])
    if not low <= middle <= high:
        raise ProfileError(f"--{name} is {text[:80]!r}; it must be MIN <= OPT <= MAX")
    if low < _LEAST[name]:
        raise ProfileError(f"--{name} is {text[:80]!r}; the least there can be is {_LEAST[name]}")
    return Axis(min=low, opt=middle, max=high)


def shapes_of(spec: TensorSpec, profile: Profile) -> Shapes:
    """Shapes of an input by the manifest.

    Raises:
        ProfileError: a dimension of it is none that the profile knows.
    """
    known: Mapping[str, tuple[int, int, int]] = {
        **{name: (axis.min, axis.opt, axis.max) for name, axis in dict(profile).items()},
        "past_plus_seq": (
            profile.past.min + profile.seq.min,
            profile.past.opt + profile.seq.opt,
            profile.past.max + profile.seq.max,
        ),
    }
    sizes = []
    for size in spec.shape:
        if isinstance(size, str) and size not in known:
            raise ProfileError(f"input {spec.name} has a dimension {size[:80]!r}, which this release does not know")
        sizes.append(known[size] if isinstance(size, str) else (size,) * 3)
    least, middle, most = (tuple(size[index] for size in sizes) for index in range(3))
    return least, middle, most
