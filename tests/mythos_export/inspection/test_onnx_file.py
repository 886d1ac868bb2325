"""The light reader of ONNX files against the onnx package, and against hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mythos_export.inspection.onnx_file import read_onnx


def graphs(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[onnx.GraphProto, int]]:
    yield graph, depth
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner, depth + 1)


def test_it_reads_what_the_onnx_package_reads(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    model, found = onnx.load(path, load_external_data=False), read_onnx(path.read_bytes())
    every = list(graphs(model.graph))
    assert Counter(found.nodes) == Counter(
        (node.name, node.op_type, depth) for graph, depth in every for node in graph.node
    )
    assert max(node.depth for node in found.nodes) == 1
    assert found.opsets == {opset.domain: opset.version for opset in model.opset_import}
    wanted = {
        tensor.name: (tuple(tensor.dims), {entry.key: entry.value for entry in tensor.external_data} or None, depth)
        for graph, depth in every
        for tensor in graph.initializer
    }
    assert {each.name: (each.shape, each.external, each.depth) for each in found.initializers} == wanted


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.FLOAT8E4M3FN, "float8e4m3fn"),
        (TensorProto.INT4, "int4"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.INT64, "int64"),
        (TensorProto.STRING, "type 8"),
    ],
)
def test_types(code: int, name: str) -> None:
    tensor = TensorProto(name="t", data_type=code, dims=[3, 4])
    graph = helper.make_graph([], "g", [], [], [tensor])
    (found,) = read_onnx(helper.make_model(graph).SerializeToString()).initializers
    assert (found.dtype, found.shape, found.external) == (name, (3, 4), None)


def test_operators_of_another_domain_say_so() -> None:
    node = helper.make_node("QMoE", ["x"], ["y"], domain="com.microsoft", name="n")
    content = helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()
    assert [each.op_type for each in read_onnx(content).nodes] == ["com.microsoft.QMoE"]


class TestHostile:
    def test_every_cut_is_refused_or_read(self, tiny_bundle: Path) -> None:
        content = (tiny_bundle / "model.onnx").read_bytes()
        refused = 0
        for seed in range(200):
            end = random.Random(seed).randrange(len(content))
            try:
                read_onnx(content[:end])
            except ValueError:
                refused += 1
        assert refused == 200  # the graph is one message, so no proper prefix holds it

    def test_damage_raises_nothing_but_value_errors(self, tiny_bundle: Path) -> None:
        content = (tiny_bundle / "model.onnx").read_bytes()
        for seed in range(300):
            generator, damaged = random.Random(seed), bytearray(content)
            for _ in range(generator.randrange(1, 20)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            try:
                read_onnx(bytes(damaged))
            except ValueError:
                continue

    def test_graphs_within_graphs_without_end(self) -> None:
        message = b""
        for _ in range(60):
            attribute = b"\x32" + _length(message) + message  # AttributeProto.g
            node = b"\x2a" + _length(attribute) + attribute  # NodeProto.attribute
            message = b"\x0a" + _length(node) + node  # GraphProto.node
        with pytest.raises(ValueError, match="nested"):
            read_onnx(b"\x3a" + _length(message) + message)

    def test_a_tensor_of_a_thousand_dimensions(self) -> None:
        tensor = TensorProto(name="t", data_type=1, dims=[1 << 62] * 1000)
        content = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
        with pytest.raises(ValueError, match="1000 dimensions"):
            read_onnx(content)


def _length(message: bytes) -> bytes:
    size, found = len(message), bytearray()
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])
