"""A float bundle of each attention, and what a sequence feeds to its graph, call by call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from engines.generation import Graph, RunningBatch
from engines.onnxruntime import OnnxRuntimeEngine
from engines.prompts import read_prompts
from mythos_export.bundle import Bundle, GraphFile
from mythos_export.parity.source import load_graph
from reference_model.open_mythos.config import MythosConfig

Arrays = dict[str, NDArray[Any]]
Observe = Callable[[ir.Model, Sequence[str]], list[Arrays]]

LOOPS = 4
PROMPT, DECODED = 9, 3


class Recorder:
    """A graph that keeps what it is fed and what it gives."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.loops = graph, graph.loops
        self.fed: list[Arrays] = []
        self.gave: list[Arrays] = []

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        self.fed.append({name: np.array(value) for name, value in inputs.items()})  # a decode step changes its own
        results = self.graph.run(inputs, outputs)
        self.gave.append({name: np.array(value) for name, value in zip(outputs, results)})
        return results


@pytest.fixture(scope="package", params=["mla", "gqa"])
def config(request: pytest.FixtureRequest, mla_config: MythosConfig) -> MythosConfig:
    return replace(mla_config, attn_type=request.param)


@pytest.fixture(scope="package")
def bundle(config: MythosConfig, request: pytest.FixtureRequest) -> Bundle:
    """In fp32, with the Loop."""
    return Bundle.open(request.getfixturevalue("tiny_bundle" if config.attn_type == "mla" else "tiny_gqa_bundle"))


@pytest.fixture(scope="package")
def engine(bundle: Bundle) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(bundle, threads=1, spinning=False)


@pytest.fixture(scope="package")
def make_model(bundle: Bundle) -> Callable[[], ir.Model]:
    """The bundle's graph, anew at every call."""
    return lambda: load_graph(bundle, "model.onnx")


@pytest.fixture(scope="package")
def sequence(config: MythosConfig) -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, config.vocab_size, PROMPT + DECODED)


@pytest.fixture(scope="package")
def recorded(engine: OnnxRuntimeEngine, sequence: NDArray[np.int64]) -> Recorder:
    """A sequence through the graph as it ships: a prefill, then tokens one at a time, at LOOPS loops."""
    recorder = Recorder(engine.load_graph(engine.manifest.graphs[0]))
    running = RunningBatch(recorder, engine.manifest, np.array([LOOPS]), capacity=len(sequence))
    running.extend(read_prompts(sequence[:PROMPT], None, engine.manifest.limits))
    for token in sequence[PROMPT:]:
        running.step([int(token)])
    return recorder


@pytest.fixture(scope="package")
def observe(engine: OnnxRuntimeEngine, recorded: Recorder) -> Observe:
    """Run a changed graph on the recorded calls: what the named outputs are, call by call."""

    def run(model: ir.Model, outputs: Sequence[str]) -> list[Arrays]:
        file = GraphFile(file="model.onnx", loops="dynamic")
        graph = engine.load_model(ir.to_proto(model).SerializeToString(), file)
        return [dict(zip(outputs, graph.run(fed, outputs))) for fed in recorded.fed]

    return run
