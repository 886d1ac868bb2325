"""bfloat16 tensors in and out of Triton's Python backend, by DLPack: numpy has no such type.

The structures are those of DLPack 0.8 (`dlpack.h`); arrays hold bit patterns, as everywhere in `engines`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cache import BFLOAT16

__all__ = ["BFloat16Tensor", "read_bfloat16"]

_CPU = 1
_BFLOAT = 4
_NAME = b"dltensor"  # of a capsule that nobody has taken yet


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_lent: dict[int, tuple[Any, ...]] = {}  # what a consumer still reads, by the address it was given


@_Deleter  # type: ignore[untyped-decorator]
def _take_back(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


def read_bfloat16(capsule: Any) -> NDArray[np.uint16]:
    """A copy of a contiguous bfloat16 tensor in host memory, as bit patterns; the capsule stays its owner's."""
    tensor = ctypes.cast(_get_pointer(capsule, _NAME), ctypes.POINTER(_Managed)).contents.tensor
    kind = (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes)
    shape = tuple(tensor.shape[: tensor.ndim])
    if kind != (_BFLOAT, 16, 1) or tensor.device.type != _CPU or not _is_contiguous(tensor, shape):
        raise TypeError(f"not a contiguous bfloat16 tensor in host memory: {kind} on device {tensor.device.type}")
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, BFLOAT16)
    memory = (ctypes.c_uint16 * count).from_address(tensor.data + tensor.byte_offset)
    return np.ctypeslib.as_array(memory).reshape(shape).copy()


def _is_contiguous(tensor: _Tensor, shape: tuple[int, ...]) -> bool:
    if not tensor.strides or 0 in shape:
        return True
    apart = 1
    for size, stride in zip(reversed(shape), reversed(tensor.strides[: tensor.ndim])):
        if size > 1 and stride != apart:
            return False
        apart *= size
    return True


class BFloat16Tensor:
    """Bit patterns, offered to whoever takes bfloat16 by DLPack."""

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self._bits = np.ascontiguousarray(bits)

    def __dlpack__(self, stream: Any = None) -> Any:
        shape = (ctypes.c_int64 * self._bits.ndim)(*self._bits.shape)
        tensor = _Tensor(
            self._bits.ctypes.data, _Device(_CPU, 0), self._bits.ndim, _DataType(_BFLOAT, 16, 1), shape, None, 0
        )
        managed = _Managed(tensor, None, _take_back)
        address = ctypes.addressof(managed)
        _lent[address] = (managed, shape, self._bits)
        return _new_capsule(address, _NAME, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)
