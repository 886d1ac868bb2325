"""The machines a plan knows, and a user's own from a file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from mythos_export.capabilities import LEAST_CAPABILITY

__all__ = ["Device", "DeviceError", "Rates", "find_device", "kernels", "known_devices", "rate_of"]

_FILE = Path(__file__).with_name("devices.json")
_MAX_BYTES = 1 << 16
# ONNX Runtime has kernels for these; the rest it computes in fp32, after dequantising. bf16 of `portable` is a way to
# store weights: its graph itself multiplies in fp32.
_ONNX_RUNTIME = {
    ("cpu", "portable"): frozenset({"fp32", "int8"}),
    ("cpu", "onnxruntime"): frozenset({"fp32", "int8", "int4"}),
    ("gpu", "portable"): frozenset({"fp32", "fp16"}),
    ("gpu", "onnxruntime"): frozenset({"fp32"}),
}

_TF32 = (8, 0)  # the first compute capability that has it


def _number(value: Any) -> Any:
    """Neither `true` nor `"68e9"` is one; 8e9 is a fine number of bytes."""
    if isinstance(value, (bool, str)):
        raise ValueError("Input should be a number")
    return value


Rate = Annotated[FiniteFloat, BeforeValidator(_number), Field(ge=1, le=1e21)]
Bytes = Annotated[int, BeforeValidator(_number)]


class DeviceError(ValueError):
    """No such device, or a file that describes none."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Strict):
    """Operations a second, dense (a multiply-add is two), by arithmetic; None where nobody states one."""

    fp32: Rate | None = None
    tf32: Rate | None = None  # what GPUs multiply fp32 in unless told otherwise
    fp16: Rate | None = None
    bf16: Rate | None = None
    int8: Rate | None = None
    fp8: Rate | None = None


class Device(_Strict):
    """What a plan must know of a machine."""

    label: str = Field(min_length=1, max_length=80)
    kind: Literal["cpu", "gpu"]
    compute_capability: str | None = Field(default=None, pattern=r"^[0-9]{1,2}\.[0-9]$")  # of a GPU
    memory_bytes: Bytes = Field(gt=0, le=1 << 60)
    reserved_bytes: Bytes = Field(default=0, ge=0, le=1 << 60)  # what the system and the runtime keep: an allowance
    bandwidth: Rate | None = None  # bytes a second, from that memory
    rates: Rates = Rates()
    last_level_cache_bytes: Bytes | None = Field(default=None, gt=0, le=1 << 50)
    sources: list[str] = Field(default_factory=list)
    note: str = ""

    @field_validator("label")
    @classmethod
    def _printable(cls, label: str) -> str:
        if not label.isprintable():
            raise ValueError("has a character that cannot be printed")
        return label

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability, to be compared."""
        if self.compute_capability is None:
            return None
        major, minor = map(int, self.compute_capability.split("."))
        return major, minor


def known_devices() -> dict[str, Device]:
    """Every device of the data file, by name."""
    values = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Device.model_validate(value) for name, value in values.items()}


def find_device(name: str) -> Device:
    """A device by its name, or by the path of a JSON file with the same fields.

    Raises:
        DeviceError: there is none, or the file does not describe one.
    """
    known = known_devices()
    if name in known:
        return known[name]
    if not name.endswith(".json"):
        raise DeviceError(f"unknown device {name[:80]!r}; known: {', '.join(known)}; or give a FILE.json of your own")
    return _from_file(Path(name))


def _from_file(path: Path) -> Device:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DeviceError(f"{path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _MAX_BYTES:
        raise DeviceError(f"{path}: larger than 64 KiB, so not a device")
    try:
        device = Device.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where[:80]}: {first['msg'][:160]}".lstrip(": ")  # of a file that is no JSON there is no field
        raise DeviceError(f"{path}: {what}; fields are described in docs/planning.md") from error
    if device.kind == "gpu" and device.compute_capability is None:
        raise DeviceError(f"{path}: compute_capability is missing; a GPU has one, such as 8.7")
    return device


def rate_of(device: Device, arithmetic: str) -> float | None:
    """Operations a second, if they are known; fp32 on a GPU with TF32 means the faster of its two ways."""
    rates = device.rates
    if arithmetic == "fp32" and device.capability is not None and device.capability >= _TF32:
        return None if rates.fp32 is None or rates.tf32 is None else max(rates.fp32, rates.tf32)
    found: float | None = getattr(rates, arithmetic)
    return found


def kernels(device: Device, target: str, precision: str) -> bool:
    """Does a runtime of this target multiply in that precision on this device?"""
    if target != "tensorrt":
        return precision in _ONNX_RUNTIME[device.kind, target]
    if device.kind != "gpu" or device.capability is None:
        return False
    return device.capability >= LEAST_CAPABILITY.get(precision, (0, 0))
