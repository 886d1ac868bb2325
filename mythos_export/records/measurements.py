"""What is measured after an export, and put into its bundle with the report: accuracy on a task, and latency.

`accuracy.json` is what `mythos-export evaluate --json` prints. `latency.json` has the fields of `Latency`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from mythos_export.bundle import Bundle
from mythos_export.records.files import InputFileError, read_model

__all__ = ["ACCURACY", "LATENCY", "Evaluation", "Latency", "Measured", "Score", "read_measurement", "stored"]

ACCURACY, LATENCY = "accuracy.json", "latency.json"  # their names in a bundle
_MOST_BYTES = 4 << 20

Loops = Annotated[int, Field(ge=1, le=1 << 20)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Milliseconds = Annotated[FiniteFloat, Field(gt=0, le=1e9)]
Text = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Score(_Strict):
    """Accuracy at one number of hops and one loop count, with its 95 % confidence interval."""

    hops: Annotated[int, Field(ge=1, le=1000)]
    loops: Loops
    correct: Count
    total: Annotated[int, Field(ge=1, le=1 << 40)]
    low: Share
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


class Evaluation(_Strict):
    """All scores of a bundle on nano's task, and PyTorch's where it was asked the same."""

    precision: Text
    prompts: Count
    trained_hops: Count
    loops: list[Loops] = Field(min_length=1, max_length=256)
    scores: list[Score] = Field(min_length=1, max_length=4096)
    reference: list[Score] = Field(max_length=4096)
    differing: Count | None  # answers, over all loop counts, that are not PyTorch's; None if it was not asked

    @model_validator(mode="after")
    def _once(self) -> Evaluation:
        _check_once("loops", self.loops)
        for name, scores in (("scores", self.scores), ("reference", self.reference)):
            _check_once(name, [(score.hops, score.loops) for score in scores])
        return self

    def points_lost(self) -> dict[int, float]:
        """By loop count: PyTorch's accuracy less the bundle's, in points, over the hops it was trained on."""
        own = {(score.hops, score.loops): score for score in self.scores}
        lost = {}
        for loops in self.loops:
            pairs = [
                (theirs, own[theirs.hops, loops])
                for theirs in self.reference
                if theirs.loops == loops and theirs.hops <= self.trained_hops and (theirs.hops, loops) in own
            ]
            if pairs:
                right = sum(theirs.correct - ours.correct for theirs, ours in pairs)
                lost[loops] = 100 * right / sum(theirs.total for theirs, _ in pairs)
        return lost


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

    @property
    def setting(self) -> str:
        """All that it was measured with, but the loop count."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.threads else ""
        return f"{self.runtime}, past {self.past}{batch}{threads}"


class Latency(_Strict):
    """Decode latency on one machine."""

    format_version: Literal[1] = 1
    precision: Text
    machine: Text  # "Jetson Orin Nano 8 GB, 15 W"
    measured: Text  # the day: "2026-11-22"
    measurements: list[Measured] = Field(min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _once(self) -> Latency:
        _check_once("measurements", [(each.setting, each.loops) for each in self.measurements])
        return self


def _check_once(name: str, keys: Sequence[object]) -> None:
    """Of two values for one point a picture could only draw one."""
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{name}: {str(key)[:120]} is there twice")
        seen.add(key)


Kind = TypeVar("Kind", Evaluation, Latency)

_FILES: dict[type[BaseModel], str] = {Evaluation: ACCURACY, Latency: LATENCY}
_REMEDIES: dict[type[BaseModel], str] = {
    Evaluation: "mythos-export evaluate BUNDLE --json writes one",
    Latency: "docs/report.md says what it holds",
}


def read_measurement(kind: type[Kind], path: Path, bundle: Bundle) -> Kind:
    """Read a file of measurements of a bundle.

    Raises:
        InputFileError: it is none, or of another precision than the bundle.
    """
    values = read_model(kind, path, _REMEDIES[kind], most=_MOST_BYTES)
    if values.precision != bundle.manifest.precision:
        raise InputFileError(
            f"{path}: measured in {values.precision}, but {bundle.path} is {bundle.manifest.precision}; "
            "measure this bundle"
        )
    return values


def stored(kind: type[Kind], bundle: Bundle) -> Kind | None:
    """The measurements that a bundle holds already.

    Raises:
        InputFileError: they are damaged.
    """
    name = _FILES[kind]
    return read_measurement(kind, bundle.file(name), bundle) if name in bundle.manifest.files else None
