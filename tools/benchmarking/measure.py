"""All turns of a benchmark: load, agree, then every cell in rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mythos_export.parity.tolerances import TOLERANCES
from tools.benchmarking.contestants import Spec
from tools.benchmarking.memory import Memory
from tools.benchmarking.pairing import order_of_round
from tools.benchmarking.worker import BenchmarkError, Turn, Worker

__all__ = ["Agreement", "Cell", "Measurements", "Plan", "agreement", "measure", "mixed_depths"]

_CHECKED_PROMPT, _CHECKED_STEPS = 12, 3  # tokens, before anything is timed


class Plan(NamedTuple):
    """What is to be measured."""

    past: Sequence[int]
    loops: Sequence[int]
    prefill: Sequence[int]
    rounds: int
    steps: int  # timed in a turn; one more warms up
    batch: int  # sequences decoded at once; 0 for none
    vocab_size: int


class Cell(NamedTuple):
    """One thing that contestants are compared at.

    `alone` and `batch` belong together: each sequence of a batch of mixed depths by itself, and all at once.
    """

    kind: Literal["decode", "prefill", "alone", "batch"]
    tokens: int  # past ones; of a prefill, its own
    loops: int  # the deepest of a batch


class Agreement(NamedTuple):
    """How far logits are from the first contestant's."""

    error_over_range: float
    top1: float  # share of positions with the same best token


@dataclass
class Measurements:
    """All that was measured, by contestant."""

    turns: dict[Cell, dict[str, list[Turn]]] = field(default_factory=dict)
    loading: dict[str, dict[str, Any]] = field(default_factory=dict)
    checked: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict)  # by loops
    memory: dict[str, dict[Cell, tuple[int, Memory]]] = field(default_factory=dict)  # cache bytes held, and all memory
    peak: dict[str, Memory] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    # bytes a second out of memory, at the beginning of each round of decoding
    read_rates: dict[Cell, dict[str, list[float]]] = field(default_factory=dict)


def measure(
    groups: Sequence[Sequence[Spec]], gains: Any, plan: Plan, read_rate: Callable[[], float], found: Measurements
) -> None:
    """Measure group after group; the contestants of one are in memory together. Complete cells go into `found`.

    Args:
        read_rate: measures how fast this machine reads, now.

    Raises:
        BenchmarkError: a contestant cannot run, or in fp32 computes something else than the first one.
    """
    for group in groups:
        workers: dict[str, Worker] = {}
        try:
            for spec in group:
                workers[spec.name] = Worker(spec)
                _load(workers[spec.name], gains, plan, found)
            _cells(workers, {spec.name for spec in group if spec.kind == "bundle"}, plan, read_rate, found)
            if len(workers) > 1:  # alone, it had nobody to wait for
                found.idle |= {name: worker.ask("idle_share") for name, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()


def agreement(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> Agreement:
    """Compare logits [positions, vocab]."""
    extent = float(reference.max() - reference.min())
    error = float(np.abs(logits - reference).max())
    return Agreement(error / extent if extent else error, float(np.mean(logits.argmax(-1) == reference.argmax(-1))))


def mixed_depths(loops: Sequence[int], batch: int) -> list[int]:
    """A depth for each sequence, all depths in turn."""
    return [loops[index % len(loops)] for index in range(batch)]


def _load(worker: Worker, gains: Any, plan: Plan, found: Measurements) -> None:
    _say(f"load {worker.name}")
    found.loading[worker.name] = worker.ask("load", loops=plan.loops, gains=gains)
    draw = np.random.default_rng(0)
    ids = draw.integers(plan.vocab_size, size=_CHECKED_PROMPT).tolist()
    tokens = draw.integers(plan.vocab_size, size=_CHECKED_STEPS).tolist()
    for loops in plan.loops:
        logits = worker.ask("agree", ids=ids, tokens=tokens, loops=loops)
        found.checked.setdefault(loops, {})[worker.name] = logits
        if found.loading[worker.name]["precision"] == "fp32":
            _require_equal(worker.name, loops, found.checked[loops], found)


def _require_equal(name: str, loops: int, logits: dict[str, NDArray[np.float32]], found: Measurements) -> None:
    """Whoever computes something else cannot be compared by its speed; quantised models may differ, and it is said."""
    first = next(iter(logits))
    if found.loading[first]["precision"] != "fp32":
        return
    error = agreement(logits[name], logits[first]).error_over_range
    if not error <= TOLERANCES["fp32"].logits:  # NaN is no agreement either
        raise BenchmarkError(
            f"{name} differs from {first} at {loops} loops by {error:.1e} of the logits' range "
            f"(more than {TOLERANCES['fp32'].logits:.0e}): not the same model, so nothing was timed"
        )


def _cells(
    workers: dict[str, Worker], bundles: set[str], plan: Plan, read_rate: Callable[[], float], found: Measurements
) -> None:
    """All cells."""
    for past in plan.past:
        for loops in plan.loops:
            _decode(workers, Cell("decode", past, loops), plan, read_rate, found)
    for tokens in plan.prefill:
        for loops in plan.loops:
            _prefill(workers, Cell("prefill", tokens, loops), plan, found)
    for name, worker in workers.items():
        found.peak[name] = worker.ask("memory")
    if plan.batch:
        for past in plan.past:
            for name in sorted(bundles):
                _batch(workers[name], past, plan, found)


def _decode(
    workers: dict[str, Worker], cell: Cell, plan: Plan, read_rate: Callable[[], float], found: Measurements
) -> None:
    tokens = _tokens(plan, 1)
    rates: list[float] = []
    room = cell.tokens + len(tokens)
    held = {
        name: worker.ask("hold", key="one", past=cell.tokens, depths=[cell.loops], room=room)
        for name, worker in workers.items()
    }
    _rounds(workers, cell, plan, found, "decode", lambda: rates.append(read_rate()), key="one", tokens=tokens)
    found.read_rates.setdefault(cell, {}).update(dict.fromkeys(workers, rates))
    for name, worker in workers.items():
        memory = worker.ask("memory")
        if memory is not None:
            found.memory.setdefault(name, {})[cell] = held[name], memory
        worker.ask("drop")


def _prefill(workers: dict[str, Worker], cell: Cell, plan: Plan, found: Measurements) -> None:
    ids = np.random.default_rng(cell.tokens).integers(plan.vocab_size, size=cell.tokens).tolist()
    _rounds(workers, cell, plan, found, "prefill", lambda: None, ids=ids, loops=cell.loops)


def _rounds(
    workers: dict[str, Worker],
    cell: Cell,
    plan: Plan,
    found: Measurements,
    what: str,
    begin: Callable[[], None],
    **details: Any,
) -> None:
    """A round that warms up, then those that count, each after `begin`."""
    start = time.perf_counter()
    turns: dict[str, list[Turn]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.turn(what, **details)
    for index in range(plan.rounds):
        begin()
        for name in order_of_round(list(workers), index):
            turns[name].append(workers[name].turn(what, **details))
    found.turns.setdefault(cell, {}).update(turns)
    _say(f"{cell.kind}, {cell.tokens} tokens, {cell.loops} loops: {time.perf_counter() - start:.1f} s")


def _batch(worker: Worker, past: int, plan: Plan, found: Measurements) -> None:
    """Sequences of mixed depths at once, and each depth alone, in the same rounds."""
    depths = mixed_depths(plan.loops, plan.batch)
    batched = Cell("batch", past, max(depths))
    cells = {batched: depths} | {Cell("alone", past, loops): [loops] for loops in sorted(set(depths))}
    turns: dict[Cell, list[Turn]] = {cell: [] for cell in cells}
    for cell, held in cells.items():
        worker.ask("hold", key=_key(cell), past=past, depths=held, room=past + plan.steps + 1)
        worker.turn("decode", key=_key(cell), tokens=_tokens(plan, len(held)))
    order = {_key(cell): cell for cell in cells}
    for index in range(plan.rounds):
        for key in order_of_round(list(order), index):
            tokens = _tokens(plan, len(cells[order[key]]))
            turns[order[key]].append(worker.turn("decode", key=key, tokens=tokens))
    worker.ask("drop")
    for cell, of_cell in turns.items():
        found.turns.setdefault(cell, {})[worker.name] = of_cell
    _say(f"{worker.name}: {plan.batch} sequences at once, {past} past tokens")


def _key(cell: Cell) -> str:
    return f"{cell.kind} {cell.loops}"


def _tokens(plan: Plan, batch: int) -> NDArray[np.int64]:
    """[steps, batch], the same for everyone; the first step warms up."""
    return np.random.default_rng(1).integers(plan.vocab_size, size=(plan.steps + 1, batch))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
