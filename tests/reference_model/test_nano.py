"""The task nano is trained on, its training, and the trained model that ships."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from reference_model.config import MythosConfig
from reference_model.nano import CHECKPOINT, CONFIG, MODEL_CARD, TOKENIZER, task
from reference_model.open_mythos.model import MythosModel
from tools import train_nano

SEEDS = st.integers(0, 2**32)
SPLIT_NAMES = st.sampled_from(task.SPLITS)


def chase(text: str) -> list[str]:
    """Symbols visited by a prompt's k hops, found by reading its words: the independent oracle."""
    *pairs, hops, symbol = text.split()
    mapping = dict(pair.split(">") for pair in pairs)
    visited = [symbol]
    for _ in range(int(hops)):
        visited.append(mapping[visited[-1]])
    return visited


# The task.


@settings(deadline=None, max_examples=50)
@given(split=SPLIT_NAMES, seed=SEEDS, hops=st.integers(1, task.MAX_HOPS))
def test_answer_is_the_symbol_reached(split: str, seed: int, hops: int) -> None:
    prompts = task.generate(split, 20, seed, (1, hops))
    for row, text in enumerate(prompts.texts()):
        visited = chase(text)
        assert task.VOCABULARY[prompts.answer[row]] == visited[-1]
        assert [task.VOCABULARY[index] for index in prompts.path[row, : len(visited)]] == visited
        assert len(visited) - 1 == prompts.hops[row] <= hops


@settings(deadline=None, max_examples=25)
@given(split=SPLIT_NAMES, seed=SEEDS)
def test_each_mapping_is_one_ring(split: str, seed: int) -> None:
    for text in task.generate(split, 20, seed, (8, 8)).texts():
        visited = chase(text)
        assert visited[0] == visited[-1]
        assert set(visited) == set(task.SYMBOLS)


@settings(deadline=None, max_examples=25)
@given(split=SPLIT_NAMES, seed=SEEDS, count=st.integers(0, 300))
def test_a_seed_fixes_the_prompts(split: str, seed: int, count: int) -> None:
    first, again = task.generate(split, count, seed), task.generate(split, count, seed)
    assert len(first) == count
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.path, again.path)


def test_prompts_never_change() -> None:
    """Figures in the model card name seeds: these prompts must stay what they are."""
    assert list(task.generate("test", 2, seed=0).texts()) == PINNED


PINNED = ["g>f d>e a>c h>a e>g b>h f>b c>d 3 a", "c>h d>a g>b f>c e>f a>e b>d h>g 6 b"]


def test_another_seed_gives_other_prompts() -> None:
    assert not np.array_equal(task.generate("test", 50, 1).ids, task.generate("test", 50, 2).ids)


def test_splits_never_share_a_mapping() -> None:
    seen = [{tuple(row) for row in task.generate(split, 60_000, seed=3).mapping.tolist()} for split in task.SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert sum(len(split) for split in seen) == 5040  # every ring there is, 7!, each in one split
    assert len(seen[0]) > 3800
    assert min(len(seen[1]), len(seen[2])) > 400


def test_split_depends_on_the_mapping_alone() -> None:
    prompts = task.generate("test", 500, seed=4)
    assert (task.split_of(prompts.mapping) == task.SPLITS.index("test")).all()


def test_hops_and_answers_are_balanced() -> None:
    prompts = task.generate("train", 60_000, seed=5)
    for values in (prompts.hops, prompts.answer, prompts.ids[:, 0]):
        counts = np.unique(values, return_counts=True)[1]
        assert counts.min() > 0.9 * counts.mean()


def test_no_fewer_hops_give_the_answer() -> None:
    prompts = task.generate("test", 2000, seed=6, hops=(1, 7))
    for row, k in enumerate(prompts.hops):
        assert prompts.answer[row] not in prompts.path[row, :k]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 1, 0), "unknown split 'dev'"),
        (("test", -1, 0), "count is -1"),
        (("test", 1, 0, (0, 3)), "hops are 0..3"),
        (("test", 1, 0, (1, 13)), "hops are 1..13"),
        (("test", 1, 0, (4, 3)), "hops are 4..3"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task.generate(*arguments)


def test_task_needs_no_torch() -> None:
    code = "import sys, reference_model.nano.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The tokenizer.


def test_tokenizer_gives_the_ids_of_the_task() -> None:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    prompts = task.generate("test", 200, seed=7, hops=(1, task.MAX_HOPS))
    for text, ids in zip(prompts.texts(), prompts.ids.tolist(), strict=True):
        assert tokenizer.encode(text).ids == ids
        assert tokenizer.decode(ids) == text
        assert task.encode(text).tolist() == ids


def test_every_word_has_its_id() -> None:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    assert tokenizer.get_vocab() == {word: index for index, word in enumerate(task.VOCABULARY)}
    for index, word in enumerate(task.VOCABULARY):
        assert tokenizer.encode(word).ids == [index]
    unknown = task.VOCABULARY.index("<unk>")
    assert tokenizer.encode("zebra  a").ids == task.encode("zebra  a").tolist() == [unknown, task.encode("a")[0]]


# The model that ships.


@cache
def shipped() -> MythosModel:
    model = MythosModel(MythosConfig.from_file(CONFIG))
    model.load_state_dict(load_file(CHECKPOINT))
    return model.eval()


@cache
def prompts_and_answers(n_loops: int) -> tuple[task.Prompts, np.ndarray, np.ndarray]:
    """Test prompts, whether each is answered rightly at that depth [b], halting depth [b, s]."""
    prompts = task.generate("test", 600, seed=8)
    with torch.inference_mode():
        out = shipped()(torch.from_numpy(prompts.ids), n_loops, logits_to_keep=1)
    return prompts, out.logits[:, 0].argmax(-1).numpy() == prompts.answer, out.halting_depth.numpy()


def trained_depth() -> int:
    return shipped().config.max_loop_iters


def test_shipped_files_are_small_and_whole() -> None:
    assert CHECKPOINT.stat().st_size <= 10 * 2**20
    assert MODEL_CARD.read_text(encoding="utf-8").startswith("# nano")
    assert all(tensor.dtype == torch.float32 for tensor in load_file(CHECKPOINT).values())
    assert shipped().config.vocab_size == len(task.VOCABULARY)


def test_model_exercises_everything() -> None:
    config = shipped().config
    assert config.attn_type == "mla"
    assert config.n_experts >= 8
    assert (config.n_experts_per_tok, config.n_shared_experts) == (2, 1)
    assert (config.prelude_layers, config.coda_layers) == (1, 1)
    assert shipped().recurrent.block.ffn.router_bias.abs().min() > 0


def test_every_trained_k_is_answered() -> None:
    prompts, right, _ = prompts_and_answers(trained_depth())
    for k in range(1, task.TRAINED_HOPS + 1):
        assert right[prompts.hops == k].mean() >= 0.95, f"k = {k}"


def test_depth_is_needed() -> None:
    prompts, deep, _ = prompts_and_answers(trained_depth())
    _, shallow, _ = prompts_and_answers(1)
    for k in range(4, task.TRAINED_HOPS + 1):
        rows = prompts.hops == k
        assert deep[rows].mean() - shallow[rows].mean() >= 0.4, f"k = {k}"


def test_halting_varies_between_tokens_and_follows_k() -> None:
    prompts, _, depth = prompts_and_answers(trained_depth())
    assert depth.std() > 0.5
    assert len(np.unique(depth[:, :-1])) > 1  # between the pairs too
    per_k = [depth[prompts.hops == k, -1].mean() for k in range(1, task.TRAINED_HOPS + 1)]
    assert (np.diff(per_k) > 0).all()


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        (r"lora\.scale\.weight", lambda rows: rows.roll(1, 0)),  # each depth reads its neighbour's row
        (r"router\.weight", torch.zeros_like),  # every token goes to the same experts
        (r"routed_experts\.\d\.down\.weight", torch.zeros_like),
        (r"shared_experts\.\d\.down\.weight", torch.zeros_like),
        (r"act\.halt\.weight", torch.zeros_like),
    ],
)
def test_each_part_matters(part: str, damage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A wrong depth row, expert or halting costs answers, so an export that gets one wrong shows."""
    model = MythosModel(shipped().config)
    tensors = load_file(CHECKPOINT)
    damaged = {name: damage(value) for name, value in tensors.items() if re.search(part, name)}
    assert damaged
    model.load_state_dict(tensors | damaged)
    prompts, right, _ = prompts_and_answers(trained_depth())
    with torch.inference_mode():
        out = model.eval()(torch.from_numpy(prompts.ids), trained_depth(), logits_to_keep=1)
    assert right.mean() - (out.logits[:, 0].argmax(-1).numpy() == prompts.answer).mean() > 0.05


# Its training, on a small scale.


def trainer() -> train_nano.Trainer:
    return train_nano.Trainer(train_nano.CONFIG_NANO, train_nano.Recipe(batch=8, anneal_steps=2))


def test_training_forward_is_the_model() -> None:
    """The losses see what the reference computes: same logits, hidden states and router load."""
    model = trainer().model
    ids = torch.from_numpy(task.generate("train", 16, seed=0).ids)
    passed, out = train_nano.forward(model, ids, loops=3), train_nano.plain(model)(ids, 3)
    torch.testing.assert_close(passed.logits, out.logits[:, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(passed.hidden[:, 3], out.trace[2].hidden[:, -1], rtol=1e-4, atol=1e-4)
    chosen = torch.cat([step.routing.experts.flatten() for step in out.trace])
    torch.testing.assert_close(passed.load, torch.bincount(chosen, minlength=8) / len(chosen))


def test_training_resumes_step_for_step(tmp_path: Path) -> None:
    straight, first, second = trainer(), trainer(), trainer()
    figures = [straight.step() for _ in range(4)]
    first.step()
    first.step()
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    assert [second.step(), second.step()] == figures[2:]
    assert second.at == straight.at


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer().save(tmp_path / "checkpoint.pt")
    other = train_nano.Trainer(train_nano.CONFIG_NANO, train_nano.Recipe(batch=9))
    with pytest.raises(ValueError, match="another recipe"):
        other.load(tmp_path / "checkpoint.pt")


def test_export_reads_back(tmp_path: Path) -> None:
    model = train_nano.plain(trainer().model)
    train_nano.export(model, tmp_path)
    assert MythosConfig.from_file(tmp_path / CONFIG.name) == model.config
    tensors = load_file(tmp_path / CHECKPOINT.name)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
