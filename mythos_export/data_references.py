"""Which data files an ONNX graph reads, found without the onnx package (a device has none).

A hostile graph may name any file of the machine as its weights, and older releases of ONNX Runtime
read it. Only the few protobuf fields that lead to such a name are followed; everything is untrusted.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["data_references"]

# message -> field number -> message within it (onnx.proto)
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry of a tensor's external_data
_MAX_DEPTH = 100  # messages within messages; protobuf's own limit
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def data_references(model: bytes) -> set[str]:
    """Locations of external data that any tensor of a serialized model names, as they stand there.

    Raises:
        ValueError: it is no serialized model.
    """
    return set(_locations(memoryview(model), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if kind == "entry":
        entry = dict(_fields(message))
        if bytes(entry.get(_KEY, b"")) == b"location":
            yield bytes(entry.get(_VALUE, b"")).decode("utf-8", "replace")
        return
    for number, content in _fields(message):
        if (inner := _FIELDS[kind].get(number)) is not None:
            yield from _locations(content, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field that may hold a message or a string."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = (tag & 0xFFFFFFFF) >> 3, tag & 7  # readers keep 32 bits of a tag
        if wire == _BYTES:
            size, at = _varint(message, at)
            if size > len(message) - at:
                raise ValueError("truncated")
            yield number, message[at : at + size]
            at += size
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
    if at > len(message):
        raise ValueError("truncated")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("truncated")
