"""The formulations that are timed compute one mixture, and what is printed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from stored_weights import RUNS_INT4

from mythos_export.weights.packing import unpacked
from reference_model.open_mythos.parameters import ROUTED_EXPERTS
from tools import moe_formulations
from tools.benchmarking.worker import BenchmarkError
from tools.moe_formulations import FORMULATIONS, Formulation, Mixture, draw_inputs, measure, table
from tools.moe_graphs import LowerMoEGathered, Sizes
from tools.moe_weights import drawn

SIZES = Sizes(experts=6, top_k=2, dim=64, expert_dim=32)
STEP = 4.0 / 127  # of activations in int8, as the tool ranges them
# Of the outputs' range. Blockwise kernels round blocks of activations to int8, which costs up to half a 127th of each.
TOLERANCE = {"fp32": 1e-6, "int8-qdq": 1e-3, "int8": 2e-2, "int4": 2e-2}


def case(formulation: Formulation) -> Any:
    older = pytest.mark.skipif(formulation.precision in ("int8", "int4") and not RUNS_INT4, reason="an older runtime")
    return pytest.param(formulation, id=f"{formulation.name}-{formulation.precision}", marks=older)


def weight(expert: int, part: str, precision: str) -> np.ndarray:
    """[contraction, channels], as the formulations of a precision have it."""
    name = f"{ROUTED_EXPERTS}.{expert}.{part}.weight.T"
    contraction, channels = shape = (32, 64) if part == "down" else (64, 32)
    if precision == "fp32":
        return drawn(name, ir.DataType.FLOAT, shape, SIZES)
    if precision == "int8-qdq":
        scale = drawn(f"{name}.int8.scale", ir.DataType.FLOAT, [channels], SIZES)
        return drawn(f"{name}.int8", ir.DataType.INT8, shape, SIZES) * scale
    blocks, bits = contraction // 32, 8 if precision == "int8" else 4
    stored = drawn(f"{name}.{precision}b32.packed", ir.DataType.UINT8, [channels, blocks, 4 * bits], SIZES)
    scale = drawn(f"{name}.{precision}b32.packed.scale", ir.DataType.FLOAT, [channels, blocks], SIZES)
    return unpacked(stored, contraction, bits) * np.repeat(scale, 32, axis=1).T


def mixture(inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
    """In NumPy, a token at a time."""
    experts = [[weight(expert, part, precision) for part in ("gate", "up", "down")] for expert in range(SIZES.experts)]

    def rounded(x: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(x / STEP), -128, 127) * STEP if precision == "int8-qdq" else x

    total = np.zeros_like(inputs["tokens"], dtype=np.float64)
    for chosen, weights in zip(inputs["chosen"], inputs["weights"]):
        for token, row in enumerate(rounded(inputs["tokens"])):
            for expert, share in zip(chosen[token], weights[token]):
                gate, up, down = experts[expert]
                hidden = (row @ gate) / (1 + np.exp(-(row @ gate))) * (row @ up)
                total[token] += share * (rounded(hidden) @ down)
    return total


@pytest.mark.parametrize("formulation", [case(each) for each in FORMULATIONS])
def test_every_formulation_computes_the_mixture(formulation: Formulation, tmp_path: Path) -> None:
    made = Mixture(formulation, SIZES, 1, tmp_path)
    for tokens in (1, 2, 5, 40):
        inputs = draw_inputs(SIZES, tokens, trips=3)
        busy = [len(np.unique(chosen)) for chosen in inputs["chosen"]]
        assert (min(busy) < SIZES.experts) == (tokens < 5)  # with few tokens, some experts have none
        wanted = mixture(inputs, formulation.precision)
        extent = wanted.max() - wanted.min()
        assert extent > 1  # not lost in rounding
        np.testing.assert_allclose(made.run(inputs), wanted, atol=TOLERANCE[formulation.precision] * extent, rtol=0)


def test_routing_is_drawn_anew_and_sums_to_one() -> None:
    inputs = draw_inputs(SIZES, 5)
    assert inputs["chosen"].shape == inputs["weights"].shape == (4, 5, 2)
    assert all(len(set(pair)) == 2 for pair in inputs["chosen"].reshape(-1, 2).tolist())
    assert len({chosen.tobytes() for chosen in inputs["chosen"]}) == 4
    np.testing.assert_allclose(inputs["weights"].sum(-1), 1, rtol=1e-6)


def test_gather_is_left_out_where_it_would_copy_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather, grouped = (next(each for each in FORMULATIONS if each.name == name) for name in ("gather", "grouped"))
    mixtures = [Mixture(each, SIZES, 1, tmp_path) for each in (gather, grouped)]
    expert = 4 * 3 * 64 * 32
    assert mixtures[0].expert_bytes == mixtures[1].expert_bytes == expert
    monkeypatch.setattr(moe_formulations, "_MOST_GATHERED", 2 * 3 * expert)  # of two experts for three tokens
    assert [[each.takes(tokens) for tokens in (3, 4)] for each in mixtures] == [[True, False], [True, True]]
    left_out, timed = measure(mixtures, 4, rounds=2)
    assert left_out["ms"] is left_out["rounds_ms"] is None
    assert len(timed["rounds_ms"]) == 2


def test_active_bytes_are_those_of_experts_with_a_token(tmp_path: Path) -> None:
    formulation = next(each for each in FORMULATIONS if (each.name, each.precision) == ("grouped", "int8-qdq"))
    made = Mixture(formulation, SIZES, 1, tmp_path)
    assert made.expert_bytes == 3 * 64 * 32 + 4 * (32 + 32 + 64)  # numbers, and a scale for each channel
    (row,) = measure([made], 1, rounds=1)
    assert row["active_bytes"] == 2 * made.expert_bytes
    (row,) = measure([made], 40, rounds=1)
    assert row["active_bytes"] == 6 * made.expert_bytes


def test_what_computes_something_else_is_not_timed(tmp_path: Path) -> None:
    wrong = Formulation("wrong", "fp32", lambda sizes: [LowerMoEGathered(sizes), _Doubled()])
    mixtures = [Mixture(each, SIZES, 1, tmp_path) for each in (FORMULATIONS[0], wrong)]
    with pytest.raises(RuntimeError, match="wrong fp32 differs from dense fp32"):
        measure(mixtures, 3, rounds=1)


class _Doubled(ir.passes.InPlacePass):
    """Adds the tokens' mixture twice."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        add = next(node for node in model.graph.all_nodes() if node.op_type == "Add")
        add.replace_input_with(0, add.inputs[1])
        return ir.passes.PassResult(model, modified=True)


def test_the_best_of_each_precision_is_marked() -> None:
    def row(name: str, precision: str, tokens: int, milliseconds: float | None) -> dict[str, Any]:
        return {
            "formulation": name,
            "precision": precision,
            "tokens": tokens,
            "ms": milliseconds,
            "active_bytes": 2500000 * tokens,
        }

    rows = [row("a", "fp32", 1, 2.0), row("b", "fp32", 1, 1.0), row("a", "int8", 1, 0.5)]
    rows += [row("a", "fp32", 8, 3.0), row("b", "fp32", 8, None), row("a", "int8", 8, 4.0)]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()]
    assert [cells for cells in lines if not set("".join(cells)) <= set("-:")] == [
        ["ms an iteration", "1 token", "8 tokens"],
        ["a fp32", "2.00", "**3.00**"],
        ["b fp32", "**1.00**", "-"],
        ["a int8", "**0.50**", "**4.00**"],
        ["MB of active weights", "1 token", "8 tokens"],
        ["fp32", "2.5", "20.0"],
        ["int8", "2.5", "20.0"],
    ]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "moe.json"
    options = "--experts 6 --top-k 2 --dim 64 --expert-dim 32 --tokens 5,1 --threads 1 --rounds 2"
    assert moe_formulations.main([*options.split(), "--formulations", "gather,grouped", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    blocks = [("grouped", "int8"), ("grouped", "int4")] if RUNS_INT4 else []
    wanted = [("gather", "fp32"), ("grouped", "fp32"), ("grouped", "int8-qdq"), *blocks]
    assert [(row["formulation"], row["precision"], row["tokens"]) for row in result["rows"]] == [
        (*which, tokens) for tokens in (1, 5) for which in wanted
    ]
    for row in result["rows"]:
        assert 0 < row["least_ms"] <= row["ms"] <= row["most_ms"]
        assert len(row["rounds_ms"]) == 2
    assert result["settings"]["expert_dim"] == 32
    assert table(result["rows"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--tokens", "0"],
        ["--formulations", "dense,none"],
        ["--top-k", "5", "--experts", "4"],
        ["--dim", "0"],
        ["--json", "no/such/folder/moe.json"],
    ],
)
def test_bad_options_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        moe_formulations.main(options)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--dim 48 --expert-dim 32 --formulations grouped,fused", "fused int8: blocks of 32 do not divide dim 48"),
        ("--dim 2048 --expert-dim 2048", "and 1.1 are free; name fewer by --formulations"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    options: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "fused" in options and not RUNS_INT4:
        pytest.skip("older than int4 needs")
    monkeypatch.setattr(moe_formulations, "available_bytes", lambda: 1 << 30)
    assert moe_formulations.main(["--experts", "8", *options.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_older_runtime_runs_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        __version__ = "1.22.1"

    monkeypatch.setattr(moe_formulations, "import_onnxruntime", Older)
    assert {each.precision for each in moe_formulations._asked_for(None)} == {"fp32", "int8-qdq"}
    with pytest.raises(BenchmarkError, match=r"fused int8 needs onnxruntime 1\.31, and this is 1\.22\.1"):
        moe_formulations._asked_for(["fused"])
