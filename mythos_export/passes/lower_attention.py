"""Attention over the cache from MatMul and Softmax.

MLA is computed in latent space: the up-projection of keys is absorbed into the query and that of
values into the output (DeepSeek-V2, arXiv 2405.04434, section 2.1.2), so a cached token is read as
its latent and never expanded. Past and new rows are compared apart and only the scores are joined:
joining the rows would copy the whole past at every depth of every token.

Shape letters: b batch, s new tokens, p past tokens, h heads, k latent rank, n position-free dims.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mythos_export.graph_parts import Builder, given, parameter, sizes
from mythos_export.passes.rewriting import Lowering, attribute

__all__ = ["LowerGroupedQueryAttention", "LowerLatentAttention"]

_HIDDEN = float(np.finfo(np.float32).min)  # finite, so a padding row that sees no key gives no NaN


class LowerLatentAttention(Lowering):
    """`mythos::LatentAttention` in latent space."""

    op_type = "LatentAttention"

    def __init__(self, *, heads: int, nope_dim: int, v_dim: int) -> None:
        self.heads, self.nope_dim, self.v_dim = heads, nope_dim, v_dim

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        q_nope, q_rope, latent, rope, past_latent, past_rope, visible, kv_up = given(node)
        scale = build.scalar(attribute(node, "scale"))
        up_key, up_value = self._absorbed(main, kv_up)
        # [b, s, h, n] -> [b, h, s, n] -> latent space [b, h, s, k] -> one query row per head and token [b, h * s, k]
        q_latent = build.op("MatMul", [_heads_first(build, q_nope), up_key])
        q_latent = _fold_heads(build, build.op("Mul", [q_latent, scale]))
        q_rope = _fold_heads(build, build.op("Mul", [_heads_first(build, q_rope), scale]))
        past = build.op("Add", [_scores(build, q_latent, past_latent), _scores(build, q_rope, past_rope)])
        new = build.op("Add", [_scores(build, q_latent, latent), _scores(build, q_rope, rope)])
        attended = _weigh(build, past, new, visible, [past_latent, latent], self.heads)
        # latent outcome [b, h, s, k] -> values [b, h, s, v] -> [b, s, h * v]
        values = build.op("MatMul", [attended, up_value])
        values = build.op("Transpose", [values], perm=[0, 2, 1, 3])
        return build.op("Reshape", [values, build.ints(0, 0, self.heads * self.v_dim)])

    def _absorbed(self, main: ir.Graph, kv_up: ir.Value) -> tuple[ir.Value, ir.Value]:
        rank = sizes(kv_up)[1]
        key = parameter(main, f"{kv_up.name}.key", [self.heads, self.nope_dim, rank])
        value = parameter(main, f"{kv_up.name}.value", [self.heads, rank, self.v_dim])
        return key, value


class LowerGroupedQueryAttention(Lowering):
    """`mythos::GroupedQueryAttention`; the query heads of a group share one read of its keys."""

    op_type = "GroupedQueryAttention"

    def __init__(self, *, heads: int, head_dim: int) -> None:
        self.heads, self.head_dim = heads, head_dim

    def lower(self, build: Builder, node: ir.Node, main: ir.Graph) -> ir.Value:
        query, key, value, past_key, past_value, visible = given(node)
        kv_heads = attribute(node, "kv_heads")
        scale = build.scalar(attribute(node, "scale"))
        # [b, s, h, d] -> [b, h, s, d] -> [b, kv, g * s, d]
        grouped = build.op("Mul", [_heads_first(build, query), scale])
        grouped = build.op("Reshape", [grouped, build.ints(0, kv_heads, -1, self.head_dim)])
        past = build.op("MatMul", [grouped, build.op("Transpose", [past_key], perm=[0, 2, 3, 1])])
        new = build.op("MatMul", [grouped, build.op("Transpose", [key], perm=[0, 2, 3, 1])])
        rows = [build.op("Transpose", [part], perm=[0, 2, 1, 3]) for part in (past_value, value)]
        attended = _weigh(build, past, new, visible, rows, self.heads)  # [b, h, s, d]
        attended = build.op("Transpose", [attended], perm=[0, 2, 1, 3])
        return build.op("Reshape", [attended, build.ints(0, 0, self.heads * self.head_dim)])


def _heads_first(build: Builder, x: ir.Value) -> ir.Value:
    return build.op("Transpose", [x], perm=[0, 2, 1, 3])


def _fold_heads(build: Builder, x: ir.Value) -> ir.Value:
    """[b, h, s, k] -> [b, h * s, k]: one GEMM over the shared latent instead of one per head.

    The width is read from the tensor: a zero-length sequence must not make it ambiguous.
    """
    width = build.op("Shape", [x], start=3, end=4)
    batch = build.op("Shape", [x], start=0, end=1)
    rows = build.op("Mul", [build.op("Shape", [x], start=1, end=2), build.op("Shape", [x], start=2, end=3)])
    return build.op("Reshape", [x, build.op("Concat", [batch, rows, width], axis=0)], allowzero=1)


def _scores(build: Builder, query: ir.Value, rows: ir.Value) -> ir.Value:
    """[b, h * s, k] x [b, t, k] -> [b, h * s, t]."""
    return build.op("MatMul", [query, build.op("Transpose", [rows], perm=[0, 2, 1])])


def _weigh(
    build: Builder, past: ir.Value, new: ir.Value, visible: ir.Value, rows: list[ir.Value], heads: int
) -> ir.Value:
    """Softmax over past and new scores, and the weighted sum of their rows -> [b, h, s, width].

    `past` and `new` are [..., p] and [..., s] with any split of the h * s rows before; so are the results.
    """
    lengths = [build.op("Shape", [part], start=-1) for part in (past, new)]
    total = build.op("Add", lengths)
    folded = build.op("Shape", [past], start=0, end=-1)
    batch = build.op("Shape", [visible], start=0, end=1)
    seq = build.op("Shape", [visible], start=2, end=3)
    apart = build.op("Concat", [batch, build.ints(heads), seq, total], axis=0)
    scores = build.op("Reshape", [build.op("Concat", [past, new], axis=-1), apart], allowzero=1)
    scores = build.op("Where", [visible, scores, build.scalar(_HIDDEN)])  # [b, h, s, p + s]
    weights = build.op("Softmax", [scores], axis=-1)
    weights = build.op("Reshape", [weights, build.op("Concat", [folded, total], axis=0)], allowzero=1)
    of_past, of_new = build.op("Split", [weights, build.op("Concat", lengths, axis=0)], outputs=2, axis=-1)
    mixed = build.op("Add", [build.op("MatMul", [of_past, rows[0]]), build.op("MatMul", [of_new, rows[1]])])
    width = build.op("Shape", [mixed], start=-1)
    return build.op("Reshape", [mixed, build.op("Concat", [batch, build.ints(heads), seq, width], axis=0)], allowzero=1)
