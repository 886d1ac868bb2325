"""A toy bundle with the real signature, whose answers can be worked out by hand.

Its "logits" peak at a token that depends on every cached row, the mask, the positions and the
depth, so whatever the engine gets wrong changes the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engines
from mythos_export.bundle import Bundle, CachePart, GraphFile, Limits, Manifest, TensorSpec, file_entry

VOCAB, MAX_SEQ_LEN, MAX_LOOPS = 16, 64, 6
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
}


def _next_token(tokens: Sequence[int], loops: int) -> int:
    cached = sum(token + 1 + depth for token in tokens for depth in range(loops)) + sum(tokens)
    return (cached + 7 * (len(tokens) - 1)) % VOCAB


@pytest.fixture(scope="session")
def toy_next() -> Callable[[Sequence[int], int], int]:
    """The toy's greedy choice after these tokens at this depth."""
    return _next_token


@pytest.fixture(scope="session")
def toy_tokens() -> Callable[[Sequence[int], int, int], list[int]]:
    """The toy's greedy continuation: (prompt, loops, count)."""

    def tokens(prompt: Sequence[int], loops: int, count: int) -> list[int]:
        sequence = list(prompt)
        for _ in range(count):
            sequence.append(_next_token(sequence, loops))
        return sequence[len(prompt) :]

    return tokens


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Bundle]:
    """Make a toy bundle: `toy(loops=["dynamic", 4], dtype="float32", session={})`."""

    def make(
        loops: Sequence[int | str] = ("dynamic",),
        dtype: str = "float32",
        session: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
    ) -> Bundle:
        folder = tmp_path / f"toy-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        graphs = [GraphFile(file=f"model-{depth}.onnx", loops=depth) for depth in loops]  # type: ignore[arg-type]
        for graph in graphs:
            onnx.save(_model(graph.loops, dtype), folder / graph.file)
        for name, content in (files or {}).items():
            (folder / name).write_text(content)
        (folder / "manifest.json").write_text(_manifest(folder, graphs, dtype, session or {}).model_dump_json())
        return Bundle.open(folder)

    return make


@pytest.fixture
def toy_engine(toy: Callable[..., Bundle]) -> engines.Engine:
    """An engine on the toy with a dynamic Loop."""
    return engines.load(toy().path, threads=1)


def _parts(dtype: str) -> list[CachePart]:
    return [
        CachePart(name="prelude.latent", depth=1, row=[1], dtype=dtype),
        CachePart(name="recurrent.latent", depth="loops", row=[1], dtype=dtype),
        CachePart(name="coda.latent", depth=0, row=[1], dtype=dtype),  # a stage without layers
    ]


def _inputs(dtype: str) -> list[TensorSpec]:
    plain = {
        "input_ids": ["batch", "seq"],
        "attention_mask": ["batch", "total"],
        "position_ids": ["batch", "seq"],
        "n_loops": ["batch"],
        "logits_to_keep": [],
    }
    past = {f"past.{part.name}": [part.depth, "batch", "past", *part.row] for part in _parts(dtype)}
    return [
        *(TensorSpec(name=name, dtype="int64", shape=shape) for name, shape in plain.items()),
        *(TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in past.items()),
    ]


def _outputs(dtype: str) -> list[TensorSpec]:
    return [
        TensorSpec(name="logits", dtype="float32", shape=["batch", "kept", VOCAB]),
        TensorSpec(name="halting.depth", dtype="int64", shape=["batch", "seq"]),
        *(
            TensorSpec(
                name=f"new.{part.name}",
                dtype=dtype,
                shape=["trip" if part.depth == "loops" else part.depth, "batch", "seq", 1],
            )
            for part in _parts(dtype)
        ),
    ]


def _manifest(folder: Path, graphs: list[GraphFile], dtype: str, session: dict[str, str]) -> Manifest:
    return Manifest(
        format_version=1,
        name=folder.name,
        tool={},
        created="2026-01-01T00:00:00Z",
        command=[],
        source={},
        target="portable",
        precision="fp32",
        opset=21,
        loops="dynamic",
        graphs=graphs,
        inputs=_inputs(dtype),
        outputs=_outputs(dtype),
        cache=_parts(dtype),
        limits=Limits(vocab_size=VOCAB, max_seq_len=MAX_SEQ_LEN, max_loop_iters=MAX_LOOPS),
        parameters=1,
        spectral_radius=0.5,
        session=session,
        files={file.name: file_entry(file) for file in folder.iterdir()},
    )


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: Any, out: str | None = None, **attributes: Any) -> str:
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def constant(self, value: Any) -> str:
        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name


def _model(loops: int | str, dtype: str) -> onnx.ModelProto:
    op = _Builder()
    _toy_nodes(op, loops, _TYPES[dtype])
    graph = helper.make_graph(
        op.nodes,
        "toy",
        [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in _inputs(dtype)],
        [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in _outputs(dtype)],
        op.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _toy_nodes(op: _Builder, loops: int | str, cache_type: int) -> None:
    def to_float(name: str) -> str:
        return op("Cast", name, to=TensorProto.FLOAT)

    ids = op("Unsqueeze", to_float("input_ids"), [0, 3])  # [1, b, s, 1]
    trip = op("ReduceMax", "n_loops", keepdims=0) if loops == "dynamic" else op.constant(int(loops))
    depths = op("Range", 0, trip, 1)
    offset = op("Unsqueeze", to_float(depths), [1, 2, 3])  # [trip, 1, 1, 1]
    rows = op("Add", op("Add", ids, 1.0), offset)  # [trip, b, s, 1]
    op("Cast", ids, out="new.prelude.latent", to=cache_type)
    op("Cast", rows, out="new.recurrent.latent", to=cache_type)
    op("Slice", "new.prelude.latent", [0], [0], [0], out="new.coda.latent")
    used = op("Less", op("Unsqueeze", depths, [1]), op("Unsqueeze", "n_loops", [0]))  # [trip, b]
    past = op("Slice", to_float("past.recurrent.latent"), [0], op("Unsqueeze", trip, [0]), [0])
    looped = op("Mul", op("Concat", past, rows, axis=2), op("Unsqueeze", to_float(used), [2, 3]))
    dense = op("Concat", to_float("past.prelude.latent"), ids, axis=2)
    values = op("Add", op("ReduceSum", looped, [0, 3], keepdims=0), op("ReduceSum", dense, [0, 3], keepdims=0))

    total, seq = op("Gather", op("Shape", "attention_mask"), 1), op("Gather", op("Shape", "input_ids"), 1)
    queries = op("Range", op("Sub", total, seq), total, 1)
    causal = op("LessOrEqual", op("Unsqueeze", op("Range", 0, total, 1), [0]), op("Unsqueeze", queries, [1]))
    visible = op("Mul", to_float(causal), op("Unsqueeze", to_float("attention_mask"), [1]))  # [b, s, total]
    sums = op("Squeeze", op("MatMul", visible, op("Unsqueeze", values, [2])), [2])  # [b, s]
    score = op("Add", sums, op("Mul", to_float("position_ids"), 7.0))
    best = op("Unsqueeze", op("Mod", score, float(VOCAB), fmod=1), [2])
    logits = op("Neg", op("Abs", op("Sub", to_float(op("Range", 0, VOCAB, 1)), best)))  # [b, s, vocab]
    kept = op("Where", op("Equal", "logits_to_keep", 0), seq, "logits_to_keep")
    op("Slice", logits, op("Unsqueeze", op("Sub", seq, kept), [0]), [1 << 40], [1], out="logits")
    op("Min", op("Unsqueeze", "n_loops", [1]), op("Add", "input_ids", 1), out="halting.depth")
