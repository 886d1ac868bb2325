"""How long a mixture of experts takes in ONNX Runtime, by formulation and number of tokens: what the targets' choice
rests on.

    python -m tools.moe_formulations --dim 1024 --expert-dim 1024 --experts 64 --tokens 1,8,128

Each formulation is the body of a Loop, as in an exported graph: where a weight lies decides whether ONNX Runtime packs
it. Experts are drawn anew for each iteration. Formulations take turns in rounds whose order rotates; figures are
medians of milliseconds an iteration. Weights are random, and only their time is looked at: what the formulations of the
targets compute is tested elsewhere.

- dense: every expert takes every token (`LowerMoEDense`).
- gather: the weights of each token's experts are gathered, and multiplied as a batch.
- branch: an `If` for each expert, which runs on its own tokens if it has any.
- grouped: tokens sorted by expert and split; each expert runs on its own, be they none (`LowerMoEGrouped`).
- fused: `com.microsoft::QMoE` (`LowerMoEFused`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.onnxruntime import import_onnxruntime
from mythos_export import passes
from mythos_export.quantization import NBITS, QUANTIZED, ROUTED_EXPERTS, Choices
from mythos_export.targets import TARGETS
from tools.benchmarking.pairing import order_of_round
from tools.moe_graphs import Sizes, branched, gathered, looped_mixture

__all__ = ["FORMULATIONS", "main", "measure"]

_TRIPS = 4  # iterations of a run
_MOST_GATHERED = 1 << 31  # bytes of weights that `gather` may copy at an iteration
_NEEDS_RUNTIME_1_31 = frozenset({"fused"})


class Formulation(NamedTuple):
    """One way to compute the mixture."""

    name: str
    precision: str
    lower: Callable[[ir.Model, Sizes], None]
    session: dict[str, str]


def _lowered_by(make: Callable[[Sizes], ir.passes.InPlacePass], *after: Callable[[], ir.passes.InPlacePass]) -> Any:
    def lower(model: ir.Model, sizes: Sizes) -> None:
        for rewrite in (make(sizes), *(each() for each in after)):
            rewrite(model)

    return lower


def _dense(sizes: Sizes) -> ir.passes.InPlacePass:
    return passes.LowerMoEDense(experts=sizes.experts, dim=sizes.dim, expert_dim=sizes.expert_dim)


def _grouped(sizes: Sizes) -> ir.passes.InPlacePass:
    return passes.LowerMoEGrouped(**sizes._asdict())


def _fused(quantization: Any) -> Callable[[Sizes], ir.passes.InPlacePass]:
    return lambda sizes: passes.LowerMoEFused(quantization, **sizes._asdict())


class _AnyRange(dict[str, Sequence[float]]):
    """Speed does not depend on ranges."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Sequence[float]:
        return [4.0]


_CHOICES = Choices(limits=_AnyRange(), keep=frozenset({"embed"}))
FORMULATIONS = [
    Formulation("dense", "fp32", _lowered_by(_dense), {}),
    Formulation("gather", "fp32", gathered, {}),
    Formulation("branch", "fp32", branched, {}),
    Formulation("grouped", "fp32", _lowered_by(_grouped), {}),
    Formulation("grouped", "int8", _lowered_by(_grouped, lambda: passes.Quantize(QUANTIZED["int8"], _CHOICES)), {}),
    Formulation("grouped", "int4", _lowered_by(_grouped, lambda: passes.QuantizeNBits(NBITS, _CHOICES)), {}),
    Formulation("fused", "int4", _lowered_by(_fused(NBITS)), {}),
]
