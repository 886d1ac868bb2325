"""The plain decoder's blocks, looped: two of them a loop, nothing before or after, no halting.

The state passes through a norm at the end of every loop, and stays what it is once its sequence has had its loops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reference_model.components.attention import visible_keys
from reference_model.components.component import Component
from reference_model.components.norms import RMSNorm
from reference_model.components.pieces import dense_piece, embed_piece
from reference_model.components.rope import rope_at, rope_frequencies
from reference_model.frame import Blocks, Frame, Head, Loop, Norm, Piece, Pieces, Port, State
from reference_model.ops import Rows
from reference_model.plain_decoder.model import PlainConfig, plain_block

__all__ = ["LoopedDecoder", "looped_pieces"]


class LoopedDecoder(Component):
    """The reference: `config.layers` blocks a loop."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(plain_block(config) for _ in range(config.layers))
        self.boundary = RMSNorm(config.dim, config.epsilon)
        self.norm = RMSNorm(config.dim, config.epsilon)

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, n_loops: Tensor, past: Sequence[Rows]
    ) -> tuple[Tensor, list[Rows]]:
        """Logits [b, s, vocab] and new rows of each loop and layer, loop-major."""
        rope = rope_at(positions, rope_frequencies(self.config.head_dim, self.config.theta))
        visible = visible_keys(mask, ids.shape[1])
        state, new = self.embed(ids), []
        for loop in range(int(n_loops.max())):
            x = state
            for layer, block in enumerate(self.layers):
                x, rows = block(x, rope, visible, past[loop * len(self.layers) + layer])
                new.append(rows)
            state = torch.where((loop < n_loops)[:, None, None], self.boundary(x), state)
        return self.ops.head(self.norm(state), self.embed.weight), new


class _Join(Component):
    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return (hidden,)


class _ReadOut(Component):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.boundary = RMSNorm(config.dim, config.epsilon)

    def forward(self, x: Tensor, hidden: Tensor, loop_index: Tensor, n_loops: Tensor) -> tuple[Tensor, ...]:
        return (torch.where((loop_index < n_loops)[:, None, None], self.boundary(x), hidden),)


def looped_pieces(config: PlainConfig, *, after: Norm | None = None, state: str = "encoded") -> Pieces:
    """Its pieces.

    Args:
        after: a norm behind the loop, in place of the head's.
        state: what the state begins with.
    """
    sizes = {"dim": config.dim, "rope_dim": config.head_dim}
    hidden = ("batch", "seq", config.dim)
    norm = Norm("norm.weight", config.epsilon)
    loop = Loop(
        Blocks("recurrent", "dense", tuple(f"layers.{layer}" for layer in range(config.layers))),
        (State("hidden", state),),  # type: ignore[arg-type]  # a test passes what it likes
        result="hidden",
        norm=after,
    )
    head = Head("embed.weight", config.vocab_size, config.dim, None if after is not None else norm)
    return Pieces(
        frame=Frame(before=(), loop=loop, after=(), head=head),
        embed=embed_piece(vocab_size=config.vocab_size, theta=config.theta, **sizes),
        blocks={"dense": dense_piece(plain_block(config), **sizes)},
        join=Piece(_Join(), (Port("hidden", hidden),), ("x",)),
        read_out=Piece(
            _ReadOut(config),
            (
                Port("x", hidden),
                Port("hidden", hidden),
                Port("loop_index", (), torch.int64),
                Port("n_loops", ("batch",), torch.int64),
            ),
            ("next.hidden",),
        ),
    )
