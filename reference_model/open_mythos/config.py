"""The hyperparameters of an OpenMythos model, and the seven published scales.

Field names, defaults and numbers are those of `open_mythos.main.MythosConfig` and
`open_mythos.variants` (open-mythos 0.5.0), so a `config.json` travels both ways.
This file imports no torch: the command line reads it before anything heavy is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from reference_model.config_fields import problem_of, without_foreign_fields
from reference_model.open_mythos import nano

__all__ = ["SCALES", "ConfigError", "MythosConfig", "config_for_scale", "read_json_object"]

_MAX_CONFIG_BYTES = 1 << 20
_MAX_COUNT = 1 << 31
_MAX_LAYERS = 1024
_MAX_EXPERTS = 1 << 14


class ConfigError(ValueError):
    """A configuration that no OpenMythos model can have; the message names the field."""


@dataclass(frozen=True)
class MythosConfig:
    """Hyperparameters of one model (source: `open_mythos.main.MythosConfig`).

    Raises:
        ConfigError: a field has the wrong type, is out of range, or contradicts another.
    """

    vocab_size: int = 32000
    dim: int = 2048
    n_heads: int = 16
    n_kv_heads: int = 4  # GQA only
    max_seq_len: int = 4096
    max_loop_iters: int = 16  # rows of the depth-LoRA table; deeper loops reuse its last row
    prelude_layers: int = 2
    coda_layers: int = 2
    attn_type: str = "mla"  # "mla" | "gqa"
    kv_lora_rank: int = 512  # MLA: width of the cached latent
    q_lora_rank: int = 1536  # MLA
    qk_rope_head_dim: int = 64  # MLA: rotated dims per head
    qk_nope_head_dim: int = 128  # MLA: position-free dims per head
    v_head_dim: int = 128  # MLA
    n_experts: int = 64
    n_shared_experts: int = 2
    n_experts_per_tok: int = 4
    expert_dim: int = 512  # hidden width of one routed expert
    act_threshold: float = 0.99
    rope_theta: float = 500000.0
    lora_rank: int = 16
    max_output_tokens: int = 4096
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name))
        self._check_ranges()
        self._check_fit()

    @property
    def head_dim(self) -> int:
        """Width of one GQA head."""
        return self.dim // self.n_heads

    @property
    def rope_dim(self) -> int:
        """Number of dims per head that RoPE rotates."""
        return self.qk_rope_head_dim if self.attn_type == "mla" else self.head_dim

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the dense feed-forward in prelude and coda."""
        return self.dim * 4 // 3

    @property
    def shared_expert_dim(self) -> int:
        """Hidden width of one shared expert."""
        return self.expert_dim * self.n_experts_per_tok

    @property
    def loop_dim(self) -> int:
        """Leading channels that receive the sinusoidal loop-index signal."""
        return self.dim // 8

    def with_attention(self, attn_type: str) -> MythosConfig:
        """The same model with the other attention."""
        return replace(self, attn_type=attn_type)

    def to_json(self) -> str:
        """`config.json`, in open-mythos' own field names."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MythosConfig:
        """Build from a mapping; absent fields take open-mythos' defaults, those of other tools are passed over.

        Raises:
            ConfigError: an unknown field, or a value that the class refuses.
        """
        if (problem := problem_of(values)) is not None:
            raise ConfigError(problem)
        own = without_foreign_fields(values)
        if values and not own:
            raise ConfigError("holds no field of open-mythos, so another tool's")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(own) - known)
        if unknown:
            raise ConfigError(
                f"unknown config field {unknown[0][:80]!r}, which could change the model; if it does not, remove it "
                f"or name a config without it by --config. Known: {', '.join(sorted(known))}"
            )
        return cls(**own)

    @classmethod
    def from_file(cls, path: Path) -> MythosConfig:
        """Read a `config.json`.

        Raises:
            ConfigError: the file is missing, too large, not a JSON object, or not a valid config.
        """
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def _check_ranges(self) -> None:
        at_least_one = set(_INTS) - {"prelude_layers", "coda_layers", "n_shared_experts"}
        for name in _INTS:
            low = 1 if name in at_least_one else 0
            high = _LIMITS.get(name, _MAX_COUNT)
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must lie in {low}..{high}")
        if self.attn_type not in ("mla", "gqa"):
            raise ConfigError(f"attn_type is {self.attn_type!r}; it must be 'mla' or 'gqa'")
        if not 0 < self.act_threshold <= 1:
            raise ConfigError(f"act_threshold is {self.act_threshold}; it must lie in (0, 1]")
        if not 1 <= self.rope_theta < 1e12:
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must lie in [1, 1e12)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must lie in [0, 1)")

    def _check_fit(self) -> None:
        if self.dim % self.n_heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise ConfigError(
                f"head dim {self.head_dim} (dim / n_heads) is odd; RoPE rotates pairs, so it must be even"
            )
        if self.attn_type == "mla" and self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; RoPE rotates pairs, so it must be even"
            )
        if self.attn_type == "gqa" and self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.n_experts_per_tok > self.n_experts:
            raise ConfigError(f"n_experts_per_tok {self.n_experts_per_tok} (top-k) exceeds n_experts {self.n_experts}")


def read_json_object(path: Path) -> dict[str, Any]:
    """What a `config.json` holds, its fields unchecked.

    Raises:
        ConfigError: the file is missing, too large, or not a JSON object.
    """
    try:
        if not path.is_file() and path.exists():
            raise ConfigError(f"{path}: cannot be read (not a regular file)")
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB, so not a model config")
        values = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid JSON ({_one_line(error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object of config fields, got {type(values).__name__}")
    return values


_INTS = tuple(field.name for field in fields(MythosConfig) if field.type == "int")
_FLOATS = tuple(field.name for field in fields(MythosConfig) if field.type == "float")
_LIMITS = {
    "prelude_layers": _MAX_LAYERS,
    "coda_layers": _MAX_LAYERS,
    "n_experts": _MAX_EXPERTS,
    "n_shared_experts": _MAX_LAYERS,
    "max_loop_iters": 1 << 20,
}


def _check_type(name: str, value: object) -> None:
    if name in _INTS and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{name} is {value!r}; it must be an integer")
    if name in _FLOATS and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ConfigError(f"{name} is {value!r}; it must be a number")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# Columns that differ between the scales; everything else is the default above.
_COLUMNS = (
    "vocab_size dim n_heads n_kv_heads max_seq_len max_loop_iters prelude_layers coda_layers "
    "kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim "
    "n_experts n_shared_experts n_experts_per_tok expert_dim rope_theta lora_rank max_output_tokens"
).split()
_ROWS: dict[str, tuple[float, ...]] = {
    "1b": (32000, 2048, 16, 4, 4096, 16, 2, 2, 256, 512, 32, 64, 64, 64, 2, 4, 2048, 5e5, 8, 4096),
    "3b": (32000, 3072, 24, 6, 4096, 16, 2, 2, 384, 768, 32, 96, 96, 64, 2, 4, 4096, 5e5, 8, 4096),
    "10b": (32000, 4096, 32, 8, 8192, 24, 2, 2, 512, 1024, 64, 128, 128, 128, 2, 4, 5632, 5e5, 16, 4096),
    "50b": (32000, 6144, 48, 8, 8192, 32, 3, 3, 512, 1536, 64, 128, 128, 256, 4, 4, 9728, 5e5, 32, 4096),
    "100b": (32000, 8192, 64, 8, 1000000, 32, 4, 4, 512, 2048, 64, 128, 128, 256, 4, 8, 13568, 1e6, 64, 131072),
    "500b": (100000, 12288, 96, 16, 1000000, 48, 4, 4, 1024, 3072, 64, 128, 128, 512, 8, 8, 23040, 1e6, 128, 131072),
    "1t": (100000, 16384, 128, 16, 1000000, 64, 6, 6, 1024, 4096, 64, 128, 128, 512, 8, 8, 34560, 2e6, 256, 131072),
}
SCALES: dict[str, MythosConfig] = {name: MythosConfig(**dict(zip(_COLUMNS, row))) for name, row in _ROWS.items()}  # type: ignore[arg-type]


def config_for_scale(scale: str) -> MythosConfig:
    """The configuration of one scale: a published one, or `nano`, whose weights ship here.

    Raises:
        ConfigError: no such scale.
    """
    if scale == "nano":
        return MythosConfig.from_file(nano.CONFIG)
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}; known: nano, {', '.join(SCALES)}")
    return SCALES[scale]
