"""One file that `torch.save` wrote, of either format: its object as data, its numbers mapped, not read."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from reference_model.restricted_pickle import RESAVE, PickleRefused, Storage, TensorRecord, read_pickle
from reference_model.weight_source import CheckpointError, reading

__all__ = ["TorchFile"]

_MAX_PICKLE_BYTES = 64 << 20  # a pickle holds names and shapes only; numbers lie beside it
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: lengths of its name and of its extra field
# Before torch 1.6: four pickles (magic number, protocol, system, the object), the storages' keys, then their numbers.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_COUNT = struct.Struct("<q")


class TorchFile:
    """A file of `torch.save`.

    Args:
        path: the file.

    Raises:
        CheckpointError: damaged, or it carries something that is neither weights nor settings; one line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapping: Any = None  # a torch.UntypedStorage of the whole file
        with reading(path), path.open("rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            zipped = zipfile.is_zipfile(file)
            file.seek(0)
            try:
                self.saved, self._places = _read_zip(file) if zipped else _read_legacy(file)
            except PickleRefused as error:
                raise CheckpointError(f"{path}: {error}") from error

    def tensor(self, record: TensorRecord) -> Tensor:
        """A tensor, mapped from the file; it must not be written to.

        Raises:
            CheckpointError: the file does not hold its numbers.
        """
        with reading(self.path):
            start, length = self._range(record)
            if not length:
                return torch.empty(record.shape, dtype=record.dtype)
            if self._mapping is None:
                self._mapping = torch.UntypedStorage.from_file(os.fspath(self.path), False, self._size)
            numbers = self._mapping[start : start + length]
            return torch.empty(0, dtype=record.dtype).set_(numbers, record.offset, record.shape, record.stride)

    def unmap(self) -> None:
        """Let go of the mapping: what was read so far lives only as long as its tensors."""
        self._mapping = None

    def check(self, record: TensorRecord) -> None:
        """Whether the file holds a tensor's numbers, without mapping it.

        Raises:
            CheckpointError: it does not.
        """
        with reading(self.path):
            self._range(record)

    def _range(self, record: TensorRecord) -> tuple[int, int]:
        """Where the numbers of a tensor's storage lie: first byte in the file, length."""
        storage = record.storage
        start, length = self._places.get(storage.key, (0, 0))
        if storage.nbytes > length or start + length > self._size:
            raise ValueError(f"its numbers {storage.key[:40]!r} are not all there")
        if record.end * record.dtype.itemsize > storage.nbytes:
            raise ValueError("a tensor reaches past its storage")
        return start, storage.nbytes


Places = dict[str, tuple[int, int]]  # key of a storage -> its first byte in the file, its length


def _read_zip(file: IO[bytes]) -> tuple[Any, Places]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError(f"{file.name}: its entries are compressed, so torch.save did not write it; {RESAVE}")
        if len(entries) != len(archive.infolist()):
            raise CheckpointError(f"{file.name}: two entries have one name; {RESAVE}")
        pickles = [name for name in entries if name.endswith("data.pkl")]
        if len(pickles) != 1:
            what = "without data.pkl" if not pickles else "with several data.pkl"
            raise CheckpointError(f"{file.name}: a zip file {what}, so torch.save did not write it; {RESAVE}")
        root = pickles[0].removesuffix("data.pkl")
        if entries[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{file.name}: its pickle is larger than 64 MiB; {RESAVE}")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise CheckpointError(f"{file.name}: written on a big-endian machine; {RESAVE} on a little-endian one")
        saved = read_pickle(io.BytesIO(archive.read(pickles[0])))
        data = f"{root}data/"
        places = {
            name.removeprefix(data): (_first_byte(file, entry), entry.file_size)
            for name, entry in entries.items()
            if name.startswith(data)
        }
    return saved, places


def _first_byte(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    return entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))


def _read_legacy(file: IO[bytes]) -> tuple[Any, Places]:
    magic, protocol, system, saved = (read_pickle(file) for _ in range(4))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError(f"{file.name}: a pickle that torch.save did not write; {RESAVE}")
    if system.get("little_endian") is not True:
        raise CheckpointError(f"{file.name}: written on a big-endian machine; {RESAVE} on a little-endian one")
    keys = read_pickle(file)
    sizes = {storage.key: storage for storage in _storages(saved)}
    places: Places = {}
    for key in keys:
        (count,) = _LEGACY_COUNT.unpack(file.read(_LEGACY_COUNT.size))
        if key not in sizes or count != sizes[key].numel:
            raise ValueError("storages that its tensors do not name")
        places[key] = (file.tell(), sizes[key].nbytes)
        file.seek(sizes[key].nbytes, os.SEEK_CUR)
    return saved, places


def _storages(saved: Any) -> list[Storage]:
    """The storages of all tensors, however deep."""
    waiting, storages, seen = [saved], [], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorRecord):
            storages.append(value.storage)
        elif isinstance(value, Storage):
            storages.append(value)
        elif id(value) not in seen and isinstance(value, (dict, list, tuple)):
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
    return storages
