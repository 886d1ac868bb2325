"""All that a report is made of, read from a bundle and checked."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.errors import CalibrationError
from calibration.recipe import RECIPE, Recipe
from mythos_export.bundle import Bundle, BundleError, Manifest
from mythos_export.html_report.measurements import Accuracy, Latency
from mythos_export.html_report.parity_file import Parity, read_parity
from mythos_export.inspection.inspect import Inspection, inspect

__all__ = ["Subject", "read_subject"]


@dataclass(frozen=True)
class Subject:
    """A bundle, and what was measured of it."""

    manifest: Manifest
    inspection: Inspection  # its graphs and weights
    parity: Parity | None
    recipe: Recipe | None
    accuracy: Accuracy | None
    latency: Latency | None

    @property
    def quantized(self) -> bool:
        """Does it say how it was quantised?"""
        return self.manifest.quantization is not None


def read_subject(bundle: Bundle, accuracy: Accuracy | None, latency: Latency | None) -> Subject:
    """Read a bundle.

    Raises:
        BundleError: a file of it is damaged.
    """
    try:
        recipe = Recipe.from_file(bundle.file(RECIPE)) if RECIPE in bundle.manifest.files else None
    except CalibrationError as error:
        raise BundleError(str(error)) from error
    return Subject(bundle.manifest, inspect(bundle), read_parity(bundle), recipe, accuracy, latency)
