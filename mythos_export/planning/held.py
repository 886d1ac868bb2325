"""What a runtime holds of the stored weights once a graph is loaded, which is not always what the file does.

ONNX Runtime computes at load what does not depend on inputs. Where it has no kernel for a type, that is the
dequantised or converted weight: it holds fp32, whatever the file says. (Whether the type has a kernel on a GPU does
not matter: constants are folded before a graph is divided among devices. But fp16 there has kernels.) Tests compare
this with the graph that ONNX Runtime writes after its optimisers.

TensorRT's engines are taken to hold what the file does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mythos_export.weights.names import SCALE
from mythos_export.weights.tensors import Place, StoredTensor, total_bytes
from reference_model.architecture import EMBEDDING, HEAD, LOOP

__all__ = ["Held", "held_tensors"]

_FOLDED = frozenset({"bfloat16", "int4", "float8e4m3fn"})  # no kernel multiplies these
_HEAD = Place(HEAD, "output")


class Held(NamedTuple):
    """Weights in memory."""

    tensors: list[StoredTensor]
    # Bytes of those computed at load that a CPU packs for its kernels: both copies are there at the same time, and
    # the allocator keeps the room of the first.
    packed: int
    converted: bool  # are weights of the loop converted anew at every loop?


def held_tensors(tensors: Sequence[StoredTensor], target: str, kind: str | None, depth: int | None) -> Held:
    """What is held of stored tensors.

    Args:
        kind: of the device, "cpu" or "gpu"; None if it is not known, which counts as no CPU: the least that it can be.
        depth: that the graph is unrolled to; None for a Loop.
    """
    if target == "tensorrt":
        return Held(list(tensors), 0, converted=False)
    without = _without_kernels(kind)
    computed = [tensor for tensor in tensors if tensor.dtype in without and not _stays(tensor, depth)]
    names = {tensor.name for tensor in computed}
    tied = all(tensor.place != _HEAD for tensor in tensors)
    held: list[StoredTensor] = []
    folded: list[StoredTensor] = []
    for tensor in tensors:
        if tensor.name in names:
            if tensor.place.stage == EMBEDDING:  # its rows are looked up before they are converted
                held.append(tensor)
            if tensor.place.stage != EMBEDDING or tied:
                folded += [_in_fp32(tensor)] * _copies(tensor, depth)
        elif tensor.name.removesuffix(SCALE) not in names:
            held.append(tensor)
    packed = total_bytes(tensor for tensor in folded if len(tensor.shape) == 2) if kind == "cpu" else 0
    converted = any(tensor.dtype in without and tensor.place.stage != EMBEDDING for tensor in held)
    return Held(held + folded, packed, converted)


def _without_kernels(kind: str | None) -> frozenset[str]:
    return _FOLDED | {"float16"} if kind == "cpu" else _FOLDED


def _stays(tensor: StoredTensor, depth: int | None) -> bool:
    """fp16 is a type that graphs multiply in: where it is read in a body, or more than once, it is converted there.

    The others are converted by nodes of the graph, which stand outside the Loop.
    """
    return depth != 1 and tensor.dtype == "float16" and tensor.place.stage == LOOP


def _copies(tensor: StoredTensor, depth: int | None) -> int:
    """An unrolled graph dequantises weights of the loop at every depth: each of these is folded for itself."""
    dequantised = tensor.dtype != "bfloat16" and tensor.place.stage == LOOP
    return depth if dequantised and depth is not None else 1


def _in_fp32(tensor: StoredTensor) -> StoredTensor:
    """The same weight; of the embedding's table, the head's copy."""
    return tensor._replace(dtype="float32", place=_HEAD if tensor.place.stage == EMBEDDING else tensor.place)
