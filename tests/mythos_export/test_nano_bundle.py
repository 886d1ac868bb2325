"""The trained model through the whole product: exported by name, asked in words, measured on its task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import engines
from mythos_export.bundle import Bundle
from mythos_export.cli import main
from mythos_export.evaluate import evaluate
from mythos_export.records.measurements import Evaluation
from reference_model.open_mythos.nano.task import TRAINED_HOPS, generate

PROMPT = "d>a h>c a>h f>g c>e g>b b>d e>f 3 a"  # a -> h -> c -> e


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mythos-export", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, "--scale", "nano", "--loops", "dynamic") == 0
    return folder / "mythos-nano-fp32"


def test_it_needs_no_checkpoint_argument_and_is_proven(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.source["kind"] == "checkpoint"
    assert manifest.parity is not None
    assert manifest.parity.passed
    assert manifest.parity.max_error_over_range <= 1e-4
    assert {1, 2, 4, 8, 16} <= set(manifest.parity.loops)
    assert {"tokenizer.json", "parity.json", "config.json"} <= set(manifest.files)


@pytest.mark.parametrize(("loops", "right"), [("1", False), ("3", True), ("8", True)])
def test_it_answers_in_words_and_needs_its_loops(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loops: str, right: bool
) -> None:
    assert run(monkeypatch, "generate", str(bundle), "--prompt", PROMPT, "--loops", loops, "--max-new-tokens", "1") == 0
    assert (capsys.readouterr().out.strip() == "e") == right


def test_the_answer_halts_at_the_loop_that_has_it(bundle: Path) -> None:
    engine = engines.load(bundle)
    prompts = generate("test", 60, 3)
    depths = engine.halting_depth(prompts.ids, 16)
    assert depths[:, -1].tolist() == prompts.hops.tolist()
    assert len(np.unique(depths)) >= 5, "and other tokens halt elsewhere"


def test_evaluate_counts_per_k_and_loops_against_pytorch(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "evaluate", str(bundle), "--loops", "1,4,8", "--per-hop", "25", "--json") == 0
    result = Evaluation.model_validate(json.loads(capsys.readouterr().out))
    score = {(entry.hops, entry.loops): entry for entry in result.scores}
    assert result.differing == 0
    assert result.scores == result.reference
    assert all(score[hops, 8].accuracy >= 0.95 for hops in range(1, TRAINED_HOPS + 1))
    assert all(score[hops, 8].accuracy - score[hops, 1].accuracy >= 0.4 for hops in range(4, TRAINED_HOPS + 1))
    assert all(entry.low <= entry.accuracy <= entry.high for entry in result.scores)


def test_evaluate_sees_an_engine_that_answers_wrongly() -> None:
    def right(ids: np.ndarray, loops: int) -> np.ndarray:
        return np.full(len(ids), 2)

    def wrong(ids: np.ndarray, loops: int) -> np.ndarray:
        return np.full(len(ids), 3)

    result = evaluate(wrong, right, [1], per_hop=10, seed=0, precision="fp32", progress=lambda done: None)
    assert result.differing == 120
    assert result.scores != result.reference


def test_evaluate_refuses_another_models_vocabulary(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "evaluate", str(tiny_bundle)) == 2
    assert "not nano's vocabulary" in capsys.readouterr().err


def test_a_config_that_contradicts_the_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A depth that halts elsewhere fits every shape; the training checkpoint's own config knows better."""
    import torch

    from reference_model.checkpoint import open_checkpoint
    from reference_model.open_mythos import nano

    source = open_checkpoint(nano.CHECKPOINT)
    config = json.loads(nano.CONFIG.read_text())
    torch.save({"model": {name: source.read(name) for name in source.names()}, "cfg": config}, tmp_path / "nano.pt")
    (tmp_path / "other.json").write_text(json.dumps(config | {"act_threshold": 0.5}))
    arguments = ("--config", str(tmp_path / "other.json"), "--checkpoint", str(tmp_path / "nano.pt"))
    assert run(monkeypatch, *arguments, "--output", str(tmp_path / "out")) == 2
    assert "says act_threshold 0.99, not 0.5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_moved_package_still_verifies_nano(bundle: Path, tmp_path: Path) -> None:
    import shutil

    from mythos_export.parity.source import source_of_bundle

    shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    manifest["source"]["path"] = "/nowhere/model.safetensors"
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    _, source = source_of_bundle(Bundle.open(tmp_path / "copy"), None)
    assert source.describe()["sha256"] == manifest["source"]["sha256"]
