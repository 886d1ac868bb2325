"""OpenMythos in plain PyTorch: small, readable, and the oracle of every export.

`config` imports no torch, so it can be read before anything heavy is loaded; import the model from
`reference_model.model`.
"""

from reference_model.open_mythos.config import SCALES, ConfigError, MythosConfig, config_for_scale

__all__ = ["SCALES", "ConfigError", "MythosConfig", "config_for_scale"]
