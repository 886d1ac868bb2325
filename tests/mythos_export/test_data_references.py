"""Data files a graph names, found without the onnx package."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mythos_export.data_references import data_references


def external(location: str, name: str = "w") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, tensors: tuple[onnx.TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(tensors))


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph)


def nested(depth: int, innermost: onnx.GraphProto) -> onnx.GraphProto:
    for _ in range(depth):
        innermost = graph(helper.make_node("If", ["c"], [], then_branch=innermost))
    return innermost


def in_a_function() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=external("f"))
    function = helper.make_function("d", "F", [], ["c"], [node], [helper.make_opsetid("", 21)])
    return helper.make_model(graph(), functions=[function])


def in_a_sparse_tensor() -> onnx.ModelProto:
    result = model(graph())
    sparse = result.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("f"))
    return result


def in_training_info() -> onnx.ModelProto:
    result = model(graph())
    result.training_info.add().algorithm.CopyFrom(graph(tensors=(external("f"),)))
    return result


@pytest.mark.parametrize(
    "made",
    [
        model(graph(tensors=(external("f"), external("f", "x")))),
        model(graph(helper.make_node("Constant", [], ["c"], value=external("f")))),
        model(graph(helper.make_node("Constants", [], ["c"], values=[external("f")]))),
        model(nested(5, graph(tensors=(external("f"),)))),
        in_a_function(),
        in_a_sparse_tensor(),
        in_training_info(),
    ],
)
def test_found_wherever_a_tensor_may_stand(made: onnx.ModelProto) -> None:
    assert data_references(made.SerializeToString()) == {"f"}


def test_weights_inside_the_graph_name_no_file() -> None:
    inside = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    assert data_references(model(graph(tensors=(inside,))).SerializeToString()) == set()


def test_of_a_location_given_twice_the_last_counts_as_for_protobuf() -> None:
    entry = onnx.StringStringEntryProto(key="location", value="first").SerializeToString()
    entry += onnx.StringStringEntryProto(value="last").SerializeToString()
    assert onnx.StringStringEntryProto.FromString(entry).value == "last"
    assert data_references(wrapped(entry)) == {"last"}


def test_a_tag_of_more_than_32_bits_hides_nothing() -> None:
    """Protobuf's readers keep the low 32 bits."""
    graph_bytes = graph(tensors=(external("f"),)).SerializeToString()
    tag = (7 << 3 | 2) | 1 << 32
    assert data_references(varint(tag) + varint(len(graph_bytes)) + graph_bytes) == {"f"}


@pytest.mark.parametrize(
    "content",
    [b"not a graph", b"\x3a", b"\x3a\xff", b"\x3a\x05ab", b"\x3b", b"\xff" * 11, b"\x09\x00", b"\x08" + b"\x80" * 12],
)
def test_what_is_no_model(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated|wire type"):
        data_references(content)


def test_a_bomb_of_nested_graphs_is_refused() -> None:
    content = b""
    for _ in range(300):  # if -> attribute -> graph
        for number in (6, 5, 1):
            content = varint(number << 3 | 2) + varint(len(content)) + content
    with pytest.raises(ValueError, match="nested too deeply"):
        data_references(varint(7 << 3 | 2) + varint(len(content)) + content)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_a_value_error(content: bytes) -> None:
    try:
        found = data_references(content)
    except ValueError:
        return
    assert all(isinstance(location, str) for location in found)


def wrapped(entry: bytes) -> bytes:
    """An external_data entry in a tensor in a graph in a model."""
    for number in (13, 5, 7):
        entry = varint(number << 3 | 2) + varint(len(entry)) + entry
    return entry


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
