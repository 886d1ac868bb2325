"""The reference's side: its weights, mapped and compared, and what it computes for a case."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from mythos_export.bundle import Bundle, BundleError
from mythos_export.parity.cases import Case
from mythos_export.parity.source import load_graph
from mythos_export.weights import expected, source_of
from reference_model.attention import GroupedQueryAttention, LatentAttention
from reference_model.cache import Cache
from reference_model.checkpoint import WeightSource, load_model, parameter_shapes
from reference_model.config import MythosConfig
from reference_model.model import MythosModel
from reference_model.recurrent import StepTrace

__all__ = [
    "ReferenceRun",
    "WeightComparison",
    "compare_weights",
    "few_threads_if_small",
    "reference_model",
    "rounded_rows",
    "run_reference",
]

_WIDE = 1024  # model dim from which a second thread helps
_MIN_MAPPED = 1 << 16  # numbers; smaller tensors are not worth a mapping


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


@dataclass(frozen=True)
class WeightComparison:
    """A bundle's parameters held against the checkpoint's."""

    compared: int
    differing: list[str]
    mapped: dict[str, torch.Tensor]  # by the checkpoint's names: equal to its tensors, in the bundle's memory
    stored: dict[str, torch.dtype]  # by the checkpoint's names


def compare_weights(
    bundle: Bundle, source: WeightSource, config: MythosConfig, progress: Callable[[int], None]
) -> WeightComparison:
    """Hold every parameter of the bundle against the checkpoint's, bit for bit.

    fp32 tensors that are equal are handed on mapped, so the reference need not hold a second copy.

    Raises:
        BundleError: a parameter cannot be read.
    """
    stored_parameters = _stored_parameters(bundle)
    differing: list[str] = []
    mapped: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, stored in stored_parameters.items():
        tensor = _as_torch(bundle, stored)
        if not torch.equal(tensor, expected(name, tensor.dtype, source, config)):
            differing.append(name)
        elif tensor.dtype == torch.float32 and tensor.numel() >= _MIN_MAPPED and not name.endswith((".key", ".value")):
            mapped[source_of(name)[0]] = tensor.T if name.endswith(".T") else tensor
        dtypes[source_of(name)[0]] = tensor.dtype
        progress(stored.nbytes)
    differing += sorted(parameter_shapes(config).keys() - dtypes.keys())  # left out, or put in the graph
    return WeightComparison(len(stored_parameters), differing, mapped, dtypes)


def _stored_parameters(bundle: Bundle) -> dict[str, ir.ExternalTensor]:
    model = load_graph(bundle, bundle.manifest.graphs[0].file)
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }


def _as_torch(bundle: Bundle, stored: ir.ExternalTensor) -> torch.Tensor:
    try:
        array = stored.numpy()
    except (OSError, TypeError, ValueError) as error:  # beyond the file's end, or a file with several hard links
        raise BundleError(f"{bundle.path}: {stored.name} cannot be read ({error}); copy or export it again") from error
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mapping is read-only, and nobody writes to it
        return torch.from_numpy(array)


def reference_model(source: WeightSource, config: MythosConfig, weights: WeightComparison) -> MythosModel:
    """The reference with the checkpoint's weights, rounded as the bundle stores them.

    Taken from the mapping where that holds the same values.
    """
    return load_model(_Overlay(source, weights), config).eval()


class _Overlay:
    """A source that hands out the mapped tensor where there is one, and rounds the others as the bundle does."""

    def __init__(self, source: WeightSource, weights: WeightComparison) -> None:
        self._source, self._weights = source, weights
        self.config = source.config
        self.names, self.shape, self.describe = source.names, source.shape, source.describe
        self.rope_table = source.rope_table

    def read(self, name: str) -> torch.Tensor:
        if name in self._weights.mapped:
            return self._weights.mapped[name]
        return self._source.read(name).to(self._weights.stored.get(name, torch.float32)).to(torch.float32)

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
def run_reference(model: MythosModel, case: Case) -> ReferenceRun:
    """Feed a case to PyTorch."""
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


def _joined(traces: list[tuple[StepTrace, ...]], pick: Callable[[StepTrace], torch.Tensor]) -> NDArray[Any]:
    """One quantity over all depths and calls: [t, b, s, ...]."""
    return torch.cat([torch.stack([pick(step) for step in trace]) for trace in traces], dim=2).numpy()
