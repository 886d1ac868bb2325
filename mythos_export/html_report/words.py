"""Numbers as the report writes them; whatever is missing or not finite is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["DASH", "count", "listed", "percent", "plural", "short", "subsampled"]

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def short(value: float | None, digits: int = 3) -> str:
    """Three digits or so: 0.0485, 12.3, 6.6e-7."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", _MINUS)
    return f"{value:.{digits}g}".replace("-", _MINUS) if abs(value) < 1e3 else count(round(value))


def percent(share: float | None) -> str:
    """A share as a percentage; one that is not whole is never rounded to 100 %, nor one above nothing to 0 %."""
    if share is None or not math.isfinite(share):
        return DASH
    if not 1e-4 <= abs(share) < 100 and share:
        return f"{short(100 * share)} %"
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    return f"{'>99.99' if text == '100' and share < 1 else text} %".replace("-", _MINUS)


def count(number: int) -> str:
    """With a comma between thousands."""
    return f"{number:,}".replace("-", _MINUS) if abs(number) < 10**30 else "too many to write"


def plural(number: int, noun: str, many: str | None = None) -> str:
    """`1 loop`, `2 loops`."""
    return f"{count(number)} {noun if number == 1 else many or noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`1, 2 and 4`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def subsampled(number: int, most: int) -> list[int]:
    """At most `most` of the indices 0, 1, ..., evenly spaced, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return sorted({round(index * (number - 1) / (most - 1)) for index in range(most)})
