"""What the model of a bundle is made of."""

from __future__ import annotations

from mythos_export.bundle import Bundle, BundleError
from reference_model.architecture import Architecture
from reference_model.open_mythos.config import ConfigError, MythosConfig
from reference_model.open_mythos.description import architecture

__all__ = ["architecture_of", "has_config"]

_CONFIG = "config.json"


def has_config(bundle: Bundle) -> bool:
    """Does it say what its model is made of?"""
    return _CONFIG in bundle.manifest.files


def architecture_of(bundle: Bundle) -> Architecture:
    """The description of a bundle's model, from its config.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    try:
        return architecture(MythosConfig.from_file(bundle.file(_CONFIG)))
    except ConfigError as error:
        raise BundleError(f"{error}; export the bundle again") from error
