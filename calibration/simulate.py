"""The reference model computing what a quantised graph computes: the same rounding at the same places.

It is the oracle of quantised bundles, and the instrument of the sensitivity search: weights are those a
bundle stands for, and every quantised activation is rounded as QuantizeLinear and DequantizeLinear do, or
as a kernel does that rounds each block of it as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mythos_export.linears import always_float, layer_of
from mythos_export.number_formats import NumberFormat
from mythos_export.quantization import Choices, Quantization
from reference_model.components.component import Linear, use_ops
from reference_model.open_mythos.model import MythosModel
from reference_model.ops import Rows, TorchOps

__all__ = ["RoundedOps", "points_of_layers", "round_blocks", "round_to", "simulate"]


def points_of_layers(feeds: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """From a recipe's `feeds`: the activation that each layer reads."""
    return {layer: point for point, layers in feeds.items() for layer in layers}


def round_to(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Nearest number of the format, ties to even, saturating; any shape."""
    kept = x.clamp(number_format.smallest, number_format.largest)
    if number_format.name == "fp8":
        return kept.to(torch.float8_e4m3fn).to(torch.float32)
    return kept.round()


def round_blocks(x: Tensor, block: int) -> Tensor:
    """Nearest of 255 numbers spaced evenly over ±the largest of each block: x [..., n], blocks along the last axis.

    As ONNX Runtime's int4 kernels round activations at accuracy level 4: x * (127 / largest) to the nearest
    integer, ties to even, times largest / 127. The last block may be shorter; a block of zeros stays zero,
    and one of numbers below 1e-36 becomes zero.
    """
    size = x.shape[-1]
    blocks = F.pad(x, (0, -size % block)).unflatten(-1, (-1, block))  # [..., blocks, block]
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    factor = 127 / largest
    levels = (blocks * torch.where(factor.isinf(), 0.0, factor)).round()
    return (levels * (largest / 127)).flatten(-2)[..., :size]


def simulate(
    model: MythosModel,
    quantization: Quantization,
    choices: Choices,
    feeds: Mapping[str, Sequence[str]],
    head: Tensor,
) -> MythosModel:
    """Let a reference model compute as a graph quantized with these choices; returns the model.

    Args:
        model: with the weights that the bundle's stand for; the embedding's with those of its table.
        choices: layers that the target leaves in float are among those to keep (`targets.settled`).
        feeds: by activation, the layers that read it; read only where ranges were calibrated.
        head: weight of the output head, [vocab, dim].
    """
    return use_ops(model, RoundedOps(quantization, choices, points_of_layers(feeds), head))


class RoundedOps(TorchOps):
    """Operations that round as a quantized bundle does: what each linear layer reads, by its name and the loop."""

    def __init__(self, quantization: Quantization, choices: Choices, points: Mapping[str, str], head: Tensor) -> None:
        """Prepare.

        Args:
            points: the activation that each layer reads.
            head: weight of the output head, [vocab, dim].
        """
        super().__init__()
        self.quantization, self.choices, self.points, self.weight_of_head = quantization, choices, points, head
        self.index = 0
        self._roundings: dict[str, Callable[[Tensor], Tensor]] = {}  # by layer

    def enter_loop(self, index: int) -> None:
        """Ranges may differ from loop to loop."""
        self.index = index

    def linear(self, layer: Linear, x: Tensor) -> Tensor:
        """With what it reads rounded."""
        return super().linear(layer, self.rounded(layer_of(f"{layer.name}.weight"), x))

    def head(self, x: Tensor, weight: Tensor) -> Tensor:
        """By the head's own weight: a bundle may store a tied one twice."""
        return F.linear(self.rounded("head", x), self.weight_of_head)

    def attend_latent(
        self, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor, up: Linear, *, scale: float
    ) -> Tensor:
        """In latent space, where the up-projections meet the values that are rounded."""
        latent, rope_key = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, ...]
        q_nope, q_rope = (part.transpose(1, 2) for part in query)  # [b, h, s, ...]
        up_weight = up.weight.unflatten(0, (q_nope.shape[1], -1))  # [h, nope + v, rank]
        key, value = up_weight[:, : q_nope.shape[-1]], up_weight[:, q_nope.shape[-1] :]
        q_latent = (self.rounded(f"{up.name}.key", q_nope) @ key) * scale  # [b, h, s, rank]
        scores = q_latent @ latent.unsqueeze(1).mT + (q_rope * scale) @ rope_key.unsqueeze(1).mT
        weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)
        attended = self.rounded(f"{up.name}.value", weights @ latent.unsqueeze(1))
        return (attended @ value.mT).transpose(1, 2).flatten(-2)

    def rounded(self, layer: str, x: Tensor) -> Tensor:
        """What a layer reads, as the bundle rounds it."""
        if layer not in self._roundings:
            self._roundings[layer] = self._rounding(layer)
        return self._roundings[layer](x)

    def _rounding(self, layer: str) -> Callable[[Tensor], Tensor]:
        if layer in self.choices.keep or always_float(layer):
            return lambda x: x
        if self.quantization.dynamic_block is not None:
            return partial(round_blocks, block=self.quantization.dynamic_block)
        point = self.points.get(layer)
        if not self.quantization.activations or point is None:
            return lambda x: x
        number_format = self.quantization.format
        scales = torch.tensor(self.choices.limits[point], dtype=torch.float32) / number_format.largest
        if len(scales) == 1:
            return lambda x: round_to(x / scales[0], number_format) * scales[0]
        reciprocals = 1 / scales

        def by_loop(x: Tensor) -> Tensor:
            index = min(self.index, len(scales) - 1)
            return round_to(x * reciprocals[index], number_format) * scales[index]

        return by_loop
