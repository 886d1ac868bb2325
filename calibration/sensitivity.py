"""Which layers cost most when they are quantised, and which of them a budget should keep in float.

Each layer is quantised alone, in PyTorch that rounds as the graph would, and the logits are held against
the model in full precision, at several loop counts: an error inside the loop comes back at every depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from calibration.data import Samples
from calibration.recipe import Recipe
from calibration.simulate import simulate
from mythos_export.number_formats import FORMATS, block_scales, channel_scales, dequantize, quantize
from mythos_export.progress import Reporter
from mythos_export.quantization import Choices, Quantization
from mythos_export.weights.names import Weight
from mythos_export.weights.views import rows_of, upstream_rows
from mythos_export.weights.write import expected
from reference_model.checkpoint import WeightSource, load_model
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

__all__ = ["LayerCost", "Sensitivity", "choose_kept", "measure_sensitivity"]

_HEAD = "head"  # the weight of a tied head, where it is not the table's
_SEQUENCES, _TOKENS = 8, 32  # of the samples, the most that are looked at


class LayerCost(BaseModel):
    """What one layer costs."""

    layer: str
    relative_error: float  # of the logits, if this layer alone is quantised: |difference| / |fp32|
    weights: int  # numbers in it


class Sensitivity(BaseModel):
    """All layers, the dearest first."""

    precision: str
    loops: list[int]
    tokens: int
    relative_error: float  # with every layer quantised that is not kept already
    layers: list[LayerCost]


def choose_kept(
    quantization: Quantization,
    choices: Choices,
    recipe: Recipe | None,
    config: MythosConfig,
    source: WeightSource,
    samples: Samples,
    budget: float,
    report: Reporter,
) -> dict[str, str]:
    """The layers to keep in float, with why: those that cost most for their size, while the budget lasts.

    Args:
        budget: share of all quantised weights that may stay in float.
    """
    found = measure_sensitivity(quantization, choices, recipe, config, source, samples, report)
    left = budget * sum(cost.weights for cost in found.layers)
    kept: dict[str, str] = {}
    for cost in sorted(found.layers, key=lambda cost: cost.relative_error**2 / cost.weights, reverse=True):
        if cost.weights <= left:
            left -= cost.weights
            kept[cost.layer] = f"sensitive: alone it costs {cost.relative_error:.2%} of the logits"
    return kept


def measure_sensitivity(
    quantization: Quantization,
    choices: Choices,
    recipe: Recipe | None,
    config: MythosConfig,
    source: WeightSource,
    samples: Samples,
    report: Reporter,
) -> Sensitivity:
    """Quantise each layer alone, and all together.

    Args:
        choices: their ranges are used, and the layers they keep are left out.
    """
    feeds = {name: found.feeds for name, found in recipe.activations.items()} if recipe is not None else {}
    loops = sorted({1, max(1, config.max_loop_iters // 2), config.max_loop_iters})
    trial = _Trial(quantization, choices, feeds, config, source, _pieces(samples), loops)
    names = [name for name in architecture(config).layers if name not in choices.keep]
    with report.step("measure what each layer costs", len(names) + 2) as advance:
        original = trial.logits([])
        advance(1)
        costs = []
        for name in names:
            error = _relative(trial.logits([name]), original)
            costs.append(LayerCost(layer=name, relative_error=error, weights=trial.size(name)))
            advance(1)
        together = _relative(trial.logits(names), original)
    costs.sort(key=lambda cost: cost.relative_error, reverse=True)
    return Sensitivity(
        precision=quantization.format.name,
        loops=loops,
        tokens=sum(len(piece) for piece in trial.sequences),
        relative_error=together,
        layers=costs,
    )


class _Trial:
    """Runs the model with some layers quantised; the others compute in float."""

    def __init__(
        self,
        quantization: Quantization,
        choices: Choices,
        feeds: Mapping[str, Sequence[str]],
        config: MythosConfig,
        source: WeightSource,
        sequences: list[Tensor],
        loops: list[int],
    ) -> None:
        self.quantization, self.limits, self.feeds, self.config = quantization, choices.limits, feeds, config
        self.described = architecture(config)
        self.sequences, self.loops = sequences, loops
        self._source = _held(source, config)

    def size(self, layer: str) -> int:
        """Weights of a layer."""
        return sum(parameter.size for parameter in self.described.parameters_of(layer))

    @torch.inference_mode()
    def logits(self, layers: Iterable[str]) -> Tensor:
        """Logits of the last token of each sequence at each loop count, [sequences * loops, vocab]."""
        wanted = frozenset(layers)
        keep = self.described.layers.keys() - wanted
        changed = self._rounded(wanted)
        head = changed.pop(_HEAD, self._source.read(self.described.table.name))
        model = load_model(_Changed(self._source, changed), self.config)
        simulate(model, self.quantization, Choices(self.limits, frozenset(keep)), self.feeds, head)
        return torch.cat(
            [model(ids[None], loops, logits_to_keep=1).logits[0] for ids in self.sequences for loops in self.loops]
        )

    def _rounded(self, layers: frozenset[str]) -> dict[str, Tensor]:
        """What the weights of these layers become, by the checkpoint's names; a tied head's as _HEAD."""
        changed: dict[str, Tensor] = {}
        for parameter in self.described.parameters:
            for layer in parameter.layers:
                if layer.name not in layers or layer.name not in self.described.layers:
                    continue
                weight = Weight(parameter, layer)
                name = _HEAD if weight.head_copy else parameter.name
                changed[name] = self._with_part(weight, changed.get(name))
        return changed

    def _with_part(self, weight: Weight, before: Tensor | None) -> Tensor:
        """The checkpoint's tensor, what one layer reads of it rounded, the rest as it was `before`."""
        assert weight.layer is not None
        part = expected(weight.name, torch.float32, self._source, self.described).contiguous().numpy()
        number_format, block = self.quantization.format, self.quantization.block
        if weight.layer.lookup:
            number_format, block, scales = FORMATS["int8"], None, channel_scales(part, -1, FORMATS["int8"])
        elif block is not None:
            scales = block_scales(part, block, number_format)
        else:
            scales = channel_scales(part, -2, number_format)
        rounded = upstream_rows(dequantize(quantize(part, scales, number_format, block), scales, block), weight.view)
        result = torch.clone(self._source.read(weight.parameter.name) if before is None else before)
        rows = rows_of(weight.view, weight.parameter.shape)
        result[slice(None) if rows is None else torch.from_numpy(rows)] = torch.tensor(rounded)
        return result


class _Changed:
    """A source some of whose tensors are others."""

    def __init__(self, source: WeightSource, changed: Mapping[str, Tensor]) -> None:
        self._source, self._changed = source, changed
        self.config = source.config
        self.config_problem = source.config_problem
        self.wrappers = source.wrappers
        self.names, self.shape, self.describe, self.dtype = source.names, source.shape, source.describe, source.dtype
        self.rope_table = source.rope_table

    def read(self, name: str) -> Tensor:
        found = self._changed.get(name)
        return self._source.read(name) if found is None else found


def _held(source: WeightSource, config: MythosConfig) -> _Changed:
    """The same source with its tensors in memory: they are read again for every layer."""
    return _Changed(source, {name: source.read(name).to(torch.float32) for name in architecture(config).by_name})


def _pieces(samples: Samples) -> list[Tensor]:
    spread = samples.sequences[:: max(1, len(samples.sequences) // _SEQUENCES)]
    return [torch.from_numpy(sequence[:_TOKENS]) for sequence in spread[:_SEQUENCES]]


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
