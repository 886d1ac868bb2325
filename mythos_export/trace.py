"""Trace the pieces of a model to ONNX without any weights in memory.

`torch.onnx.export` runs under `FakeTensorMode`, so a trillion-parameter model traces in the memory of
a small one. What comes out has initializers with names and shapes but no values.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch._subclasses import FakeTensorMode
from torch.export import Dim

from mythos_export.symbolic_ops import SymbolicOps
from reference_model.components.component import use_ops
from reference_model.config import MythosConfig
from reference_model.frame import Frame, Piece, Pieces
from reference_model.open_mythos.pieces import pieces

__all__ = ["TracedPiece", "TracedPieces", "trace", "trace_pieces"]

# Example sizes; every one of them is a dynamic dimension.
_SIZES = {"batch": 2, "seq": 3, "past": 5, "total": 8}


@dataclass(frozen=True)
class TracedPiece:
    """An ONNX graph whose inputs have the piece's names; parameters are initializers without values.

    Clone the graph before taking it apart.
    """

    graph: ir.Graph
    shapes: Mapping[str, tuple[int | str, ...]]  # of its inputs
    outputs: tuple[str, ...]  # what its outputs are called, in order


@dataclass(frozen=True)
class TracedPieces:
    """One graph a piece."""

    frame: Frame
    embed: TracedPiece
    blocks: Mapping[str, TracedPiece]  # by kind; its parameters are called `block.<name>`
    join: TracedPiece | None
    read_out: TracedPiece | None


def trace(config: MythosConfig, *, opset: int) -> TracedPieces:
    """Trace a model of this shape."""
    return _trace(config, opset)


@functools.lru_cache(maxsize=4)  # another precision or depth of the same model is another look at the same trace
def _trace(config: MythosConfig, opset: int) -> TracedPieces:
    return trace_pieces(lambda: pieces(config), opset=opset)


def trace_pieces(make: Callable[[], Pieces], *, opset: int) -> TracedPieces:
    """Trace the pieces of any family.

    Args:
        make: builds them; called where tensors take no memory.
    """
    with _Quiet(), FakeTensorMode():
        made = make()
        return TracedPieces(
            frame=made.frame,
            embed=_export(made.embed, opset),
            blocks={kind: _export(block, opset) for kind, block in made.blocks.items()},
            join=None if made.join is None else _export(made.join, opset),
            read_out=None if made.read_out is None else _export(made.read_out, opset),
        )


def _export(piece: Piece, opset: int) -> TracedPiece:
    program = torch.onnx.export(
        use_ops(piece.module, SymbolicOps()).eval(),
        tuple(_example(port.shape, port.dtype) for port in piece.inputs),
        dynamo=True,
        optimize=False,  # its weight folding needs values; the one below does not
        verbose=False,
        opset_version=opset,
        input_names=[port.name for port in piece.inputs],
        output_names=list(piece.outputs),
        dynamic_shapes=tuple(
            {axis: Dim.DYNAMIC for axis, size in enumerate(port.shape) if isinstance(size, str)}
            for port in piece.inputs
        ),
    )
    assert program is not None
    model = program.model
    for value in list(model.graph.initializers.values()):
        value.const_value = None
    optimizer.optimize_ir(model, onnx_shape_inference=False, input_size_limit=1 << 12, output_size_limit=1 << 16)
    for port, formal in zip(piece.inputs, model.graph.inputs, strict=True):
        formal.name = port.name  # an input that leaves the piece as it came has been renamed
    return TracedPiece(model.graph, {port.name: port.shape for port in piece.inputs}, piece.outputs)


def _example(shape: tuple[int | str, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros([_SIZES[size] if isinstance(size, str) else size for size in shape], dtype=dtype)


class _Quiet:
    """Keeps the exporter's notes on optional packages and pytree internals off the user's screen."""

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *exc: object) -> None:
        logging.disable(logging.NOTSET)
        self.warnings.__exit__(None, None, None)
