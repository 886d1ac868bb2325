"""Which tensors an export stores, and in which order: from the config and the table of formats, no graph is traced.

Names, shapes and types are those of the initializers of the written graphs, to the last byte (tests compare them).
What small constants a graph holds itself, among them scales of activations, is not counted: kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from mythos_export import passes
from mythos_export.linears import always_float, layer_of
from mythos_export.planning.tensors import StoredTensor, is_large
from mythos_export.quantization import (
    EMBEDDING,
    QUANTIZED,
    ROUTED_EXPERTS,
    STACKS,
    TABLE,
    Choices,
    Quantization,
    scale_shape,
    stored_name,
    stored_shape,
)
from mythos_export.targets import TARGETS, quantization_of, settled
from reference_model.config import MythosConfig
from reference_model.parameters import parameter_shapes

__all__ = ["DTYPES", "Formulation", "formulation", "stored_tensors"]

DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT8E4M3FN: "float8e4m3fn",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT4: "int4",
}
_HALF = {"fp16": "float16", "bf16": "bfloat16"}
_UNTRANSPOSED = ("recurrent.lora.B", "recurrent.lora.scale.weight")  # read as they are, not as a linear layer
_HEAD = "head"
_SCALE = ".scale"  # of numbers; the depth LoRA's own scale ends in .weight
_NONE = Choices()
_FLOATS = frozenset({"float32", *_HALF.values()})


@dataclass(frozen=True)
class Formulation:
    """How a target computes the mixture of experts."""

    dense: bool  # every expert on every token, whatever the router chose
    fused: bool  # one kernel over stacks of all experts


def formulation(config: MythosConfig, target: str, precision: str, choices: Choices = _NONE) -> Formulation:
    """What the target's own list of passes says."""
    choices = settled(choices, target, config, precision)
    lowerings = TARGETS[target].lowerings(config, precision, choices)
    return Formulation(
        dense=any(isinstance(each, passes.LowerMoEDense) for each in lowerings),
        fused=any(isinstance(each, passes.LowerMoEFused) for each in lowerings),
    )


def stored_tensors(config: MythosConfig, target: str, precision: str, choices: Choices = _NONE) -> list[StoredTensor]:
    """Every parameter in the data file of such a bundle, in the order of the file; all its graphs share them.

    An export writes them in this order, so that the size of the file can be told before.

    Args:
        choices: layers that stay in float besides those that the target leaves there anyway, and how old a runtime may
            be; ranges make no difference.

    Raises:
        KeyError: the target does not have that precision.
    """
    quantization = quantization_of(target, precision, config) if precision in QUANTIZED else None
    kept = settled(choices, target, config, precision).keep
    stacked = formulation(config, target, precision, choices).fused
    store = _Store(quantization, kept, _HALF.get(precision, "float32"))
    found: list[StoredTensor] = []
    for name, shape in parameter_shapes(config).items():
        if name == "embed.weight":
            found += store.embedding(shape)
        elif not (stacked and name.startswith(f"{ROUTED_EXPERTS}.")):
            for variant, laid_out in _as_in_graph(name, shape, config):
                found += store.parameter(variant, laid_out)
    return sorted([*store.stacks(config), *found] if stacked else found, key=_write_order)


def _write_order(tensor: StoredTensor) -> tuple[bool, bool, str]:
    """What is small comes first, for what is large begins at a page; the embedding comes last.

    But numbers and scales stay together, for they are made together.
    """
    small = tensor.dtype in _FLOATS and not tensor.name.endswith(_SCALE) and not is_large(tensor)
    embedding = tensor.name.startswith("embed.")
    return not small, embedding, tensor.name if embedding else ""


def _as_in_graph(name: str, shape: tuple[int, ...], config: MythosConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A checkpoint's tensor under the names and in the layouts that the graphs read."""
    if name.endswith(".kv_up.weight"):
        heads, nope, rank, v = config.n_heads, config.qk_nope_head_dim, config.kv_lora_rank, config.v_head_dim
        yield f"{name}.key", (heads, nope, rank)
        yield f"{name}.value", (heads, rank, v)
    elif len(shape) == 1 or name in _UNTRANSPOSED:
        yield name, shape
    else:
        yield f"{name}.T", shape[::-1]


@dataclass(frozen=True)
class _Store:
    """How one precision stores parameters."""

    quantization: Quantization | None
    kept: frozenset[str]
    dtype: str  # of matrices in float

    def parameter(self, name: str, shape: tuple[int, ...]) -> list[StoredTensor]:
        if len(shape) == 1 or always_float(name):
            return [StoredTensor(name, shape, "float32")]
        if self.quantization is None or layer_of(name) in self.kept:
            return [StoredTensor(name, shape, self.dtype)]
        return self._quantized(name, shape, self.quantization)

    def embedding(self, shape: tuple[int, ...]) -> list[StoredTensor]:
        """The table, which is the head's weight too unless one of them is quantised without the other."""
        table = StoredTensor("embed.weight", shape, self.dtype)
        if self.quantization is None:
            return [table]
        small_table, small_head = EMBEDDING not in self.kept, _HEAD not in self.kept
        found = [] if small_table and small_head else [table]
        if small_table:
            found += [StoredTensor(TABLE, shape, "int8"), StoredTensor(f"{TABLE}.scale", shape[:1], "float32")]
        if small_head and not (small_table and self.quantization.tied_head):
            found += self._quantized("embed.weight.T", shape[::-1], self.quantization)
        return found

    def stacks(self, config: MythosConfig) -> list[StoredTensor]:
        """All routed experts as the fused kernel reads them."""
        quantization = self.quantization
        assert quantization is not None and quantization.block is not None
        found = []
        for stack, (channels, contraction) in zip(
            STACKS, ((2 * config.expert_dim, config.dim), (config.dim, config.expert_dim))
        ):
            name = stored_name(stack, quantization)
            rows = (config.n_experts, channels)
            found += [  # the scales first: numbers that are written behind them find them in the file
                StoredTensor(f"{name}.scale", (*rows, contraction // quantization.block), "float32"),
                StoredTensor(name, (*rows, quantization.bytes_of(contraction)), DTYPES[quantization.dtype]),
            ]
        return found

    @staticmethod
    def _quantized(name: str, shape: tuple[int, ...], quantization: Quantization) -> list[StoredTensor]:
        stored = stored_name(name, quantization)
        return [
            StoredTensor(stored, tuple(stored_shape(shape, quantization)), DTYPES[quantization.dtype]),
            StoredTensor(f"{stored}.scale", tuple(scale_shape(shape, quantization)), "float32"),
        ]
