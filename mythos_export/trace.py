"""Trace the three stages to ONNX without any weights in memory.

`torch.onnx.export` runs under `FakeTensorMode`, so a trillion-parameter model traces in the memory of
a small one. What comes out has initialisers with names and shapes but no values.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch._subclasses import FakeTensorMode
from torch.export import Dim

from mythos_export.stages import CodaStage, PreludeStage, StepStage, domain_ops
from reference_model.cache import Cache
from reference_model.config import MythosConfig
from reference_model.model import MythosModel

__all__ = ["TracedStages", "trace_stages"]

_BATCH, _SEQ, _PAST = 2, 3, 5  # example sizes; every one of them is a dynamic dimension
_DYN = Dim.DYNAMIC


@dataclass(frozen=True)
class TracedStages:
    """One ONNX graph per stage; parameters are initialisers without values, under upstream's names."""

    prelude: ir.Graph
    step: ir.Graph
    coda: ir.Graph


def trace_stages(config: MythosConfig, *, opset: int) -> TracedStages:
    """Trace the stages of a model of this shape."""
    with _quiet(), FakeTensorMode(), domain_ops():
        model = _shell(config).eval()
        inputs = _Examples(config)
        return TracedStages(
            _export(PreludeStage(model), inputs.prelude(), opset),
            _export(StepStage(model), inputs.step(), opset),
            _export(CodaStage(model), inputs.coda(), opset),
        )


def _shell(config: MythosConfig) -> MythosModel:
    """The model without its routed experts: they trace to one node, and 512 of them are slow to build."""
    model = MythosModel(replace(config, n_experts=config.n_experts_per_tok))
    moe, dim = model.recurrent.block.ffn, config.dim
    moe.router = torch.nn.Linear(dim, config.n_experts, bias=False)
    moe.register_buffer("router_bias", torch.zeros(config.n_experts))
    return model


class _Examples:
    """Example inputs of each stage, as (name, tensor, dynamic axes)."""

    def __init__(self, config: MythosConfig) -> None:
        self.config = config
        self.past = Cache.empty(config, batch=_BATCH, loops=1)

    def prelude(self) -> list[tuple[str, torch.Tensor, tuple[int, ...]]]:
        return [
            ("input_ids", _ints(_BATCH, _SEQ), (0, 1)),
            ("attention_mask", _ints(_BATCH, _PAST + _SEQ), (0, 1)),
            ("position_ids", _ints(_BATCH, _SEQ), (0, 1)),
            *self._layers(self.past.prelude),
        ]

    def step(self) -> list[tuple[str, torch.Tensor, tuple[int, ...]]]:
        state = [(name, self._hidden(), (0, 1)) for name in ("hidden", "output", "cumulative_p", "encoded")]
        depth = [(name, part[0].new_zeros(_BATCH, _PAST, *part.shape[3:]), (0, 1)) for name, part in self._named(self.past.recurrent)]
        return [("loop_index", _ints(), ()), *state, ("n_loops", _ints(_BATCH), (0,)), *self._shared(), *depth]

    def coda(self) -> list[tuple[str, torch.Tensor, tuple[int, ...]]]:
        return [("x", self._hidden(), (0, 1)), *self._shared(), *self._layers(self.past.coda)]

    def _shared(self) -> list[tuple[str, torch.Tensor, tuple[int, ...]]]:
        half = self.config.rope_dim // 2
        rope = [(name, torch.zeros(_BATCH, _SEQ, half), (0, 1)) for name in ("cos", "sin")]
        visible = torch.zeros(_BATCH, 1, _SEQ, _PAST + _SEQ, dtype=torch.bool)
        return [*rope, ("visible", visible, (0, 2, 3))]

    def _layers(self, parts: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[str, torch.Tensor, tuple[int, ...]]]:
        return [
            (name, part.new_zeros(part.shape[0], _BATCH, _PAST, *part.shape[3:]), (1, 2))
            for name, part in self._named(parts)
        ]

    def _hidden(self) -> torch.Tensor:
        return torch.zeros(_BATCH, _SEQ, self.config.dim)

    @staticmethod
    def _named(parts: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        return list(zip(("first", "second"), parts))


def _ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _export(
    stage: torch.nn.Module, examples: list[tuple[str, torch.Tensor, tuple[int, ...]]], opset: int
) -> ir.Graph:
    program = torch.onnx.export(
        stage.eval(),
        tuple(tensor for _, tensor, _ in examples),
        dynamo=True,
        optimize=False,  # its weight folding needs values; the one below does not
        verbose=False,
        opset_version=opset,
        input_names=[name for name, _, _ in examples],
        output_names=list(stage.output_names),  # type: ignore[arg-type]
        dynamic_shapes=tuple({axis: _DYN for axis in axes} for _, _, axes in examples),
    )
    assert program is not None
    model = program.model
    for value in list(model.graph.initializers.values()):
        value.const_value = None
        value.name = _parameter_name(value.name)
    optimizer.optimize_ir(model, onnx_shape_inference=False, input_size_limit=1 << 12, output_size_limit=1 << 16)
    return model.graph


def _parameter_name(traced: str | None) -> str:
    """Upstream's name: a stage holds the model, or its recurrent block, under an attribute."""
    return (traced or "").removeprefix("model.")


class _quiet:
    """Keeps the exporter's notes on optional packages and pytree internals off the user's screen."""

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *exc: object) -> None:
        logging.disable(logging.NOTSET)
        self.warnings.__exit__(None, None, None)
