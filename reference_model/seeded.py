"""Random weights from a seed, made one tensor at a time, for any scale.

Plain N(0, 0.02) weights make a model in which nothing happens: the router is indifferent and every token
halts at the same loop, so a wrong graph passes every comparison. These are as random, but eventful: experts
are chosen with clear and with narrow margins, tokens halt at many depths and some never, and hidden states
stay of order 1 however deep the loop.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes
from reference_model.weight_source import CheckpointError

__all__ = ["SeededWeights"]

# Measured on both attentions: the mixture and attention are each 0.3 to 0.8 of the hidden state they add to, so
# that a swapped expert or a misplaced cache row shows; yet fp32 stays within 1e-6 of fp64 at 32 loops.
_FEED_FORWARD_GAIN = 1.0
_QUERY_KEY_GAIN = 1.2  # attention scores of about 1.4: neither uniform nor one-hot
_VALUE_OUTPUT_GAIN = 0.8
_LORA_GAIN = 0.2  # size of the depth LoRA's update relative to what it updates
_LOGIT_STD = 2.0  # of the vocabulary's logits
_ROUTER_STD = 1.5  # of the router's logits, before the bias
_HALT_STD = 0.3  # of the halting logit, for hidden states of size 1; after some loops they have size 4


class SeededWeights:
    """A `WeightSource` of random fp32 weights.

    Each tensor depends on the seed and its own name only, so that any one can be made alone, in any order.
    The same numpy gives the same values; numpy does not promise that of every other version.
    """

    def __init__(self, config: MythosConfig, seed: int) -> None:
        self.config: MythosConfig | None = config
        self.config_problem: str | None = None
        self.wrappers: tuple[str, ...] = ()
        self.seed = seed
        self._shapes = parameter_shapes(config)

    def names(self) -> frozenset[str]:
        """Names of all tensors of the config."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        if name not in self._shapes:
            raise CheckpointError(f"the config has no tensor {name!r}")
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Always fp32."""
        return torch.float32

    def read(self, name: str) -> Tensor:
        """Make one tensor.

        Raises:
            CheckpointError: the config has no tensor of this name.
        """
        shape = self.shape(name)
        mean, std = _distribution(name, shape)
        values = self._generator(name).standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        if mean:
            values += np.float32(mean)
        return torch.from_numpy(values)

    def rope_table(self, attn_type: str) -> None:
        """None: it is computed from the config."""

    def describe(self) -> dict[str, Any]:
        """Kind and seed."""
        return {"kind": "seed", "seed": self.seed}

    def _generator(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "big")))


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of one tensor."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.endswith("norm.weight") and name != "norm.weight":
        return 1.0, 0.1
    return 0.0, _gain(name) * _fan_in(name, shape) ** -0.5


def _gain(name: str) -> float:
    """Size of the output for input of size 1."""
    if name.endswith(("gate.weight", "up.weight")) or (".ffn." in name and name.endswith("down.weight")):
        return _FEED_FORWARD_GAIN
    return next((gain for ending, gain in _GAINS.items() if name.endswith(ending)), _QUERY_KEY_GAIN)


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if name == "embed.weight":  # as large as what the loop makes of it, or all tokens become alike there
        return 1
    return shape[0] if name == "recurrent.lora.B" else shape[-1]  # B [rank, dim] is applied transposed


_GAINS = {
    "wv.weight": _VALUE_OUTPUT_GAIN,
    "wo.weight": _VALUE_OUTPUT_GAIN,
    "router.weight": _ROUTER_STD,
    "act.halt.weight": _HALT_STD,
    "lora.down.weight": 1.0,
    "lora.B": _LORA_GAIN,
    "embed.weight": 1.0,
    # Of both signs: the head is the embedding, so positive gains would only say the last token again.
    "norm.weight": _LOGIT_STD,
}
_BY_NAME = {
    "recurrent.block.ffn.router_bias": (0.0, 0.5),
    "recurrent.lora.scale.weight": (0.0, 1.0),
    "recurrent.injection.log_A": (0.0, 0.3),
    "recurrent.injection.log_dt": (-0.5, 0.1),
    "recurrent.injection.B": (0.1, 0.02),
    "recurrent.act.halt.bias": (-1.7, 0.1),
}
