"""What was measured after an export, and put into its bundle with the report: accuracy on a task, and latency.

`accuracy.json` is what `mythos-export evaluate --json` prints. `latency.json` has the fields of `Latency`.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from mythos_export.bundle import Bundle

__all__ = ["ACCURACY", "LATENCY", "Accuracy", "Latency", "Measured", "MeasurementError", "read_measurement", "stored"]

ACCURACY, LATENCY = "accuracy.json", "latency.json"  # their names in a bundle
_MAX_BYTES = 4 << 20

Loops = Annotated[int, Field(ge=1, le=1 << 20)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Milliseconds = Annotated[FiniteFloat, Field(gt=0, le=1e9)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class MeasurementError(ValueError):
    """A file of measurements that cannot be used; one line."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Score(_Strict):
    """Right answers at one number of hops and one loop count."""

    hops: Annotated[int, Field(ge=1, le=1000)]
    loops: Loops
    correct: Count
    total: Annotated[int, Field(ge=1, le=1 << 40)]
    low: Share  # of the 95 % interval
    high: Share

    @model_validator(mode="after")
    def _possible(self) -> Score:
        if self.correct > self.total:
            raise ValueError("more right answers than prompts")
        if self.low > self.high:
            raise ValueError("the interval ends before it begins")
        return self

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.total


class Accuracy(_Strict):
    """Accuracy on nano's task, and PyTorch's where it was asked the same."""

    precision: Text
    prompts: Count
    trained_hops: Count
    loops: list[Loops] = Field(min_length=1, max_length=64)
    scores: list[Score] = Field(min_length=1, max_length=4096)
    reference: list[Score] = Field(max_length=4096)
    differing: Count | None

    @model_validator(mode="after")
    def _once(self) -> Accuracy:
        _check_once("loops", self.loops)
        for name, scores in (("scores", self.scores), ("reference", self.reference)):
            _check_once(name, [(score.hops, score.loops) for score in scores])
        return self


class Measured(_Strict):
    """Time that one more token takes, on one runtime at one loop count."""

    runtime: Text  # with its version: "onnxruntime 1.31.1"
    loops: Loops
    past: Count  # tokens in the cache
    ms_per_token: Milliseconds  # the median
    low_ms: Milliseconds | None = None  # of the 95 % interval
    high_ms: Milliseconds | None = None
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    threads: Annotated[int, Field(ge=1, le=1 << 16)] | None = None  # None on a GPU

    @model_validator(mode="after")
    def _possible(self) -> Measured:
        low, high = self.low_ms, self.high_ms
        if (low is None) != (high is None):
            raise ValueError("an interval has two ends: low_ms and high_ms")
        if low is not None and high is not None and low > high:
            raise ValueError("the interval ends before it begins")
        return self


class Latency(_Strict):
    """Decode latency on one machine."""

    format_version: Literal[1] = 1
    precision: Text
    machine: Text  # "Jetson Orin Nano 8 GB, 15 W"
    measured: Text  # the day: "2026-11-22"
    measurements: list[Measured] = Field(min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _once(self) -> Latency:
        _check_once(
            "measurements",
            [(each.runtime, each.past, each.batch, each.threads, each.loops) for each in self.measurements],
        )
        return self


def _check_once(name: str, keys: Sequence[object]) -> None:
    """Of two values for one point a picture could only draw one."""
    if len(set(keys)) < len(keys):
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"{name}: {str(twice)[:120]} is there twice")


Kind = TypeVar("Kind", Accuracy, Latency)


def read_measurement(kind: type[Kind], path: Path, bundle: Bundle) -> Kind:
    """Read a file of measurements of a bundle.

    Raises:
        MeasurementError: it is none, or of another precision than the bundle.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise MeasurementError(f"{path}: not a file of measurements")
        values = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MeasurementError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where[:200]}: {first['msg'][:200]}".lstrip(": ")
        raise MeasurementError(f"{path}: not a usable file of measurements ({what}); {_MADE_BY[kind]}") from error
    if values.precision != bundle.manifest.precision:
        raise MeasurementError(
            f"{path}: measured in {values.precision}, but {bundle.path} is {bundle.manifest.precision}; "
            "measure this bundle"
        )
    return values


def stored(kind: type[Kind], bundle: Bundle) -> Kind | None:
    """The measurements that a bundle holds already.

    Raises:
        MeasurementError: they are damaged.
    """
    name = FILES[kind]
    return read_measurement(kind, bundle.file(name), bundle) if name in bundle.manifest.files else None


FILES: dict[type[BaseModel], str] = {Accuracy: ACCURACY, Latency: LATENCY}
_MADE_BY: dict[type[BaseModel], str] = {
    Accuracy: "mythos-export evaluate BUNDLE --json writes one",
    Latency: "docs/report.md says what it holds",
}
