"""The recipe: which activations are quantised, and the range of each at every depth.

It is neutral: no target's node or scale is in it, so one recipe serves every target, and it can be
read, edited and used again. It is also untrusted: whatever opens is complete and finite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from calibration.errors import CalibrationError
from mythos_export.records.files import read_model
from reference_model.architecture import LOOP, Architecture

__all__ = ["LARGEST_LIMIT", "RECIPE", "ActivationRange", "Method", "Ranges", "Recipe"]

RECIPE = "recipe.json"  # its name in a bundle
_SMALLEST, LARGEST_LIMIT = 1e-30, 1e30  # limits whose scale and its reciprocal are ordinary fp32 numbers

_DRIFT = 2.0  # from here on a range shared by all depths costs the narrowest of them more than a bit

Ranges = Literal["auto", "shared", "per-depth"]
Limit = Annotated[float, Field(ge=_SMALLEST, le=LARGEST_LIMIT)]
Method = Literal["minmax", "percentile", "entropy", "mse"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActivationRange(_Strict):
    """The range of one activation; each list has an entry per depth, or one where nothing loops."""

    feeds: list[str] = Field(min_length=1)  # linear layers that read it
    low: list[float] = Field(min_length=1)  # smallest value seen
    high: list[float] = Field(min_length=1)  # largest value seen
    limit: list[Limit] = Field(min_length=1)  # |x| beyond which it saturates, as the method chose

    @model_validator(mode="after")
    def _same_depths(self) -> ActivationRange:
        if not len(self.low) == len(self.high) == len(self.limit):
            raise ValueError("low, high and limit differ in length")
        return self

    @property
    def shared_limit(self) -> float:
        """One limit for all depths."""
        return max(self.limit)

    @property
    def drift(self) -> float:
        """How much wider the widest depth is than the narrowest."""
        return max(self.limit) / min(self.limit)


class Recipe(_Strict):
    """Outcome of a calibration."""

    format_version: Literal[1] = 1
    model: str  # sha256 of the config, so that a recipe is not used for another model
    precision: Literal["int8", "fp8"]  # entropy and mse look for the best limit of one number format
    method: Method
    depths: int = Field(ge=1, le=4096)  # loops that were calibrated
    samples: int = Field(ge=1)  # sequences seen
    tokens: int = Field(ge=1)
    data: str  # where they came from
    activations: dict[str, ActivationRange] = Field(min_length=1)

    @model_validator(mode="after")
    def _calibrated_depths(self) -> Recipe:
        for name, activation in self.activations.items():
            if len(activation.limit) not in (1, self.depths):
                raise ValueError(f"{name[:200]} has {len(activation.limit)} depths, expected 1 or {self.depths}")
        return self

    def check_depths(self, architecture: Architecture) -> None:
        """Make sure that an activation has its range at every depth where its layers loop, and only there.

        Raises:
            CalibrationError: it has not, or none of its layers is one of the model.
        """
        for name, activation in self.activations.items():
            stages = {architecture.stage_of.get(layer) for layer in activation.feeds}
            if None in stages:
                raise CalibrationError(f"the recipe's {name[:200]} feeds a layer that the model does not have")
            wanted = self.depths if stages == {LOOP} else 1
            if len(activation.limit) != wanted:
                raise CalibrationError(
                    f"the recipe's {name[:200]} has {len(activation.limit)} depths, expected {wanted}; calibrate again"
                )

    def limits(self, ranges: Ranges) -> dict[str, list[float]]:
        """Limit of each activation: one in all, or one per depth; `auto` decides by how far its depths differ."""
        return {name: self._limits(found, ranges) for name, found in self.activations.items()}

    @staticmethod
    def _limits(found: ActivationRange, ranges: Ranges) -> list[float]:
        by_depth = ranges == "per-depth" or (ranges == "auto" and found.drift > _DRIFT)
        return list(found.limit) if by_depth else [found.shared_limit]

    def to_json(self) -> str:
        """As it is saved."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            InputFileError: it is not one.
        """
        return read_model(cls, path, "calibrate again")
