"""Pickles of `torch.save`, read as data: nothing in them is imported, and nothing of theirs runs.

A pickle is a program. Here every name in it resolves to a stand-in of this file or is refused, so that a tensor comes
out as a record of where its numbers lie, and an object that holds settings as its values.
"""

from __future__ import annotations

import _compat_pickle
import collections
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import torch

__all__ = ["RESAVE", "PickleRefused", "PickledConfig", "Storage", "TensorRecord", "read_pickle"]

RESAVE = "save it again with torch.save(model.state_dict(), ...) or as safetensors"
# What FSDP leaves on the tensors of a full state dict (torch.distributed.fsdp._state_dict_utils).
_FSDP_ATTRIBUTES = {"_has_been_cloned": bool}
# Objects of these names hold a run's settings. They are read as their values, whichever module they come from.
_CONFIG_ENDINGS = tuple("Config Args Arguments AttributeDict HParams Namespace Options Params Settings".split())
# What training scripts save beside the weights (states of random generators, versions, paths): read as nothing.
_BESIDE = frozenset(
    """_codecs.encode builtins.complex builtins.set collections.Counter collections.defaultdict
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray.scalar numpy.ndarray numpy.dtype pathlib.Path pathlib.PosixPath pathlib.PurePosixPath
    pathlib.WindowsPath pathlib.PureWindowsPath torch.torch_version.TorchVersion typing.Any""".split()
)
_STORAGE_TYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class PickleRefused(Exception):
    """A pickle that holds something other than weights and settings."""


class Storage(NamedTuple):
    """Numbers that tensors share; `key` names them in the file."""

    dtype: torch.dtype
    key: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class TensorRecord(NamedTuple):
    """A tensor as its pickle describes it; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """Elements of the storage up to the last one that the tensor reads."""
        if 0 in self.shape:
            return self.offset
        return self.offset + 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))


class PickledConfig(dict[Any, Any]):
    """Stands in for an object that holds settings: keeps its values and does nothing."""

    attributes: object = None

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.attributes = state

    @property
    def settings(self) -> object:
        """The object's attributes, or its items where it was a dictionary."""
        return dict(self) if self else self.attributes


class _Nothing:
    """Stands in for an object that is neither weights nor settings."""

    def __new__(cls, *_: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Ordered(collections.OrderedDict[Any, Any]):
    """An ordered dictionary without the attributes that a pickle may give it (a state dict's `_metadata`)."""

    def __setstate__(self, state: object) -> None:
        pass


class _StandIn:
    """What a name of a pickle resolves to; a pickle can call it and cannot change it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def _tensor_v2(
    storage: object, offset: object, shape: object, stride: object, gradient: object, hooks: object, bits: object = None
) -> TensorRecord:
    return _tensor(storage, offset, shape, stride, bits, None)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    gradient: object,
    hooks: object,
    dtype: object,
    bits: object = None,
) -> TensorRecord:
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a type")
    return _tensor(storage, offset, shape, stride, bits, dtype)


def _tensor(
    storage: object, offset: object, shape: object, stride: object, bits: object, dtype: torch.dtype | None
) -> TensorRecord:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor without numbers")
    if bits:  # conjugated or negated: its numbers are not those in the file
        raise PickleRefused(f"holds a lazily conjugated or negated tensor; {RESAVE}")
    sizes, steps = _counts(shape), _counts(stride)
    if len(sizes) != len(steps):
        raise ValueError("a tensor whose shape and strides differ in length")
    return TensorRecord(storage, dtype or storage.dtype, offset, sizes, steps)


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int or not 0 <= value < 1 << 63 for value in values):
        raise ValueError("a tensor whose shape or strides are no counts")
    return tuple(values)


def _parameter(data: object, gradient: object, hooks: object) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter that holds no tensor")
    return data


def _marked_tensor(rebuild: object, kind: object, arguments: object, attributes: object) -> TensorRecord:
    """A tensor with attributes, which must be those that FSDP sets; they are dropped."""
    if rebuild not in (_TENSOR_V2, _TENSOR_V3, _PARAMETER) or kind is not _TENSOR_TYPE:
        raise PickleRefused(f"holds a tensor of a class that is not torch's own; {RESAVE}")
    marks = attributes or {}
    if type(marks) is not dict or any(type(value) is not _FSDP_ATTRIBUTES.get(name) for name, value in marks.items()):
        raise PickleRefused(f"holds a tensor with attributes other than those that FSDP sets; {RESAVE}")
    record: TensorRecord = rebuild(*arguments)  # type: ignore[misc]  # one of ours
    return record


def _no_place(*_: object) -> None:
    """Where a tensor was does not matter."""


_TENSOR_V2, _TENSOR_V3, _PARAMETER = _StandIn(_tensor_v2), _StandIn(_tensor_v3), _StandIn(_parameter)
_TENSOR_TYPE = _StandIn(_no_place)
_STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": _StandIn(_Ordered),
    "torch.Size": _StandIn(lambda sizes=(): _counts(tuple(sizes))),
    "torch.Tensor": _TENSOR_TYPE,
    "torch._tensor._rebuild_from_type_v2": _StandIn(_marked_tensor),
    "torch._utils._rebuild_parameter": _PARAMETER,
    "torch._utils._rebuild_tensor_v2": _TENSOR_V2,
    "torch._utils._rebuild_tensor_v3": _TENSOR_V3,
    "torch.device": _StandIn(_no_place),
    "torch.nn.parameter.Parameter": _TENSOR_TYPE,
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{name}": dtype for name, dtype in _STORAGE_TYPES.items()},
}


def read_pickle(stream: IO[bytes]) -> Any:
    """What the pickle that begins here holds, as data; the stream is left behind its end.

    Raises:
        PickleRefused: it names anything but weights and settings.
        Exception: it is damaged; of nearly any type.
    """
    start = stream.tell()
    _check_memo(stream)
    length = stream.tell() - start
    stream.seek(start)
    return _Interpreter(io.BytesIO(stream.read(length))).load()


class _Interpreter(pickle.Unpickler):
    """Resolves names to stand-ins and to nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        return _resolve(_global_name(module, name))

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(part is not None for part in view):
            raise ValueError("a storage that torch.save does not write today")
        if type(key) is not str or type(numel) is not int or not 0 <= numel < 1 << 60:
            raise ValueError("a storage without name or size")
        return Storage(dtype, key, numel)


def _resolve(name: str) -> Any:
    if name in _STAND_INS:
        return _STAND_INS[name]
    module, _, attribute = name.rpartition(".")
    stand_in = PickledConfig if attribute.endswith(_CONFIG_ENDINGS) else _Nothing if name in _BESIDE else None
    if stand_in is not None:
        return type(attribute, (stand_in,), {})  # new each time, for a pickle can set attributes of a class
    value = getattr(torch, attribute, None) if module == "torch" else None
    if isinstance(value, torch.dtype):
        return value
    raise PickleRefused(f"its pickle carries {name[:100]}, which is not weights; it was not run; {RESAVE}")


def _global_name(module: str, name: str) -> str:
    """Full name, with the Python 2 names that protocol 2 writes put right."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _check_memo(stream: IO[bytes]) -> None:
    """Refuse object numbers far past the pickle's length, for which the interpreter would reserve memory."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("BINPUT", "LONG_BINPUT", "PUT") and not 0 <= int(argument or 0) <= stream.tell() - start:
            raise PickleRefused(f"its pickle numbers objects that it does not have; {RESAVE}")
