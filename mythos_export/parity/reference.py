"""The reference's side: its weights, mapped and compared, and what it computes for a case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from mythos_export.parity.cases import Case
from mythos_export.parity.exported import Inside
from mythos_export.parity.stored import StoredWeights
from reference_model.attention import GroupedQueryAttention, LatentAttention
from reference_model.cache import Cache
from reference_model.checkpoint import WeightSource, load_model
from reference_model.model import MythosModel
from reference_model.moe import Routing
from reference_model.open_mythos.config import MythosConfig
from reference_model.recurrent import LoopState, StepTrace

__all__ = [
    "ReferenceRun",
    "few_threads_if_small",
    "reference_model",
    "rounded_rows",
    "run_reference",
]

_WIDE = 1024  # model dim from which a second thread helps


@dataclass(frozen=True)
class ReferenceRun:
    """What PyTorch computes for a case; arrays over the whole sequence, depth first where there is one."""

    logits: NDArray[np.float32]  # [b, s, vocab]
    halting_depth: NDArray[np.int64]  # [b, s]
    hidden: NDArray[np.float32]  # [t, b, s, d]
    act_weight: NDArray[np.float32]  # [t, b, s]
    cumulative_p: NDArray[np.float32]  # [t, b, s]
    router_scores: NDArray[np.float32]  # [t, b, s, experts]
    experts: NDArray[np.int64]  # [t, b, s, k]
    act_threshold: float


def reference_model(source: WeightSource, config: MythosConfig, stored: StoredWeights | None = None) -> MythosModel:
    """The reference with the checkpoint's weights; as a bundle stores them, where its weights are given."""
    return load_model(source if stored is None else _Overlay(source, stored), config)


class _Overlay:
    """A source that hands out what a bundle stores."""

    def __init__(self, source: WeightSource, stored: StoredWeights) -> None:
        self._source, self._stored = source, stored
        self.config = source.config
        self.config_problem = source.config_problem
        self.wrappers = source.wrappers
        self.names, self.shape, self.describe = source.names, source.shape, source.describe
        self.rope_table = source.rope_table

    def read(self, name: str) -> torch.Tensor:
        return self._stored.read(name, self._source)

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32


@contextlib.contextmanager
def rounded_rows(cache_type: str) -> Iterator[None]:
    """While it lasts, the reference caches (and attends to) rows in the bundle's type."""
    dtype = getattr(torch, cache_type)

    def rounding(project: Callable[..., Any]) -> Callable[..., Any]:
        def rounded(*arguments: Any) -> Any:
            query, rows = project(*arguments)
            return query, tuple(row.to(dtype).to(torch.float32) for row in rows)

        return rounded

    kinds = (LatentAttention, GroupedQueryAttention)
    with contextlib.ExitStack() as patches:
        for kind in kinds if dtype != torch.float32 else ():
            patches.enter_context(patch.object(kind, "project", rounding(kind.project)))
        yield


@contextlib.contextmanager
def few_threads_if_small(config: MythosConfig) -> Iterator[None]:
    """A small model's operators take microseconds: threads only wait for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if config.dim < _WIDE else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def run_reference(model: MythosModel, case: Case, guide: Inside | None = None) -> ReferenceRun:
    """Feed a case to PyTorch.

    Args:
        guide: what a graph did; each loop then starts from the graph's hidden state and mixes the experts that
            it chose (and says what it would have chosen itself), so that differences do not add up.
    """
    if guide is not None:
        with guided(model, guide.until(case.trips)):
            return run_reference(model, case)
    ids, mask = torch.from_numpy(case.ids), torch.from_numpy(case.mask)
    depths = torch.tensor(case.loops)
    cache: Cache | None = None
    outputs, done = [], 0
    for length in case.chunks:
        until = done + length
        out = model(ids[:, done:until], depths, attention_mask=mask[:, :until], cache=cache)
        cache = cache.append(out.rows) if cache is not None else out.rows
        outputs.append(out)
        done = until

    batch = len(case.loops)
    traces = [out.trace for out in outputs]
    return ReferenceRun(
        logits=torch.cat([out.logits for out in outputs], dim=1).numpy(),
        halting_depth=torch.cat([out.halting_depth for out in outputs], dim=1).numpy(),
        hidden=_joined(traces, lambda step: step.hidden),
        act_weight=_joined(traces, lambda step: step.act_weight.squeeze(-1)),
        cumulative_p=_joined(traces, lambda step: step.cumulative_p),
        router_scores=_joined(traces, lambda step: step.routing.scores.unflatten(0, (batch, -1))),
        experts=_joined(traces, lambda step: step.routing.experts.unflatten(0, (batch, -1))),
        act_threshold=model.config.act_threshold,
    )


@contextlib.contextmanager
def guided(model: MythosModel, guide: Inside) -> Iterator[None]:
    """While it lasts, the model follows a graph's run, token by token as they are fed."""
    recurrent, moe = model.recurrent, model.recurrent.block.ffn
    step, mix = recurrent.step, moe.mix
    fed = depth = 0

    def at(values: NDArray[Any], depth: int, count: int) -> torch.Tensor:
        return torch.from_numpy(values[depth, :, fed : fed + count].copy())

    def guided_step(state: LoopState, encoded: torch.Tensor, loop_index: torch.Tensor, *rest: Any) -> Any:
        nonlocal fed, depth
        count, trips = encoded.shape[1], len(guide.hidden)
        depth = int(loop_index)
        if depth:
            state = state._replace(hidden=at(guide.hidden, depth - 1, count))
        result = step(state, encoded, loop_index, *rest)
        fed += count if depth == trips - 1 else 0
        return result

    def guided_mix(tokens: torch.Tensor, routing: Routing) -> torch.Tensor:
        batch = guide.experts.shape[1]
        experts = at(guide.experts, depth, len(tokens) // batch).flatten(0, 1)
        chances = (routing.scores - moe.router_bias).softmax(dim=-1).gather(-1, experts)
        shares = chances / chances.sum(dim=-1, keepdim=True)
        needed = routing.weights.sum(dim=-1, keepdim=True) > 0  # not past its sequence's depth
        return mix(tokens, Routing(routing.scores, experts, torch.where(needed, shares, 0.0)))

    with patch.object(recurrent, "step", guided_step), patch.object(moe, "mix", guided_mix):
        yield


def _joined(traces: list[tuple[StepTrace, ...]], pick: Callable[[StepTrace], torch.Tensor]) -> NDArray[Any]:
    """One quantity over all depths and calls: [t, b, s, ...]."""
    return torch.cat([torch.stack([pick(step) for step in trace]) for trace in traces], dim=2).numpy()
