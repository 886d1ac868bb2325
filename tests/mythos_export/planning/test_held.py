"""What a plan says a runtime holds, against the graph that ONNX Runtime's optimisers leave."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle
from mythos_export.planning.devices import find_device
from mythos_export.planning.held import held_tensors
from mythos_export.planning.models import stored_from_config
from mythos_export.planning.plan import Question, memory_of
from mythos_export.targets import TARGETS, storage_of
from mythos_export.weights.layout import stored_tensors
from mythos_export.weights.tensors import BITS, StoredTensor
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

MakeBundle = Callable[..., Bundle]
TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 16: "bfloat16", 17: "float8e4m3fn", 22: "int4"}
ON_CPU = [(target, each) for target in ("portable", "onnxruntime") for each in TARGETS[target].precisions]
RUNTIME_ITSELF = 20e6  # bytes, of what is no weight
# Loads a bundle, generates, and prints how much memory of its own the process has gained (Linux).
GAINED = """
import re, sys
import engines, onnxruntime
def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = own()
engine = engines.load(sys.argv[1], threads=1)
list(engine.generate([1], loops=2, max_new_tokens=2))
print(own() - before)
"""


def stored(config: MythosConfig, target: str, precision: str) -> list[StoredTensor]:
    return stored_tensors(architecture(config), storage_of(target, precision, architecture(config)))


def weights_in(graph: onnx.GraphProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Shape and type of every matrix of more than 100 numbers that a graph holds, in its bodies too."""
    for tensor in graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in TYPES and math.prod(tensor.dims) > 100:
            yield tuple(tensor.dims), TYPES[tensor.data_type]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from weights_in(attribute.g)


def total(weights: Counter[tuple[tuple[int, ...], str]]) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 * number for (shape, dtype), number in weights.items())


@pytest.mark.parametrize(("attn", "loops"), [("mla", "dynamic"), ("mla", "1"), ("mla", "3"), ("gqa", "dynamic")])
@pytest.mark.parametrize(("target", "precision"), ON_CPU)
def test_it_is_what_the_optimised_graph_holds(
    make_bundle: MakeBundle,
    mla_config: MythosConfig,
    tmp_path: Path,
    target: str,
    precision: str,
    attn: str,
    loops: str,
) -> None:
    config = mla_config.with_attention(attn)
    bundle = make_bundle(config, target=target, precision=precision, loops=loops)
    OnnxRuntimeEngine(bundle, threads=1).save_optimized(bundle.manifest.graphs[0], tmp_path / "optimised.onnx")
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    depth = None if loops == "dynamic" else int(loops)
    found = held_tensors(
        stored_tensors(architecture(config), storage_of(target, precision, architecture(config))), target, "cpu", depth
    )
    planned = Counter((each.shape, each.dtype) for each in found.tensors if len(each.shape) > 1)
    planned = Counter({weight: number for weight, number in planned.items() if math.prod(weight[0]) > 100})
    there = Counter(weights_in(graph))
    assert there == planned, (there - planned, planned - there)


def test_an_engine_of_tensorrt_holds_what_is_stored(mla_config: MythosConfig) -> None:
    tensors = stored(mla_config, "tensorrt", "bf16")
    assert held_tensors(tensors, "tensorrt", "gpu", None) == (tensors, 0, False)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux'")
@pytest.mark.parametrize(("precision", "target"), [("fp32", "portable"), ("bf16", "portable"), ("int4", "onnxruntime")])
def test_a_process_takes_what_is_planned(
    make_bundle: MakeBundle, mla_config: MythosConfig, precision: str, target: str
) -> None:
    """Of 40 million parameters, so that what the runtime itself takes matters little."""
    large = replace(mla_config, dim=768, n_heads=8, kv_lora_rank=64, q_lora_rank=64, n_experts=16, expert_dim=768)
    bundle = make_bundle(large, target=target, precision=precision)
    ran = subprocess.run(
        [sys.executable, "-c", GAINED, bundle.path], capture_output=True, text=True, check=True, env=os.environ
    )
    question = Question(context=8, loops=2, batch=1, chunk=8, device=find_device("cpu-ddr5-5600"))
    memory = memory_of(stored_from_config("large", architecture(large), target, precision), question)
    planned = memory.weights_held + memory.packing
    assert memory.weights_held <= int(ran.stdout) <= 1.05 * planned + RUNTIME_ITSELF
