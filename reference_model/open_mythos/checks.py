"""What must hold of OpenMythos' weights before they are exported."""

from __future__ import annotations

from reference_model.weight_source import CheckpointError, WeightSource

__all__ = ["checks"]


def checks(source: WeightSource) -> dict[str, float]:
    """Measures of a checkpoint, for the manifest.

    `spectral_radius` is the largest |A| of the injection (upstream: `LTIInjection.get_A`); the loop is stable below 1.

    Raises:
        CheckpointError: it is not below 1, or not a number.
    """
    log_a = source.read("recurrent.injection.log_A").float()
    log_dt = source.read("recurrent.injection.log_dt").float()
    radius = float((-(log_dt + log_a).clamp(-20, 20).exp()).exp().max())
    if not radius < 1:
        raise CheckpointError(f"spectral radius of the injection is {radius}; it must be below 1, or the loop diverges")
    return {"spectral_radius": radius}
