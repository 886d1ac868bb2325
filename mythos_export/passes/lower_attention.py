"""Attention over the cache from MatMul and Softmax.

MLA is computed in latent space: the up-projection of keys is absorbed into the query and that of
values into the output (DeepSeek-V2, arXiv 2405.04434, section 2.1.2), so a cached token is read as
its latent and never expanded. Past and new rows are compared apart and only the scores are joined:
joining the rows would copy the whole past at every depth of every token.

Shape letters: b batch, s new tokens, p past tokens, h heads, k latent rank, n position-free dims.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from mythos_export.graph_parts import Builder, given, parameter, sizes
from mythos_export.passes.rewriting import Lowering, attribute

__all__ = ["LowerGroupedQueryAttention", "LowerLatentAttention"]

_SEEN = float(np.finfo(np.float32).max)
_HIDDEN = -_SEEN  # finite, so a padding row that sees no key gives no NaN


class LowerLatentAttention(Lowering):
    """`mythos::LatentAttention` in latent space."""

    op_type = "LatentAttention"

    def __init__(self, *, past_first: bool = False) -> None:
        """Prepare.

        Args:
            past_first: multiply the past with the queries, and turn the scores over, instead of the queries with the
                past turned over. A CPU lays out its right operand anew for every product (ONNX Runtime's MLAS does):
                so that is the queries, a few rows, and not the whole past.
        """
        self._past_scores = _scores_past_first if past_first else _scores_of

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        q_nope, q_rope, latent, rope, past_latent, past_rope, visible, kv_up = given(node)
        scale, rank, heads = attribute(node, "scale"), sizes(kv_up)[1], attribute(node, "heads")
        rope_dim, v_dim = attribute(node, "rope_dim"), attribute(node, "v_dim")
        up_key = parameter(main, f"{kv_up.name}.key", [heads, attribute(node, "nope_dim"), rank])
        up_value = parameter(main, f"{kv_up.name}.value", [heads, rank, v_dim])
        lengths = _lengths(build, visible)
        # [b, s, h, n] -> [b, h, s, n] -> latent space [b, h, s, k] -> one query row per head and token [b, h * s, k]
        q_latent = _scaled(build, build.op("MatMul", [_heads_first(build, q_nope), up_key]), scale, rank)
        q_latent = _fold_heads(build, q_latent, lengths, heads, rank)
        q_rope = _heads_first(build, _scaled(build, q_rope, scale, rope_dim))
        q_rope = _fold_heads(build, q_rope, lengths, heads, rope_dim)
        past = self._past_scores(build, (q_latent, q_rope), (past_latent, past_rope))
        new = _scores_of(build, (q_latent, q_rope), (latent, rope))
        rows = lengths.times(build, build.ints(heads))
        attended = _weigh(build, (past, new), visible, (past_latent, latent), lengths, heads, [rows])  # [b, h * s, k]
        apart = build.op("Concat", [lengths.batch, build.ints(heads), lengths.seq, build.ints(rank)], axis=0)
        attended = build.op("Reshape", [attended, apart], allowzero=1)
        # latent outcome [b, h, s, k] -> values [b, h, s, v] -> [b, s, h * v]
        values = _heads_first(build, build.op("MatMul", [attended, up_value]))
        return build.op("Reshape", [values, build.ints(0, 0, heads * v_dim)])


class LowerGroupedQueryAttention(Lowering):
    """`mythos::GroupedQueryAttention`; the query heads of a group share one read of its keys."""

    op_type = "GroupedQueryAttention"

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        query, key, value, past_key, past_value, visible = given(node)
        heads, kv_heads, lengths = attribute(node, "heads"), attribute(node, "kv_heads"), _lengths(build, visible)
        head_dim, value_dim = attribute(node, "head_dim"), attribute(node, "value_dim")
        group = lengths.times(build, build.ints(heads // kv_heads))
        folded = [build.ints(kv_heads), group]
        # [b, s, h, d] -> [b, h, s, d] -> [b, kv, g * s, d]
        grouped = _heads_first(build, _scaled(build, query, attribute(node, "scale"), head_dim))
        shape = build.op("Concat", [lengths.batch, *folded, build.ints(head_dim)], axis=0)
        grouped = build.op("Reshape", [grouped, shape], allowzero=1)
        scores = [
            build.op("MatMul", [grouped, build.op("Transpose", [part], perm=[0, 2, 3, 1])]) for part in (past_key, key)
        ]
        rows = [build.op("Transpose", [part], perm=[0, 2, 1, 3]) for part in (past_value, value)]
        attended = _weigh(build, (scores[0], scores[1]), visible, (rows[0], rows[1]), lengths, heads, folded)
        apart = [lengths.batch, build.ints(heads), lengths.seq, build.ints(value_dim)]
        attended = build.op("Reshape", [attended, build.op("Concat", apart, axis=0)], allowzero=1)  # [b, h, s, d]
        return build.op("Reshape", [_heads_first(build, attended), build.ints(0, 0, heads * value_dim)])


class _Lengths(NamedTuple):
    """Sizes of a call, int64 [1] each; read off the mask, which a Loop captures: so they are computed once, outside."""

    batch: ir.Value
    seq: ir.Value
    past: ir.Value
    total: ir.Value  # past and new

    def times(self, build: Builder, factor: ir.Value) -> ir.Value:
        """A number of new tokens."""
        return build.op("Mul", [self.seq, factor])


def _lengths(build: Builder, visible: ir.Value) -> _Lengths:
    """From the mask [b, 1, s, p + s]."""
    batch, seq, total = (build.op("Shape", [visible], start=axis, end=axis + 1) for axis in (0, 2, 3))
    return _Lengths(batch, seq, build.op("Sub", [total, seq]), total)


def _scaled(build: Builder, x: ir.Value, scale: float, width: int) -> ir.Value:
    """x [..., width] times the scale.

    Written as a vector: a scalar ONNX Runtime would put into the MatMul behind it, which then is slow for one row.
    """
    return build.op("Mul", [x, build.op("Constant", [], value=ir.tensor(np.full(width, scale, np.float32)))])


def _fold_heads(build: Builder, x: ir.Value, lengths: _Lengths, heads: int, width: int) -> ir.Value:
    """[b, h, s, k] -> [b, h * s, k]: one GEMM over the shared latent instead of one per head."""
    rows = lengths.times(build, build.ints(heads))
    return build.op("Reshape", [x, build.op("Concat", [lengths.batch, rows, build.ints(width)], axis=0)], allowzero=1)


def _heads_first(build: Builder, x: ir.Value) -> ir.Value:
    return build.op("Transpose", [x], perm=[0, 2, 1, 3])


_Pair = tuple[ir.Value, ir.Value]  # the latent part and the rotated one


def _scores_of(build: Builder, queries: _Pair, rows: _Pair) -> ir.Value:
    """[b, h * s, k] x [b, t, k] -> [b, h * s, t], both parts added up."""
    return build.op("Add", [_times_transposed(build, query, part) for query, part in zip(queries, rows)])


def _scores_past_first(build: Builder, queries: _Pair, rows: _Pair) -> ir.Value:
    """The same, as [b, t, k] x [b, h * s, k] -> [b, t, h * s], turned over at the end."""
    turned = build.op("Add", [_times_transposed(build, part, query) for query, part in zip(queries, rows)])
    return build.op("Transpose", [turned], perm=[0, 2, 1])


def _times_transposed(build: Builder, left: ir.Value, right: ir.Value) -> ir.Value:
    """[b, m, k] x [b, n, k] -> [b, m, n]."""
    return build.op("MatMul", [left, build.op("Transpose", [right], perm=[0, 2, 1])])


def _weigh(
    build: Builder,
    scores: tuple[ir.Value, ir.Value],
    visible: ir.Value,
    rows: tuple[ir.Value, ir.Value],
    lengths: _Lengths,
    heads: int,
    folded: list[ir.Value],
) -> ir.Value:
    """Softmax over past and new scores, and the weighted sum of their rows.

    Args:
        scores: [b, *folded, p] and [b, *folded, s]; `folded` splits the heads * s rows in its own way.
        rows: [b, ..., p, width] and [b, ..., s, width].

    Returns:
        [b, *folded, width].
    """
    joined = build.op("Concat", [*scores], axis=-1)
    apart = build.op("Concat", [lengths.batch, build.ints(heads), lengths.seq, lengths.total], axis=0)
    joined = build.op("Reshape", [joined, apart], allowzero=1)  # [b, h, s, p + s]
    # The smaller of score and limit: as a Where on the mask, and quicker than its broadcast.
    limits = build.op("Where", [visible, build.scalar(_SEEN), build.scalar(_HIDDEN)])
    weights = build.op("Softmax", [build.op("Min", [joined, limits])], axis=-1)
    together = build.op("Concat", [lengths.batch, *folded, lengths.total], axis=0)
    weights = build.op("Reshape", [weights, together], allowzero=1)
    parts = build.op("Concat", [lengths.past, lengths.seq], axis=0)
    of_past, of_new = build.op("Split", [weights, parts], outputs=2, axis=-1)
    return build.op("Add", [build.op("MatMul", [of_past, rows[0]]), build.op("MatMul", [of_new, rows[1]])])
