"""Weights that a model really has on their way into graphs, and the reference with what the graphs hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from eventful import eventful_

from calibration.simulate import simulate
from mythos_export import weights
from mythos_export.minimum_runtime import FUSED_EXPERTS_SINCE
from mythos_export.quantization import TABLE, Choices, Quantization
from mythos_export.quantized_weights import HEAD, restored_tensors
from reference_model.checkpoint import SeededWeights, load_model
from reference_model.config import MythosConfig
from reference_model.model import MythosModel

__all__ = ["RUNS_INT4", "GivenWeights", "bound", "eventful_weights", "reference_of", "session", "state_of"]

Arrays = Mapping[str, np.ndarray]

# int4 for ONNX Runtime needs a release that not every supported Python has.
RUNS_INT4 = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= FUSED_EXPERTS_SINCE


class GivenWeights(SeededWeights):
    """A source of tensors that one has already."""

    def __init__(self, config: MythosConfig, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(config, 0)
        self.state = state

    def read(self, name: str) -> torch.Tensor:
        return self.state[name]


def eventful_weights(config: MythosConfig, seed: int = 0) -> GivenWeights:
    """Weights of a model in which things happen."""
    model = MythosModel(config)
    eventful_(model, seed)
    return GivenWeights(config, {name: tensor.detach() for name, tensor in model.state_dict().items()})


def bound(models: Iterable[ir.Model], source: SeededWeights, config: MythosConfig) -> dict[str, np.ndarray]:
    """Give every parameter of graphs its value, in memory; returns them."""
    parameters = weights.parameters_of(models)
    tensors = weights.bind(parameters, source, config)
    arrays = {str(tensor.name): tensor.numpy() for tensor in tensors}
    for model in models:
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                value.const_value = ir.Tensor(arrays[name], name=name)
    return arrays


def state_of(arrays: Arrays, config: MythosConfig) -> dict[str, torch.Tensor]:
    """The float weights that stored parameters stand for, by upstream's names; `HEAD` where it has its own."""
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name.endswith(".scale"):
            continue
        for part in restored_tensors(name, array, arrays.get(f"{name}.scale"), config):
            if name == "embed.weight" and TABLE in arrays:  # kept in float for the head
                state[HEAD] = part.read()
            elif part.rows is None:
                state[part.name] = part.read()
            else:
                shape = SeededWeights(config, 0).shape(part.name)
                state.setdefault(part.name, np.full(shape, np.nan, np.float32))[part.rows] = part.read()
    return {name: torch.tensor(np.array(values)) for name, values in state.items()}


def reference_of(arrays: Arrays, config: MythosConfig, quantization: Quantization, choices: Choices) -> MythosModel:
    """The reference model that computes as a graph with these parameters does."""
    state = state_of(arrays, config)
    model = load_model(GivenWeights(config, state), config)
    return simulate(model, quantization, choices, {}, state.get(HEAD, state["embed.weight"]))


def session(model: ir.Model | Path) -> Any:
    """A session of one thread on a graph that holds its weights, or on a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
