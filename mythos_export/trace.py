"""Trace the three stages to ONNX without any weights in memory.

`torch.onnx.export` runs under `FakeTensorMode`, so a trillion-parameter model traces in the memory of
a small one. What comes out has initialisers with names and shapes but no values.
"""

from __future__ import annotations

import functools
import logging
import warnings
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch._subclasses import FakeTensorMode
from torch.export import Dim

from mythos_export.stages import BlockStage, EmbedStage, StepStage, domain_ops
from reference_model.block import DenseBlock
from reference_model.cache import part_shapes
from reference_model.model import MythosModel
from reference_model.open_mythos.config import MythosConfig

__all__ = ["TracedStages", "trace_stages"]

_BATCH, _SEQ, _PAST = 2, 3, 5  # example sizes; every one of them is a dynamic dimension
_DYN = Dim.DYNAMIC


@dataclass(frozen=True)
class TracedStages:
    """One ONNX graph per stage; parameters are initialisers without values, under upstream's names."""

    embed: ir.Graph
    block: ir.Graph  # its parameters are called `block.<name>`
    step: ir.Graph


def trace_stages(config: MythosConfig, *, opset: int) -> TracedStages:
    """Trace the stages of a model of this shape; the caller may take the graphs apart."""
    traced = _trace(config, opset)
    return TracedStages(embed=traced.embed.clone(), block=traced.block.clone(), step=traced.step.clone())


@functools.lru_cache(maxsize=4)  # another precision or depth of the same model is another look at the same trace
def _trace(config: MythosConfig, opset: int) -> TracedStages:
    with _Quiet(), FakeTensorMode(), domain_ops():
        model = _shell(config)
        inputs = _Examples(config)
        return TracedStages(
            embed=_export(EmbedStage(model), inputs.embed(), opset),
            block=_export(BlockStage(DenseBlock(config)), inputs.block(), opset),
            step=_export(StepStage(model), inputs.step(), opset),
        )


def _shell(config: MythosConfig) -> MythosModel:
    """The model without what the stages do not ask it for: dense layers, and hundreds of experts."""
    model = MythosModel(replace(config, prelude_layers=0, coda_layers=0, n_experts=config.n_experts_per_tok))
    moe = model.recurrent.block.ffn
    moe.router = torch.nn.Linear(config.dim, config.n_experts, bias=False)
    moe.register_buffer("router_bias", torch.zeros(config.n_experts))
    return model


Example = tuple[str, torch.Tensor, tuple[int, ...]]  # name, tensor, dynamic axes


class _Examples:
    """Example inputs of each stage."""

    def __init__(self, config: MythosConfig) -> None:
        self.config = config

    def embed(self) -> list[Example]:
        return [
            ("input_ids", _ints(_BATCH, _SEQ), (0, 1)),
            ("attention_mask", _ints(_BATCH, _PAST + _SEQ), (0, 1)),
            ("position_ids", _ints(_BATCH, _SEQ), (0, 1)),
        ]

    def block(self) -> list[Example]:
        return [self._hidden("x"), *self._shared(), *self._past()]

    def step(self) -> list[Example]:
        state = [self._hidden(name) for name in ("hidden", "output", "cumulative_p", "encoded")]
        return [("loop_index", _ints(), ()), *state, ("n_loops", _ints(_BATCH), (0,)), *self._shared(), *self._past()]

    def _hidden(self, name: str) -> Example:
        return name, torch.zeros(_BATCH, _SEQ, self.config.dim), (0, 1)

    def _shared(self) -> list[Example]:
        half = self.config.rope_dim // 2
        rope = [(name, torch.zeros(_BATCH, _SEQ, half), (0, 1)) for name in ("cos", "sin")]
        visible = torch.zeros(_BATCH, 1, _SEQ, _PAST + _SEQ, dtype=torch.bool)
        return [*rope, ("visible", visible, (0, 2, 3))]

    def _past(self) -> list[Example]:
        rows = zip(("first", "second"), part_shapes(self.config))
        return [(name, torch.zeros(_BATCH, _PAST, *row), (0, 1)) for name, row in rows]


def _ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _export(stage: EmbedStage | BlockStage | StepStage, examples: list[Example], opset: int) -> ir.Graph:
    program = torch.onnx.export(
        stage.eval(),
        tuple(tensor for _, tensor, _ in examples),
        dynamo=True,
        optimize=False,  # its weight folding needs values; the one below does not
        verbose=False,
        opset_version=opset,
        input_names=[name for name, _, _ in examples],
        output_names=list(stage.output_names),
        dynamic_shapes=tuple(dict.fromkeys(axes, _DYN) for _, _, axes in examples),
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


class _Quiet:
    """Keeps the exporter's notes on optional packages and pytree internals off the user's screen."""

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *exc: object) -> None:
        logging.disable(logging.NOTSET)
        self.warnings.__exit__(None, None, None)
