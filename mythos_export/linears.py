"""The linear layers of an assembled graph: which node, on which weight, fed by which value.

Quantisation sees a graph through this list: what it may touch, and which activations share a range.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from mythos_export.graph_parts import HEAD_NAME, is_parameter
from mythos_export.quantization import EMBEDDING
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.parameters import parameter_shapes

__all__ = [
    "ALWAYS_FLOAT",
    "Linear",
    "UnknownLayer",
    "always_float",
    "contractions",
    "find_linears",
    "kept_layers",
    "layer_names",
    "layer_of",
]

# Cheap, and each of them steers a feedback loop: who computes a token, when it halts, what depth it believes in.
ALWAYS_FLOAT = {
    "recurrent.act.": "halting",
    "recurrent.lora.": "depth LoRA",
    "recurrent.injection.": "injection",
    "recurrent.block.ffn.router": "router",
}
# Ops that hand values on as they are: a range measured before them holds behind them.
_MOVES = frozenset({"Gather", "Identity", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze"})
_EXPERT = re.compile(r"\.routed_experts\.\d+\.")


class UnknownLayer(ValueError):
    """A layer that the model does not have."""


@dataclass(frozen=True)
class Linear:
    """One MatMul (or the head's Gemm) of an activation with a parameter."""

    node: ir.Node
    weight: ir.Value
    layer: str  # upstream's module, the routed experts under one name: `recurrent.block.ffn.routed_experts.*.gate`
    point: str  # the activation range it reads; layers fed by the same value share it
    root: ir.Value  # the computed value itself, before any node that only moves it
    moves: tuple[ir.Node, ...]  # from the root to the node, in order

    @property
    def in_loop(self) -> bool:
        """Does it run once per depth?"""
        return self.layer.startswith("recurrent.")


def always_float(parameter: str) -> bool:
    """Does this parameter stay in float in every precision?"""
    return parameter.startswith(tuple(ALWAYS_FLOAT))


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to; the experts, which share ranges and a fate, under one name."""
    name = "head" if parameter.startswith("embed.") else parameter.removesuffix(".T").replace(".weight", "")
    return _EXPERT.sub(".routed_experts.*.", name)


def find_linears(model: ir.Model) -> list[Linear]:
    """All linear layers that may be quantised, in graph order, the body of the Loop included."""
    main, points = model.graph, dict[ir.Value | str, str]()
    found = []
    for node in main.all_nodes():
        if node.op_type not in ("MatMul", "Gemm") or not is_parameter(node.inputs[1], main):
            continue
        x, weight = node.inputs[:2]
        assert x is not None and weight is not None
        if always_float(str(weight.name)):
            continue
        root, moves = _root(x, node)
        layer = "head" if node.name == HEAD_NAME else layer_of(str(weight.name))
        # every expert has hidden values of its own, and all of them one range
        identity = layer if root is x and "routed_experts" in layer else root
        point = points.setdefault(identity, f"{layer}.input")
        found.append(Linear(node, weight, layer, point, root, moves))
    return found


def _root(value: ir.Value, user: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """Back through nodes of the same graph that only move the value."""
    moves: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type in _MOVES and node.graph is user.graph:
        source = node.inputs[0]
        if source is None or source.producer() is None:  # a graph's input, or a parameter: not computed here
            break
        moves.insert(0, node)
        value = source
    return value, tuple(moves)


def layer_names(config: MythosConfig) -> list[str]:
    """Every layer that may be quantised, the routed experts under one name, the embedding's table last."""
    parameters = (name for name, shape in parameter_shapes(config).items() if len(shape) > 1)
    names = dict.fromkeys(layer for name in parameters if not always_float(name) for layer in _layers_of(name, config))
    return [*names, EMBEDDING]


def contractions(config: MythosConfig) -> dict[str, int]:
    """By layer, the size that its products sum over."""
    sizes_of = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) < 2 or always_float(name):
            continue
        for layer in _layers_of(name, config):
            # kv_up [h * (nope + v), rank]: absorbed, the keys' part contracts over nope, the values' over rank
            sizes_of[layer] = config.qk_nope_head_dim if layer.endswith(".kv_up.key") else shape[-1]
    return sizes_of


def _layers_of(parameter: str, config: MythosConfig) -> list[str]:
    layer = layer_of(parameter)
    if layer.endswith(".kv_up"):  # absorbed into the query and into the output
        return [f"{layer}.key", f"{layer}.value"]
    return [layer]


def kept_layers(config: MythosConfig, patterns: Iterable[str]) -> list[str]:
    """The layers that patterns name: `coda.*`, `head`, ...

    Raises:
        UnknownLayer: a pattern names none.
    """
    names, found = layer_names(config), []
    for pattern in patterns:
        # `routed_experts.*.gate` is a name, and fnmatch reads it as one that matches itself
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UnknownLayer(f"--keep {pattern[:200]!r} names no layer; layers are: {', '.join(names)}")
        found += matching
    return list(dict.fromkeys(found))
