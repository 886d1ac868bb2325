"""The recurrent step: one block, run again and again with the same weights.

Everything that knows the depth is here: the loop-index signal, the depth LoRA, the stable
injection and the halting. `RecurrentBlock.step` is one loop; the model runs it `n_loops` times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model.components.component import Component, Linear
from reference_model.components.moe import Routing
from reference_model.components.norms import RMSNorm
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import EPSILON, looped_block
from reference_model.ops import Rope, Rows

__all__ = ["Decisions", "DepthLoRA", "Halting", "Injection", "LoopState", "RecurrentBlock", "StepTrace", "loop_signal"]


class LoopState(NamedTuple):
    """What one loop hands to the next, each [b, s, d] so that every backend can carry it."""

    hidden: Tensor
    output: Tensor  # ACT-weighted sum of the hidden states so far
    cumulative_p: Tensor  # halting probability spent so far, the same in every channel

    @classmethod
    def start(cls, encoded: Tensor) -> LoopState:
        """The state before the first loop, from the prelude's output [b, s, d]."""
        return cls(encoded, torch.zeros_like(encoded), torch.zeros_like(encoded))


class StepTrace(NamedTuple):
    """What one loop did, for comparison with an exported graph."""

    hidden: Tensor  # [b, s, d] after the injection
    act_weight: Tensor  # [b, s, 1] share of this depth in the output
    running: Tensor  # [b, s] bool: the token had not halted, nor its sequence reached its depth
    cumulative_p: Tensor  # [b, s] halting probability spent, this depth included
    routing: Routing


class Decisions(NamedTuple):
    """What another run did in one loop, to be followed, so that differences do not add up."""

    start: Tensor | None  # [b, s, d] hidden state that the loop begins with; None keeps the model's own
    experts: Tensor  # int64 [b * s, k] whom to mix


def loop_signal(loop_index: Tensor, dim: int, loop_dim: int) -> Tensor:
    """Sinusoidal signal of the loop index in the first `loop_dim` of `dim` channels: [] -> [dim].

    Source: `open_mythos.main.loop_index_embedding`.
    """
    if loop_dim == 0:  # a model narrower than 8 has no room for it
        return torch.zeros(dim, device=loop_index.device)
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, loop_dim, 2, dtype=torch.float32) / loop_dim))
    angles = loop_index.to(torch.float32) * frequencies.to(loop_index.device)
    signal = torch.cat((angles.sin(), angles.cos()))[:loop_dim]
    return torch.nn.functional.pad(signal, (0, dim - loop_dim))


class DepthLoRA(Component):
    """Low-rank update whose scale depends on the depth (Bae et al. 2024, arXiv 2410.20672)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.down = Linear(config.dim, config.lora_rank, bias=False)
        self.B = nn.Parameter(torch.randn(config.lora_rank, config.dim) * 0.02)
        self.scale = nn.Embedding(config.max_loop_iters, config.lora_rank)

    def forward(self, x: Tensor, loop_index: Tensor) -> Tensor:
        """x [b, s, d], loop_index [] int64 -> [b, s, d]; past the table its last row is used."""
        row = loop_index.clamp(max=self.scale.num_embeddings - 1)
        return (self.down(x) * self.scale(row)) @ self.B


class Injection(nn.Module):
    """Stable injection `A * h + B * e + block` with every |A| < 1 (`open_mythos.main.LTIInjection`)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.log_A = nn.Parameter(torch.zeros(config.dim))
        self.log_dt = nn.Parameter(torch.zeros(1))
        self.B = nn.Parameter(torch.full((config.dim,), 0.1))

    def transition(self) -> Tensor:
        """Diagonal of the discretised state matrix, [d], each in (0, 1)."""
        return torch.exp(-torch.exp((self.log_dt + self.log_A).clamp(-20, 20)))

    def forward(self, hidden: Tensor, encoded: Tensor, block_out: Tensor) -> Tensor:
        """All [b, s, d]."""
        return self.transition() * hidden + self.B * encoded + block_out


class Halting(Component):
    """Adaptive computation time (Graves 2016, arXiv 1603.08983; `open_mythos.main.ACTHalting`)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.halt = Linear(config.dim, 1)
        self.threshold = config.act_threshold

    def forward(self, hidden: Tensor, cumulative_p: Tensor, within_depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Share of this depth in the output.

        Args:
            hidden: [b, s, d].
            cumulative_p: [b, s, 1], probability spent so far.
            within_depth: bool [b, 1, 1], false once the sequence has had all its loops.

        Returns:
            weight [b, s, 1], probability newly spent [b, s, 1], running bool [b, s, 1].
        """
        p = self.probability(hidden)
        running = (cumulative_p < self.threshold) & within_depth
        remainder = (1.0 - cumulative_p).clamp(min=0)
        weight = torch.where(cumulative_p + p >= self.threshold, remainder, p)
        return torch.where(running, weight, 0.0), torch.where(running, p, 0.0), running

    def probability(self, hidden: Tensor) -> Tensor:
        """Probability of halting here: [b, s, d] -> [b, s, 1]."""
        return self.ops.sigmoid(self.halt(hidden))


class RecurrentBlock(Component):
    """The looped block (`open_mythos.main.RecurrentBlock`)."""

    def __init__(self, config: MythosConfig, *, with_experts: bool = True) -> None:
        super().__init__()
        self.dim, self.loop_dim = config.dim, config.loop_dim
        self.block = looped_block(config, with_experts=with_experts)
        self.injection = Injection(config)
        self.act = Halting(config)
        self.lora = DepthLoRA(config)
        self.norm = RMSNorm(config.dim, EPSILON)

    def step(
        self,
        state: LoopState,
        encoded: Tensor,
        loop_index: Tensor,
        n_loops: Tensor,
        rope: Rope,
        visible: Tensor,
        past: Rows,
        follow: Decisions | None = None,
    ) -> tuple[LoopState, Rows, StepTrace]:
        """One loop: join, block, read-out.

        Args:
            state: what the previous loop left, each [b, s, d].
            encoded: the prelude's output, injected at every depth, [b, s, d].
            loop_index: [] int64, 0 for the first loop.
            n_loops: int64 [b], depth of each sequence.
            rope, visible, past: as for a block; `past` is the cache of this very depth.
            follow: what another run did in this loop.
        """
        if follow is not None and follow.start is not None:
            state = state._replace(hidden=follow.start)
        x, within_depth = self.join(state.hidden, encoded, loop_index, n_loops)
        experts = None if follow is None else follow.experts
        block_out, rows, routing = self.block(x, rope, visible, past, within_depth, experts)
        after, weight, running = self.read_out(block_out, state, encoded, loop_index, within_depth)
        return after, rows, StepTrace(after.hidden, weight, running, after.cumulative_p[..., 0], routing)

    def join(self, hidden: Tensor, encoded: Tensor, loop_index: Tensor, n_loops: Tensor) -> tuple[Tensor, Tensor]:
        """What the block reads, [b, s, d], and whether each sequence has loops left, bool [b, 1, 1]."""
        signal = loop_signal(loop_index, self.dim, self.loop_dim)
        within_depth = (loop_index < n_loops)[:, None, None]
        return self.norm(hidden + signal + encoded), within_depth

    def read_out(
        self, block_out: Tensor, state: LoopState, encoded: Tensor, loop_index: Tensor, within_depth: Tensor
    ) -> tuple[LoopState, Tensor, Tensor]:
        """The state after a loop, the loop's share of the output [b, s, 1], and whether a token ran it, bool [b, s]."""
        block_out = block_out + self.lora(block_out, loop_index)
        hidden = self.injection(state.hidden, encoded, block_out)
        weight, spent, running = self.act(hidden, state.cumulative_p[..., :1], within_depth)
        after = LoopState(hidden, state.output + weight * hidden, state.cumulative_p + spent)
        return after, weight, running.squeeze(-1)
