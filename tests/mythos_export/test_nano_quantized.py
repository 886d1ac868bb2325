"""What quantising costs the trained model on its task: the bounds we promise, and that breaking them shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mythos_export.bundle import Bundle
from mythos_export.cli import main
from mythos_export.evaluate import evaluate, failure
from mythos_export.records.measurements import Evaluation, Score

TRAINED_LOOPS = "1,2,3,4,5,6,7,8"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mythos-export", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, "--scale", "nano", "--loops", "dynamic", "--precision", "int8") == 0
    return folder / "mythos-nano-int8"


def test_the_bundle_says_what_ranges_it_was_made_with_and_what_stayed(int8: Path) -> None:
    record = Bundle.open(int8).manifest.quantization
    assert record is not None
    assert {"recurrent.block.ffn.router*", "recurrent.act.*", "recurrent.lora.*", "*norm"} <= set(record.kept)
    assert sum(record.kernels.values()) == 53
    recipe = json.loads((int8 / "recipe.json").read_text())
    ranges = recipe["activations"]["recurrent.block.ffn.shared_experts.0.down.input"]
    assert recipe["depths"] == len(ranges["limit"]) == 8
    assert recipe["data"] == "nano's task, train split, seed 0"
    assert all(
        -limit <= low <= high <= limit for low, high, limit in zip(*(ranges[k] for k in ("low", "high", "limit")))
    )


def test_the_cost_is_measured_to_twice_the_trained_depth(int8: Path) -> None:
    loss = json.loads((int8 / "parity.json").read_text())["loss"]
    assert {1, 2, 4, 8, 16} <= {entry["loops"] for entry in loss}
    deepest = loss[-1]["depths"]
    assert [entry["depth"] for entry in deepest] == list(range(1, 17))
    assert all(0 < entry["hidden_error"] < 0.5 and entry["router_agreement"] >= 0.5 for entry in deepest)


def test_a_quarter_of_the_bytes(int8: Path) -> None:
    weights = (int8 / "model.onnx.data").stat().st_size
    assert weights < 0.45 * 459_850 * 4, "small tensors stay in float, and every one is aligned to a page"


def test_int8_still_solves_the_task(
    int8: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "evaluate", str(int8), "--loops", "8", "--per-hop", "25", "--json") == 0
    result = Evaluation.model_validate(json.loads(capsys.readouterr().out))
    assert all(score.accuracy >= 0.95 for score in result.scores if score.hops <= 6)


@pytest.mark.dear
@pytest.mark.parametrize(
    ("precision", "target", "points"),
    [
        ("int8", "portable", 1),
        ("int8", "onnxruntime", 1),
        ("fp8", "portable", 1),
        ("int4", "portable", 3),
        ("int4", "onnxruntime", 3),
    ],
)
def test_accuracy_at_every_loop_count_up_to_the_trained_depth(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    target: str,
    points: float,
) -> None:
    output = str(tmp_path / "nano")
    assert run(monkeypatch, "--scale", "nano", "--precision", precision, "--target", target, "--output", output) == 0
    capsys.readouterr()
    assert run(monkeypatch, "evaluate", output, "--loops", TRAINED_LOOPS, "--json") == 0
    result = Evaluation.model_validate(json.loads(capsys.readouterr().out))
    lost = result.points_lost()
    assert sorted(lost) == list(range(1, 9))
    assert all(abs(value) <= points for value in lost.values()), lost


def evaluation(precision: str, correct: int, loops: int) -> Evaluation:
    """Out of 200 answers of which PyTorch has 150 right."""

    def score(right: int) -> Score:
        return Score(hops=1, loops=loops, correct=right, total=200, low=0.0, high=1.0)

    return Evaluation(
        precision=precision,
        prompts=200,
        trained_hops=6,
        loops=[loops],
        scores=[score(correct)],
        reference=[score(150)],
        differing=abs(150 - correct),
    )


@pytest.mark.parametrize(
    ("precision", "correct", "loops", "fails"),
    [
        ("int8", 148, 8, False),
        ("int8", 147, 8, True),
        ("int8", 153, 8, True),
        ("int8", 100, 9, False),  # beyond the trained depth nothing is promised
        ("int4", 145, 8, False),
        ("int4", 143, 8, True),
        ("fp32", 150, 8, False),
        ("fp32", 149, 8, True),
        ("fp16", 140, 8, False),
    ],
)
def test_a_bundle_that_costs_too_much_fails(precision: str, correct: int, loops: int, fails: bool) -> None:
    assert (failure(evaluation(precision, correct, loops), trained_loops=8) is not None) == fails


def test_without_pytorch_nothing_is_held_against_it() -> None:
    result = evaluate(
        lambda ids, loops: ids[:, 0], None, [1], per_hop=2, seed=0, precision="int8", progress=lambda _: None
    )
    assert result.points_lost() == {}
    assert failure(result, trained_loops=8) is None
