"""Nodes and initializers of an ONNX file, without the onnx package (a device has none).

Only the few protobuf fields that are shown are read; everything is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Initializer", "Node", "OnnxFile", "read_onnx"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 16  # graphs within graphs; an export has two
_MAX_RANK = 16
# onnx.TensorProto.DataType
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
    17: "float8e4m3fn",
    19: "float8e5m2",
    21: "uint4",
    22: "int4",
}
_EXTERNAL = 1  # onnx.TensorProto.DataLocation

Field = tuple[int, "int | memoryview"]


class Node(NamedTuple):
    """One operator."""

    name: str
    op_type: str
    depth: int  # 0 in the main graph, 1 in a body of it


class Initializer(NamedTuple):
    """A constant of a graph; in a file of its own where `external`."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as `mythos_export.weights.tensors` names it, else "type N"
    external: dict[str, str] | None  # location, offset, length
    depth: int


class OnnxFile(NamedTuple):
    """What a file holds, bodies included."""

    nodes: list[Node]
    initializers: list[Initializer]
    opsets: dict[str, int]  # domain -> version; "" is ONNX itself


def read_onnx(content: bytes) -> OnnxFile:
    """Read a serialized model.

    Raises:
        ValueError: it is none.
    """
    found = OnnxFile([], [], {})
    for number, value in _fields(memoryview(content)):
        if number == 7:
            _read_graph(_message(value), found, 0)
        elif number == 8:
            opset = dict(_fields(_message(value)))
            found.opsets[_text(opset.get(1, b""))] = _integer(opset.get(2, 0))
    return found


def _read_graph(graph: memoryview, found: OnnxFile, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    for number, value in _fields(graph):
        if number == 1:
            _read_node(_message(value), found, depth)
        elif number == 5:
            found.initializers.append(_initializer(_message(value), depth))


def _read_node(node: memoryview, found: OnnxFile, depth: int) -> None:
    name = op_type = domain = ""
    for number, value in _fields(node):
        if number == 3:
            name = _text(value)
        elif number == 4:
            op_type = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            for inner, content in _fields(_message(value)):
                if inner in (6, 11):  # an attribute's graph, or graphs
                    _read_graph(_message(content), found, depth + 1)
    found.nodes.append(Node(name, f"{domain}.{op_type}" if domain else op_type, depth))


def _initializer(tensor: memoryview, depth: int) -> Initializer:
    name, shape, dtype, external, location = "", list[int](), 0, dict[str, str](), 0
    for number, value in _fields(tensor):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2:
            dtype = _integer(value)
        elif number == 8:
            name = _text(value)
        elif number == 13:
            entry = dict(_fields(_message(value)))
            external[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
        elif number == 14:
            location = _integer(value)
    if len(shape) > _MAX_RANK:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    return Initializer(
        name, tuple(shape), _DTYPES.get(dtype, f"type {dtype}"), external if location == _EXTERNAL else None, depth
    )


def _fields(message: memoryview) -> Iterator[Field]:
    """Number and value of each field; those of fixed width are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(message, at)
            if size > len(message) - at:
                raise ValueError("truncated")
            yield number, message[at : at + size]
            at += size
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
    if at > len(message):
        raise ValueError("truncated")


def _packed(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("truncated")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _integer(value: int | memoryview | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number should be")
    return value


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a text should be")
    return bytes(value).decode("utf-8", "replace")
