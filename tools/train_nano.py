"""Train nano, the model that ships with this package, from a seed.

    python -m tools.train_nano
    python -m tools.train_nano --measure

Stop the first at any time and give it again: it goes on from the last checkpoint in `--work`, step for
step as if it had never stopped. At the end the model is written to `reference_model/nano/`. The second
measures what is there on the test split and prints the tables of the model card.

What makes hop chasing learnable in minutes is a loss at every depth: after loop t the hidden state of
the last token, read through the tied output head, is asked for f applied t times. Loops share their
weights, so each hop learned helps the next, and depth is added hop by hop. The halting probability is
taught to fire at loop k. The loss that counts in use, on the coda's logits after true ACT, is part
of the sum from the first step.

Shape letters: b batch, s sequence, d model dim, t loops, e experts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from reference_model.components.attention import visible_keys
from reference_model.components.moe import MixtureOfExperts, Routing
from reference_model.components.rope import rope_at
from reference_model.config import MythosConfig
from reference_model.nano import CHECKPOINT, CONFIG, TOKENIZER, task
from reference_model.open_mythos.blocks import mixture_sizes
from reference_model.open_mythos.cache import Cache
from reference_model.open_mythos.model import MythosModel
from reference_model.open_mythos.recurrent import LoopState

__all__ = ["CONFIG_NANO", "Recipe", "build_model", "build_tokenizer", "main", "measure", "tables", "train"]

CONFIG_NANO = MythosConfig(
    vocab_size=len(task.VOCABULARY),
    dim=128,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=64,
    max_loop_iters=8,
    prelude_layers=1,
    coda_layers=1,
    attn_type="mla",
    kv_lora_rank=64,
    q_lora_rank=64,
    qk_rope_head_dim=16,
    qk_nope_head_dim=32,
    v_head_dim=32,
    n_experts=8,
    n_shared_experts=1,
    n_experts_per_tok=2,
    expert_dim=32,
    act_threshold=0.99,
    rope_theta=10000.0,
    lora_rank=8,
    max_output_tokens=16,
)


@dataclass(frozen=True)
class Recipe:
    """How nano is trained; everything that decides the outcome, given the config."""

    seed: int = 0
    batch: int = 128
    learning_rate: float = 1e-3
    shared_rate: float = 0.1  # of the learning rate, for the shared expert: see `Trainer`
    warmup_steps: int = 100
    anneal_steps: int = 1000  # cosine decay, once every hop is learned
    max_grow_steps: int = 8000  # give up if the hops are not learned by then
    first_hops: int = 2  # largest k at the start; one more whenever the newest is mastered
    mastered: float = 0.9  # share of right answers, smoothed, at the newest hop
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    hop_loss: float = 1.0
    start_loss: float = 0.5
    halting_loss: float = 0.3
    bias_rate: float = 0.01  # router bias per step, follows the learning rate's schedule


class AllExperts(MixtureOfExperts):
    """The same function with every expert computed for every token: faster for experts this small."""

    def mix(self, tokens: Tensor, routing: Routing) -> Tensor:
        """[n, d] -> [n, d]."""
        experts: list[Any] = list(self.routed_experts)
        gate, up = (torch.cat([getattr(expert, name).weight for expert in experts]) for name in ("gate", "up"))
        down = torch.cat([expert.down.weight for expert in experts], dim=1)
        share = torch.zeros_like(routing.scores).scatter(-1, routing.experts, routing.weights)  # [n, e]
        inner = F.silu(tokens @ gate.T) * (tokens @ up.T)
        inner = (inner.unflatten(-1, (len(experts), -1)) * share.unsqueeze(-1)).flatten(-2)
        return inner @ down.T


class Passed(NamedTuple):
    """One training forward pass over prompts [b, s]."""

    logits: Tensor  # [b, vocab], the answer as the model gives it in use
    hidden: Tensor  # [b, 1 + t, d], last token: the prelude's output, then one per loop
    halting: Tensor  # [b, t], last token: logit of the halting probability
    load: Tensor  # [e], share of the routed tokens that went to each expert


class Losses(NamedTuple):
    """Parts of the loss, each a scalar."""

    answer: Tensor
    hops: Tensor
    start: Tensor
    halting: Tensor


@dataclass
class Progressed:
    """Where training stands; goes into the checkpoint beside model and optimizer."""

    step: int = 0
    hops: int = 0  # largest k asked for at present
    newest: float = 0.0  # smoothed accuracy at the newest hop
    anneal_from: int = -1  # step at which every hop was mastered; -1 before
    seconds: float = 0.0


def build_model(config: MythosConfig, seed: int) -> MythosModel:
    """A fresh model in training form: same parameters and names, all experts computed.

    The usual std of 0.02 suits wide models; at dim 128 it leaves the loop nearly silent, and nothing is
    learned for long. Attention of prelude and coda starts at zero, so that the first hop is learned by
    the loop, whose weights every later hop shares, and not by the layers around it.
    """
    torch.manual_seed(seed)
    model = MythosModel(config)
    model.recurrent.block.ffn = AllExperts(mixture_sizes(config))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for block in (*model.prelude, *model.coda):
        nn.init.zeros_(block.attn.wo.weight)
    nn.init.normal_(model.embed.weight, std=0.05)
    nn.init.normal_(model.recurrent.lora.scale.weight, std=1.0)
    nn.init.normal_(model.recurrent.lora.B, std=0.1)
    nn.init.zeros_(model.recurrent.act.halt.weight)
    nn.init.constant_(model.recurrent.act.halt.bias, -2.0)  # run deep until told to halt
    return model


def build_tokenizer() -> Tokenizer:
    """Word-level tokenizer of the task: splits at white space, ids as in `task.VOCABULARY`."""
    vocabulary = {word: index for index, word in enumerate(task.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def forward(model: MythosModel, ids: Tensor, loops: int) -> Passed:
    """What `MythosModel.forward` computes for unpadded prompts, and what the losses need besides."""
    batch, length = ids.shape
    rope = rope_at(torch.arange(length).expand(batch, length), model.rope_frequencies())
    visible = visible_keys(torch.ones_like(ids), length)
    past = Cache.empty(model.config, batch=batch, loops=loops)
    depths = torch.full((batch,), loops)
    encoded, _ = model._dense(model.prelude, model.embed(ids), rope, visible, past.prelude)
    state, hidden, halting, load = LoopState.start(encoded), [encoded[:, -1]], [], torch.zeros(model.config.n_experts)
    for loop in range(loops):
        rows = past.recurrent[0][loop], past.recurrent[1][loop]
        state, _, step = model.recurrent.step(state, encoded, torch.tensor(loop), depths, rope, visible, rows)
        hidden.append(step.hidden[:, -1])
        halting.append(model.recurrent.act.halt(step.hidden[:, -1]).squeeze(-1))
        load += torch.bincount(step.routing.experts.flatten(), minlength=len(load))
    out, _ = model._dense(model.coda, state.output, rope, visible, past.coda)
    return Passed(model.head(out[:, -1]), torch.stack(hidden, 1), torch.stack(halting, 1), load / load.sum())


def losses(model: MythosModel, passed: Passed, prompts: task.Prompts) -> Losses:
    """The answer, the symbol reached after each loop, the start before any, and when to halt."""
    hops, path, answer = (torch.as_tensor(part) for part in (prompts.hops, prompts.path, prompts.answer))
    loops = passed.halting.shape[1]
    reached = model.head(passed.hidden)  # [b, 1 + t, vocab]
    depth = torch.arange(1, loops + 1)
    due = (depth >= hops[:, None]).float()  # [b, t]
    told = depth <= hops[:, None] + 1  # later loops get no weight in the output any more
    return Losses(
        answer=F.cross_entropy(passed.logits, answer),
        hops=F.cross_entropy(reached[:, 1:].flatten(0, 1), path[:, 1 : loops + 1].flatten()),
        start=F.cross_entropy(reached[:, 0], path[:, 0]),
        halting=F.binary_cross_entropy_with_logits(passed.halting[told], due[told]),
    )


@torch.inference_mode()
def measure(model: MythosModel, prompts: task.Prompts, n_loops: int) -> dict[str, Any]:
    """Accuracy per k, and the halting depth over all tokens and at the answer's position."""
    out = model(torch.as_tensor(prompts.ids), n_loops, logits_to_keep=1)
    right = (out.logits[:, 0].argmax(-1).cpu().numpy() == prompts.answer).astype(float)
    depth, last = out.halting_depth.float(), out.halting_depth[:, -1].float()
    return {
        "accuracy": {int(k): float(right[prompts.hops == k].mean()) for k in sorted(set(prompts.hops.tolist()))},
        "depth_mean": float(depth.mean()),
        "depth_std": float(depth.std()),
        "answer_depth_mean": float(last.mean()),
        "answer_depth_std": float(last.std()),
    }


@torch.inference_mode()
def hop_accuracy(model: MythosModel, prompts: task.Prompts) -> list[float]:
    """How often the last token's hidden state names f applied t times after loop t, for t = 1..`MAX_HOPS`."""
    out = model(torch.as_tensor(prompts.ids), task.MAX_HOPS, logits_to_keep=1)
    named = torch.stack([model.head(step.hidden[:, -1]).argmax(-1) for step in out.trace], dim=1)
    return (named == torch.as_tensor(prompts.path[:, 1:])).float().mean(0).tolist()


class Trainer:
    """Model, optimizer and where training stands.

    The shared expert learns slower than the rest. At the same rate it does all the work of the loop's
    feed-forward, and a model without its routed experts still answers 98 %: routing would be idle.
    """

    def __init__(self, config: MythosConfig, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = build_model(config, recipe.seed)
        shared = list(self.model.recurrent.block.ffn.shared_experts.parameters())
        others = [p for p in self.model.parameters() if not any(p is each for each in shared)]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": recipe.weight_decay, "rate": 1.0},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
            {"params": shared, "weight_decay": recipe.weight_decay, "rate": recipe.shared_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        self.at = Progressed(hops=recipe.first_hops)

    @property
    def loops(self) -> int:
        """Depth of the next step: as deep as the hops ask for, the full depth once all are mastered."""
        return self.at.hops if self.at.anneal_from < 0 else self.model.config.max_loop_iters

    @property
    def done(self) -> bool:
        """Whether the annealing is over."""
        return self.at.anneal_from >= 0 and self.at.step >= self.at.anneal_from + self.recipe.anneal_steps

    def step(self) -> dict[str, Any]:
        """One optimizer step on fresh prompts; returns its figures.

        Raises:
            RuntimeError: the hops were not mastered within `max_grow_steps`.
        """
        at, recipe = self.at, self.recipe
        if at.anneal_from < 0 and at.step >= recipe.max_grow_steps:
            raise RuntimeError(f"{at.hops} hops not mastered after {at.step} steps: change the recipe or the seed")
        prompts = task.generate("train", recipe.batch, recipe.seed << 32 | at.step, (1, at.hops))
        factor = self._schedule()
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor * group["rate"]
        passed = forward(self.model, torch.as_tensor(prompts.ids), self.loops)
        parts = losses(self.model, passed, prompts)
        loss = (
            parts.answer
            + recipe.hop_loss * parts.hops
            + recipe.start_loss * parts.start
            + recipe.halting_loss * parts.halting
        )
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self._balance(passed.load, recipe.bias_rate * factor)
        self._grow(passed, prompts)
        at.step += 1
        figures = {f"loss_{name}": round(value.item(), 4) for name, value in parts._asdict().items()}
        load = [round(share, 3) for share in passed.load.tolist()]
        return {"loss": round(loss.item(), 4), **figures, "grad_norm": round(norm.item(), 3), "router_load": load}

    def _schedule(self) -> float:
        at, recipe = self.at, self.recipe
        if at.anneal_from < 0:
            return min(1.0, (at.step + 1) / recipe.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (at.step - at.anneal_from) / recipe.anneal_steps))

    @torch.no_grad()
    def _balance(self, load: Tensor, rate: float) -> None:
        """Aux-loss-free balancing (arXiv 2408.15664): an expert with too few tokens gains bias."""
        self.model.recurrent.block.ffn.router_bias += rate * torch.sign(load.mean() - load)

    @torch.no_grad()
    def _grow(self, passed: Passed, prompts: task.Prompts) -> None:
        """Ask for one hop more once the newest is mastered; then start annealing."""
        at = self.at
        if at.anneal_from >= 0:
            return
        newest = prompts.hops == at.hops
        if newest.any():
            right = passed.logits.argmax(-1).cpu().numpy() == prompts.answer
            at.newest += 0.05 * (float(right[newest].mean()) - at.newest)
        if at.newest < self.recipe.mastered:
            return
        if at.hops == task.TRAINED_HOPS:
            at.anneal_from = at.step + 1
        else:
            at.hops, at.newest = at.hops + 1, 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint; a crash leaves the one before."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "at": asdict(self.at),
            "recipe": asdict(self.recipe),
            "rng": torch.get_rng_state(),
        }
        beside = path.with_suffix(".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it was written by another recipe.
        """
        state = torch.load(path, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} was trained by another recipe ({state['recipe']}); choose another --work folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = Progressed(**state["at"])
        torch.set_rng_state(state["rng"].cpu())


def plain(model: MythosModel) -> MythosModel:
    """A copy in the reference's own form: what ships, and what is measured."""
    copy = MythosModel(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def train(trainer: Trainer, work: Path, every: int) -> Iterator[dict[str, Any]]:
    """Run to the end, saving and yielding a log record every `every` steps."""
    began = time.monotonic() - trainer.at.seconds
    validation = task.generate("validation", 600, seed=0)
    while not trainer.done:
        figures = trainer.step()
        at = trainer.at
        if at.step % every and not trainer.done:
            continue
        at.seconds = time.monotonic() - began
        trainer.save(work / "checkpoint.pt")
        measured = measure(plain(trainer.model), validation, trainer.model.config.max_loop_iters)
        yield {**asdict(at), "loops": trainer.loops, **figures, **measured}


def tables(folder: Path) -> str:
    """Figures of the model in a folder, as Markdown.

    Accuracy per k and number of loops with the depth at which the answer's token halts, then how often
    the hidden state of the last token names the right symbol after each loop, halted or not. On 400 test
    prompts per k, up to the largest k that has a word.
    """
    model = MythosModel(MythosConfig.from_file(folder / CONFIG.name))
    model.load_state_dict(load_file(folder / CHECKPOINT.name))
    prompts = [task.generate("test", 400, seed=k, hops=(k, k)) for k in range(1, task.MAX_HOPS + 1)]
    depths = (1, 2, 3, 4, 5, 6, 8, 12, 16)
    lines = ["| k | " + " | ".join(f"{loops} loops" for loops in depths) + " | halting depth at 16 |"]
    lines.append("|---" * (len(depths) + 2) + "|")
    for k, batch in enumerate(prompts, start=1):
        figures = [measure(model.eval(), batch, loops) for loops in depths]
        accuracy = " | ".join(f"{100 * each['accuracy'][k]:.1f}" for each in figures)
        halting = f"{figures[-1]['answer_depth_mean']:.2f} ± {figures[-1]['answer_depth_std']:.2f}"
        lines.append(f"| {k} | {accuracy} | {halting} |")
    named = [f"{100 * share:.1f}" for share in hop_accuracy(model, prompts[task.TRAINED_HOPS - 1])]
    lines += ["", "| loop | " + " | ".join(str(loop) for loop in range(1, len(named) + 1)) + " |"]
    lines += ["|---" * (len(named) + 1) + "|", "| symbol named | " + " | ".join(named) + " |"]
    return "\n".join(lines)


def export(model: MythosModel, folder: Path) -> None:
    """Write checkpoint, config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    (folder / CHECKPOINT.name).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG.name).write_text(model.config.to_json(), encoding="utf-8")
    build_tokenizer().save(str(folder / TOKENIZER.name))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--measure", action="store_true", help="train nothing; print the figures of the model in --output"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/nano"), help="folder of the checkpoint and log.jsonl")
    parser.add_argument("--output", type=Path, default=CHECKPOINT.parent, help="folder of the trained model")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--anneal-steps", type=int, default=Recipe.anneal_steps)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (faster; not yet run on hardware)")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints and log records")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, or go on training, and write the model; or measure it."""
    options = parse(arguments)
    if options.measure:
        print(tables(options.output))
        return
    torch.set_default_device(options.device)
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed=options.seed, learning_rate=options.learning_rate, anneal_steps=options.anneal_steps)
    trainer = Trainer(CONFIG_NANO, recipe)
    if (options.work / "checkpoint.pt").exists():
        trainer.load(options.work / "checkpoint.pt")
    with (options.work / "log.jsonl").open("a", encoding="utf-8") as log, Progress(*_columns()) as progress:
        bar = progress.add_task("learning hops", total=None, completed=trainer.at.step)
        for record in train(trainer, options.work, options.every):
            print(json.dumps(record), file=log, flush=True)
            total = record["anneal_from"] + recipe.anneal_steps if record["anneal_from"] >= 0 else None
            progress.update(bar, completed=record["step"], total=total, description=_describe(record))
            if not progress.console.is_terminal:
                print(f"step {record['step']}: {_describe(record)}", flush=True)
    export(plain(trainer.model), options.output)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _describe(record: dict[str, Any]) -> str:
    phase = "annealing" if record["anneal_from"] >= 0 else f"{record['hops']} hops"
    return f"{phase}, loss {record['loss']:.3f}, accuracy per k: " + " ".join(
        f"{share:.0%}" for share in record["accuracy"].values()
    )


if __name__ == "__main__":
    main()
