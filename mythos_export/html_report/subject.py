"""All that a report is made of, read from a bundle and checked."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.recipe import RECIPE, Recipe
from mythos_export.bundle import Bundle, BundleError, Manifest
from mythos_export.inspection.inspect import Inspection, inspect
from mythos_export.records.files import read_model
from mythos_export.records.measurements import Evaluation, Latency
from mythos_export.records.parity import ParityReport, read_parity

__all__ = ["Subject", "read_subject"]


@dataclass(frozen=True)
class Subject:
    """A bundle, and what was measured of it."""

    manifest: Manifest
    inspection: Inspection  # its graphs and weights
    parity: ParityReport | None
    recipe: Recipe | None
    accuracy: Evaluation | None
    latency: Latency | None

    @property
    def quantized(self) -> bool:
        """Does it say how it was quantized?"""
        return self.manifest.quantization is not None


def read_subject(bundle: Bundle, accuracy: Evaluation | None, latency: Latency | None) -> Subject:
    """Read a bundle.

    Raises:
        BundleError: a file of it is damaged.
    """
    recipe = None
    if RECIPE in bundle.manifest.files:
        recipe = read_model(Recipe, bundle.file(RECIPE), "export the bundle again", failure=BundleError)
    return Subject(bundle.manifest, inspect(bundle), read_parity(bundle), recipe, accuracy, latency)
