"""The reference model computing what a quantised graph computes: the same rounding at the same places.

It is the oracle of quantised bundles, and the instrument of the sensitivity search: weights are those a
bundle stands for, and every quantised activation is rounded as QuantizeLinear and DequantizeLinear do, or
as a kernel does that rounds each block of it as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mythos_export.number_formats import NumberFormat
from mythos_export.quantization import Choices, Quantization
from mythos_export.weights.names import weights_of
from reference_model.architecture import Architecture
from reference_model.attention import LatentAttention, Rows
from reference_model.model import MythosModel
from reference_model.open_mythos.description import architecture
from reference_model.recurrent import LoopState

__all__ = ["points_of_layers", "round_blocks", "round_to", "simulate"]


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
    """Make a reference model, in place, compute as a graph quantised with these choices.

    Args:
        model: with the weights that the bundle's stand for; the embedding's with those of its table.
        choices: layers that the target leaves in float are among those to keep (`targets.settled`).
        feeds: by activation, the layers that read it; read only where ranges were calibrated.
        head: weight of the output head, [vocab, dim].
    """
    rounding = _Rounding(quantization, choices, points_of_layers(feeds), architecture(model.config))
    described = architecture(model.config)
    layers = {each.parameter.name: each.layer.name for each in weights_of(described).values() if each.layer is not None}
    step = model.recurrent.step

    def counted(state: LoopState, encoded: Tensor, loop_index: Tensor, *rest: Any) -> Any:
        rounding.depth = int(loop_index)
        return step(state, encoded, loop_index, *rest)

    model.recurrent.step = counted  # type: ignore[method-assign, assignment]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(".kv_up"):
            _round_input(module, rounding.of(layers[f"{name}.weight"]))
        elif isinstance(module, LatentAttention):
            key, value = rounding.of(f"{name}.kv_up.key"), rounding.of(f"{name}.kv_up.value")
            module.attend = MethodType(_latent_attend(key, value), module)  # type: ignore[method-assign]
    round_final = rounding.of("head")
    model.head = lambda x: F.linear(round_final(model.norm(x)), head)  # type: ignore[method-assign]
    return model


class _Rounding:
    """Rounds activations; knows the depth that is being computed."""

    def __init__(
        self, quantization: Quantization, choices: Choices, points: Mapping[str, str], described: Architecture
    ) -> None:
        self.quantization, self.choices, self.points, self.described = quantization, choices, points, described
        self.depth = 0

    def of(self, layer: str) -> Callable[[Tensor], Tensor]:
        """What happens to the input of a layer."""
        if layer in self.choices.keep or layer not in self.described.layers:
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

        def by_depth(x: Tensor) -> Tensor:
            depth = min(self.depth, len(scales) - 1)
            return round_to(x * reciprocals[depth], number_format) * scales[depth]

        return by_depth


def _round_input(module: nn.Linear, rounded: Callable[[Tensor], Tensor]) -> None:
    module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))


def _latent_attend(round_query: Callable[[Tensor], Tensor], round_attended: Callable[[Tensor], Tensor]) -> Any:
    """Attention in latent space, where the up-projections meet the values that are rounded."""

    def attend(self: LatentAttention, query: tuple[Tensor, Tensor], rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        latent, rope_key = (torch.cat(pair, dim=1) for pair in zip(past, rows))  # [b, p + s, ...]
        key, value = self.kv_up.weight.unflatten(0, (self.n_heads, -1)).split((self.nope_dim, self.v_dim), dim=1)
        q_nope, q_rope = (part.transpose(1, 2) for part in query)  # [b, h, s, ...]
        q_latent = (round_query(q_nope) @ key) * self.scale  # [b, h, s, rank]
        scores = q_latent @ latent.unsqueeze(1).mT + (q_rope * self.scale) @ rope_key.unsqueeze(1).mT
        weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=-1)
        attended = round_attended(weights @ latent.unsqueeze(1))
        return (attended @ value.mT).transpose(1, 2).flatten(-2)

    return attend
