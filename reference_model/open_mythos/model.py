"""The whole looped model, in plain PyTorch: the oracle that every export is compared with.

prelude -> one block, looped -> coda. Computes what `open_mythos.OpenMythos` 0.5.0 computes from the
same weights, and adds left padding, chunked prefill and a depth per sequence. Clarity beats speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reference_model.components.attention import visible_keys
from reference_model.components.component import Component
from reference_model.components.norms import RMSNorm
from reference_model.components.rope import rope_at, rope_frequencies
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import EPSILON, dense_block
from reference_model.open_mythos.cache import Cache
from reference_model.open_mythos.recurrent import Decisions, LoopState, RecurrentBlock, StepTrace
from reference_model.ops import Rope, Rows

__all__ = ["MythosModel", "Trajectory", "generate_greedy"]


@dataclass(frozen=True)
class Trajectory:
    """One pass over s new tokens: what came out, and what every loop did."""

    logits: Tensor  # [b, k, vocab]
    rows: Cache  # what this call adds to the cache
    halting_depth: Tensor  # int64 [b, s]: loops each token ran before ACT halted it
    trace: tuple[StepTrace, ...]  # one entry per loop


class MythosModel(Component):
    """OpenMythos; parameter names are upstream's, so state dicts travel both ways."""

    def __init__(self, config: MythosConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)  # also the output head (tied)
        self.prelude = nn.ModuleList(dense_block(config) for _ in range(config.prelude_layers))
        self.recurrent = RecurrentBlock(config)
        self.coda = nn.ModuleList(dense_block(config) for _ in range(config.coda_layers))
        self.norm = RMSNorm(config.dim, EPSILON)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        n_loops: Tensor | int | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        follow: Sequence[Decisions] | None = None,
    ) -> Trajectory:
        """Run s new tokens per sequence.

        Args:
            input_ids: int64 [b, s].
            n_loops: depth, one for all or int64 [b]; the config's `max_loop_iters` if absent.
            attention_mask: [b, p + s], 1 real, 0 padding (on the left); all real if absent.
            position_ids: int64 [b, s]; counted from the mask if absent.
            cache: rows of the p tokens before; none if absent.
            logits_to_keep: logits of the last k positions only; 0 for all.
            follow: what another run did, loop by loop: start every loop from its hidden state, and mix the experts
                that it chose; the result still says what the model would have chosen itself.

        Raises:
            ValueError: a depth below 1, or deeper than the cache or than the run to follow.
        """
        batch, new_tokens = input_ids.shape
        depths = self._depths(n_loops, batch, input_ids.device)
        loops = int(depths.max())
        past = cache or Cache.empty(self.config, batch=batch, loops=loops, device=input_ids.device)
        if past.loops < loops:
            raise ValueError(
                f"n_loops {loops} exceeds the {past.loops} depths in the cache; a sequence keeps its depth for life"
            )
        if follow is not None and len(follow) < loops:
            raise ValueError(f"n_loops {loops} exceeds the {len(follow)} loops of the run to follow")
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past.length + new_tokens)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past.length :]
        rope = rope_at(position_ids, self.rope_frequencies().to(input_ids.device))
        visible = visible_keys(attention_mask, new_tokens)

        x, prelude_rows = self._dense(self.prelude, self.embed(input_ids), rope, visible, past.prelude)
        encoded, state = x, LoopState.start(x)
        recurrent_rows, trace = [], []
        for loop in range(loops):
            index = torch.tensor(loop, device=input_ids.device)
            past_rows = past.recurrent[0][loop], past.recurrent[1][loop]
            decisions = None if follow is None else follow[loop]
            self.ops.enter_loop(loop)
            state, rows, step = self.recurrent.step(state, encoded, index, depths, rope, visible, past_rows, decisions)
            recurrent_rows.append(rows)
            trace.append(step)
        x, coda_rows = self._dense(self.coda, state.output, rope, visible, past.coda)

        empty = Cache.empty(self.config, batch=batch, loops=0, device=input_ids.device)
        return Trajectory(
            logits=self.head(x[:, -logits_to_keep:]),
            rows=Cache.stack(prelude_rows, recurrent_rows, coda_rows, like=empty),
            halting_depth=torch.stack([step.running for step in trace]).sum(0),
            trace=tuple(trace),
        )

    def head(self, x: Tensor) -> Tensor:
        """[b, k, d] -> logits [b, k, vocab]."""
        return self.ops.head(self.norm(x), self.embed.weight)

    def rope_frequencies(self) -> Tensor:
        """[rope_dim / 2] fp32."""
        return rope_frequencies(self.config.rope_dim, self.config.rope_theta)

    def spectral_radius(self) -> float:
        """Largest |A| of the injection; below 1 the loop cannot blow up."""
        return float(self.recurrent.injection.transition().detach().abs().max())

    @staticmethod
    def _dense(blocks: nn.ModuleList, x: Tensor, rope: Rope, visible: Tensor, past: Rows) -> tuple[Tensor, list[Rows]]:
        rows = []
        for layer, block in enumerate(blocks):
            x, new = block(x, rope, visible, (past[0][layer], past[1][layer]))
            rows.append(new)
        return x, rows

    def _depths(self, n_loops: Tensor | int | None, batch: int, device: torch.device) -> Tensor:
        depths = torch.as_tensor(self.config.max_loop_iters if n_loops is None else n_loops, device=device)
        if depths.min() < 1:
            raise ValueError(f"n_loops is {int(depths.min())}; it must be at least 1")
        return depths.to(torch.int64).expand(batch)


@torch.inference_mode()
def generate_greedy(
    model: MythosModel,
    input_ids: Tensor,
    n_loops: Tensor | int,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Greedy decoding with the cache; yields int64 [b] per step.

    Args:
        input_ids: int64 [b, s], left-padded where `attention_mask` [b, s] is 0.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    cache: Cache | None = None
    for _ in range(max_new_tokens):
        out = model(input_ids, n_loops, attention_mask=mask, cache=cache, logits_to_keep=1)
        cache = cache.append(out.rows) if cache else out.rows
        input_ids = out.logits.argmax(-1)
        mask = torch.cat((mask, torch.ones_like(input_ids)), dim=1)
        yield input_ids[:, 0]
