"""What a caller asks for, checked before anything runs: token ids, padding, loops, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from mythos_export.bundle import Limits

__all__ = ["Ids", "Loops", "Prompts", "check_count", "read_loops", "read_prompts"]

Ids = Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]
Loops = int | Sequence[int] | NDArray[Any]

_MAX_LOOPS = 4096  # far past any depth a model has been seen to use; the cache holds rows of every loop


@dataclass(frozen=True)
class Prompts:
    """A left-padded batch of token ids."""

    ids: NDArray[np.int64]  # [batch, seq], 0 where padding
    mask: NDArray[np.int64]  # [batch, seq], 1 real, 0 padding
    single: bool  # given as one flat list, so answered without the batch dimension

    @property
    def longest(self) -> int:
        """Real tokens of the longest prompt."""
        return int(self.mask.sum(axis=1).max())

    def chunks(self, size: int | None) -> list[Prompts]:
        """Cut along the sequence, `size` tokens each; whole if None."""
        width = self.ids.shape[1]
        starts = range(0, width, size or width)
        cuts = (slice(start, start + (size or width)) for start in starts)
        return [Prompts(self.ids[:, cut], self.mask[:, cut], self.single) for cut in cuts]


def read_prompts(ids: Ids, attention_mask: Any, limits: Limits) -> Prompts:
    """Check prompts and bring them into one left-padded batch.

    Args:
        ids: one prompt (flat), or several (nested lists, ragged ones too, or an array [batch, seq]).
        attention_mask: same shape as `ids`, 1 real, 0 padding on the left; all real if None.

    Raises:
        EngineError: not integers, outside the vocabulary, empty, too long, or padded on the right.
    """
    rows, single = _rows(ids)
    masks = _mask_rows(attention_mask, rows, single)
    width = max(len(row) for row in rows)
    out_ids = np.zeros((len(rows), width), np.int64)
    out_mask = np.zeros((len(rows), width), np.int64)
    for index, (row, mask) in enumerate(zip(rows, masks)):
        where = "" if single else f" of prompt {index}"
        kept = _real_tokens(row, mask, where, limits)
        out_ids[index, width - len(kept) :] = kept
        out_mask[index, width - len(kept) :] = 1
    return Prompts(out_ids, out_mask, single)


def read_loops(loops: Loops, batch: int) -> NDArray[np.int64]:
    """Depth of each sequence, int64 [batch].

    Raises:
        EngineError: not integers, below 1, or not one per sequence.
    """
    given: Any = loops.tolist() if hasattr(loops, "tolist") else loops
    values: list[Any] = [given] * batch if isinstance(given, (int, float)) else _as_list(given)
    if len(values) != batch:
        raise EngineError(f"loops has {len(values)} values for {batch} sequences; give one number, or one per sequence")
    for value in values:
        if not _is_integer(value):
            raise EngineError(f"loops is {value!r}; it must be an integer")
        if not 1 <= value <= _MAX_LOOPS:
            raise EngineError(f"loops is {value}; it must lie in 1..{_MAX_LOOPS}")
    return np.array(values, np.int64)


def check_count(name: str, value: object, low: int = 1) -> int:
    """An integer of at least `low`.

    Raises:
        EngineError: it is not.
    """
    if not _is_integer(value) or value < low:  # type: ignore[operator]
        raise EngineError(f"{name} is {value!r}; it must be an integer of at least {low}")
    return int(value)  # type: ignore[call-overload]


def _rows(ids: Any) -> tuple[list[list[Any]], bool]:
    """The prompts as plain lists, and whether there was just one, flat."""
    if isinstance(ids, (str, bytes)):
        raise EngineError("the prompt is text; encode it with the bundle's tokenizer first (engine.tokenizer.encode)")
    if isinstance(ids, np.ndarray) and ids.ndim not in (1, 2):
        raise EngineError(f"token ids have {ids.ndim} dimensions; expected [seq] or [batch, seq]")
    items = _as_list(ids)
    nested = [hasattr(item, "__len__") and not isinstance(item, (str, bytes)) for item in items]
    if not items and getattr(ids, "ndim", 1) == 1:
        raise EngineError("the prompt is empty; give at least one token")
    if not items:
        raise EngineError("there is no prompt in the batch; give at least one")
    if not any(nested):
        return [items], True
    if not all(nested):
        raise EngineError("token ids mix numbers and lists; give one flat list, or a list of lists")
    return [_as_list(item) for item in items], False


def _mask_rows(attention_mask: Any, rows: list[list[Any]], single: bool) -> list[list[Any]]:
    if attention_mask is None:
        return [[1] * len(row) for row in rows]
    values = _as_list(attention_mask)
    masks = [values] if single else [_as_list(row) for row in values]
    if [len(mask) for mask in masks] != [len(row) for row in rows]:
        raise EngineError("attention_mask must have the shape of the token ids")
    return masks


def _real_tokens(row: list[Any], mask: list[Any], where: str, limits: Limits) -> list[int]:
    """The tokens behind the padding, checked."""
    for position, flag in enumerate(mask):
        if flag not in (0, 1):
            raise EngineError(f"attention_mask is {flag!r} at position {position}{where}; it must be 0 or 1")
    padding = mask.index(1) if 1 in mask else len(mask)
    if 0 in mask[padding:]:
        at = padding + mask[padding:].index(0)
        raise EngineError(f"attention_mask is 0 after a real token, at position {at}{where}; pad on the left")
    kept, name = row[padding:], where.removeprefix(" of ") or "the prompt"
    if not kept:
        raise EngineError(f"{name} is empty; give at least one token")
    if len(kept) > limits.max_seq_len:
        raise EngineError(f"{name} has {len(kept)} tokens, more than max_seq_len {limits.max_seq_len}")
    _check_ids(kept, padding, where, limits.vocab_size)
    return kept


def _check_ids(tokens: list[Any], first: int, where: str, vocab: int) -> None:
    for position, token in enumerate(tokens, first):
        if not _is_integer(token):
            raise EngineError(f"token {token!r} at position {position}{where} is not an integer")
        if not 0 <= token < vocab:
            raise EngineError(
                f"token id {token} at position {position}{where} is not in 0..{vocab - 1} (the vocabulary)"
            )


def _as_list(values: Any) -> list[Any]:
    try:
        return list(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError:
        raise EngineError(f"expected a list of integers, got {type(values).__name__}") from None


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
