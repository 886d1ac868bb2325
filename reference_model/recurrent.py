"""The recurrent step: one block, run again and again with the same weights.

Everything that knows the depth is here: the loop-index signal, the depth LoRA, the stable
injection and the halting. `RecurrentBlock.step` is one loop; the model runs it `n_loops` times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model.attention import Rows
from reference_model.block import MoEBlock
from reference_model.layers import RMSNorm, Rope
from reference_model.moe import Routing
from reference_model.open_mythos.config import MythosConfig

__all__ = ["DepthLoRA", "Halting", "Injection", "LoopState", "RecurrentBlock", "StepTrace", "loop_signal"]


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


class DepthLoRA(nn.Module):
    """Low-rank update whose scale depends on the depth (Bae et al. 2024, arXiv 2410.20672)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.dim, config.lora_rank, bias=False)
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


class Halting(nn.Module):
    """Adaptive computation time (Graves 2016, arXiv 1603.08983; `open_mythos.main.ACTHalting`)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.halt = nn.Linear(config.dim, 1)
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
        return torch.sigmoid(self.halt(hidden))


class RecurrentBlock(nn.Module):
    """The looped block (`open_mythos.main.RecurrentBlock`)."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.dim, self.loop_dim = config.dim, config.loop_dim
        self.block = MoEBlock(config)
        self.injection = Injection(config)
        self.act = Halting(config)
        self.lora = DepthLoRA(config)
        self.norm = RMSNorm(config.dim)

    def step(
        self,
        state: LoopState,
        encoded: Tensor,
        loop_index: Tensor,
        n_loops: Tensor,
        rope: Rope,
        visible: Tensor,
        past: Rows,
    ) -> tuple[LoopState, Rows, StepTrace]:
        """One loop.

        Args:
            state: what the previous loop left, each [b, s, d].
            encoded: the prelude's output, injected at every depth, [b, s, d].
            loop_index: [] int64, 0 for the first loop.
            n_loops: int64 [b], depth of each sequence.
            rope, visible, past: as for a block; `past` is the cache of this very depth.
        """
        signal = loop_signal(loop_index, self.dim, self.loop_dim)
        within_depth = (loop_index < n_loops)[:, None, None]
        x = self.norm(state.hidden + signal + encoded)
        block_out, rows, routing = self.block(x, rope, visible, past, within_depth)
        block_out = block_out + self.lora(block_out, loop_index)
        hidden = self.injection(state.hidden, encoded, block_out)
        weight, spent, running = self.act(hidden, state.cumulative_p[..., :1], within_depth)
        after = LoopState(hidden, state.output + weight * hidden, state.cumulative_p + spent)
        spent_so_far = after.cumulative_p[..., 0]
        return after, rows, StepTrace(hidden, weight, running.squeeze(-1), spent_so_far, routing)
