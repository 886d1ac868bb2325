"""OpenMythos in the pieces that become graphs: thin modules over the reference's own parts.

Shape letters: b batch, s new tokens, p past tokens, d model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_model.components.blocks import MoEBlock
from reference_model.components.component import Component
from reference_model.components.pieces import block_ports, dense_piece, embed_piece, new_rows
from reference_model.config import MythosConfig
from reference_model.frame import Blocks, Frame, Head, Loop, Norm, Piece, Pieces, Port, State
from reference_model.open_mythos.blocks import EPSILON, dense_block
from reference_model.open_mythos.recurrent import LoopState, RecurrentBlock

__all__ = ["pieces"]


def pieces(config: MythosConfig) -> Pieces:
    """The model's pieces, for tracing: without the routed experts' weights."""
    recurrent, dense = RecurrentBlock(config, with_experts=False), dense_block(config)
    hidden = ("batch", "seq", config.dim)
    x, encoded = Port("x", hidden), Port("encoded", hidden)
    states = tuple(Port(name, hidden) for name in LoopState._fields)
    loop_index, n_loops = Port("loop_index", (), torch.int64), Port("n_loops", ("batch",), torch.int64)
    within_depth = Port("within_depth", ("batch", 1, 1), torch.bool)
    ports = block_ports(dense.attn, dim=config.dim, rope_dim=config.rope_dim)
    rows = new_rows(dense.attn)
    return Pieces(
        frame=frame(config),
        embed=embed_piece(
            vocab_size=config.vocab_size, dim=config.dim, rope_dim=config.rope_dim, theta=config.rope_theta
        ),
        blocks={
            "dense": dense_piece(dense, dim=config.dim, rope_dim=config.rope_dim),
            "moe": Piece(
                _MoE(recurrent.block),
                (*ports, within_depth),
                ("next.x", *rows, "router.scores", "router.experts"),
            ),
        },
        join=Piece(_Join(recurrent), (loop_index, n_loops, states[0], encoded), ("x", "within_depth")),
        read_out=Piece(
            _ReadOut(recurrent),
            (x, *states, encoded, loop_index, within_depth),
            (*(f"next.{name}" for name in LoopState._fields), "running", "act.weight"),
        ),
    )


def frame(config: MythosConfig) -> Frame:
    """Prelude, loop, coda, and a head tied to the embedding."""

    def dense(name: str, count: int) -> Blocks:
        return Blocks(name, "dense", tuple(f"{name}.{layer}" for layer in range(count)))

    loop = Loop(
        Blocks("recurrent", "moe", ("recurrent.block",)),
        (State("hidden", "encoded"), State("output", "zeros"), State("cumulative_p", "zeros")),
        result="output",
        halting="running",
    )
    return Frame(
        before=(dense("prelude", config.prelude_layers),),
        loop=loop,
        after=(dense("coda", config.coda_layers),),
        head=Head("embed.weight", config.vocab_size, config.dim, Norm("norm.weight", EPSILON)),
    )


class _MoE(Component):
    def __init__(self, block: MoEBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor,
        first: Tensor,
        second: Tensor,
        within_depth: Tensor,
    ) -> tuple[Tensor, ...]:
        """x [b, s, d]; `first`, `second`: the cache of this depth, [b, p, ...]; within_depth [b, 1, 1].

        The router's scores and choice are not part of the contract: the parity check reads them.
        """
        x, rows, routing = self.block(x, (cos, sin), visible, (first, second), within_depth)
        return (x, *rows, routing.scores, routing.experts)


class _Join(Component):
    def __init__(self, recurrent: RecurrentBlock) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, loop_index: Tensor, n_loops: Tensor, hidden: Tensor, encoded: Tensor) -> tuple[Tensor, ...]:
        """loop_index [], n_loops [b], the others [b, s, d]."""
        return self.recurrent.join(hidden, encoded, loop_index, n_loops)


class _ReadOut(Component):
    def __init__(self, recurrent: RecurrentBlock) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(
        self,
        x: Tensor,
        hidden: Tensor,
        output: Tensor,
        cumulative_p: Tensor,
        encoded: Tensor,
        loop_index: Tensor,
        within_depth: Tensor,
    ) -> tuple[Tensor, ...]:
        """loop_index [], within_depth [b, 1, 1], the others [b, s, d]. The halting weight is for the parity check."""
        state = LoopState(hidden, output, cumulative_p)
        after, weight, running = self.recurrent.read_out(x, state, encoded, loop_index, within_depth)
        return (*after, running, weight)
