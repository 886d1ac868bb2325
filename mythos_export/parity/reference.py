"""The reference's side: its weights, mapped and compared, and what it computes for a case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mythos_export.parity.cases import Case
from mythos_export.parity.exported import Inside
from mythos_export.parity.stored import StoredWeights
from reference_model.checkpoint import WeightSource, load_model
from reference_model.components.component import use_ops
from reference_model.config import MythosConfig
from reference_model.open_mythos.cache import Cache
from reference_model.open_mythos.model import MythosModel
from reference_model.open_mythos.recurrent import Decisions, StepTrace
from reference_model.ops import TorchOps

__all__ = [
    "ReferenceRun",
    "few_threads_if_small",
    "reference_model",
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


def reference_model(
    source: WeightSource, config: MythosConfig, stored: StoredWeights | None = None, cache: str = "float32"
) -> MythosModel:
    """The reference with the checkpoint's weights, or with those of a bundle.

    Args:
        stored: the bundle's.
        cache: type of the bundle's cached rows; the reference rounds its own to it, and attends to them rounded.
    """
    model = load_model(source if stored is None else _Overlay(source, stored), config)
    return use_ops(model, TorchOps(getattr(torch, cache)))


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
    ids, mask = torch.from_numpy(case.ids), torch.from_numpy(case.mask)
    depths = torch.tensor(case.loops)
    cache: Cache | None = None
    outputs, done = [], 0
    for length in case.chunks:
        until = done + length
        follow = None if guide is None else _decisions(guide.until(case.trips), done, until)
        out = model(ids[:, done:until], depths, attention_mask=mask[:, :until], cache=cache, follow=follow)
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


def _decisions(guide: Inside, start: int, until: int) -> list[Decisions]:
    """What the graph did with the tokens of one call, loop by loop."""
    hidden, experts = (torch.from_numpy(part[:, :, start:until].copy()) for part in (guide.hidden, guide.experts))
    starts = [None, *hidden[:-1]]
    return [Decisions(before, chosen.flatten(0, 1)) for before, chosen in zip(starts, experts)]


def _joined(traces: list[tuple[StepTrace, ...]], pick: Callable[[StepTrace], torch.Tensor]) -> NDArray[Any]:
    """One quantity over all depths and calls: [t, b, s, ...]."""
    return torch.cat([torch.stack([pick(step) for step in trace]) for trace in traces], dim=2).numpy()
