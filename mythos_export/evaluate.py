"""Accuracy of a bundle on the task its model was trained for, per number of hops and per loop count.

The prompts are nano's test split, which training never saw; PyTorch answers the same ones, so what
the export costs is counted prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mythos_export.bundle import Bundle, BundleError
from mythos_export.commands.output import text_table
from mythos_export.records.measurements import Evaluation, Score
from reference_model.open_mythos.nano.task import MAX_HOPS, TRAINED_HOPS, VOCABULARY, Prompts, generate

__all__ = ["Answers", "check_task", "evaluate", "failure", "render"]

_BATCH = 100
_POINTS = {"int8": 1.0, "fp8": 1.0, "int4": 3.0}  # of accuracy that quantising may cost
_Z = 1.959964  # 95 % two-sided

Answers = Callable[[NDArray[np.int64], int], NDArray[np.int64]]  # ids [b, s], loops -> token id [b]


def failure(evaluation: Evaluation, trained_loops: int) -> str | None:
    """What is wrong with these answers, held against PyTorch's, up to the depth the model was trained for."""
    if evaluation.precision == "fp32":
        return f"{evaluation.differing} answers differ from PyTorch's" if evaluation.differing else None
    bound = _POINTS.get(evaluation.precision, math.inf)
    for count, lost in evaluation.points_lost().items():
        if count <= trained_loops and abs(lost) > bound:
            return f"{lost:+.2f} points at {count} loops; {evaluation.precision} may be {bound:g} off"
    return None


def check_task(bundle: Bundle) -> None:
    """Make sure that a bundle's model speaks the task's vocabulary.

    Raises:
        BundleError: it does not.
    """
    if bundle.manifest.limits.vocab_size != len(VOCABULARY) or "tokenizer.json" not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: not nano's vocabulary; evaluate knows the task that nano was trained on")


def evaluate(
    answers: Answers,
    reference: Answers | None,
    loops: Sequence[int],
    *,
    per_hop: int,
    seed: int,
    precision: str,
    progress: Callable[[int], None],
) -> Evaluation:
    """Ask a bundle, and PyTorch, the same test prompts.

    Args:
        per_hop: prompts for each k in 1..12.
        progress: called with the number of prompts just answered.
    """
    prompts = [generate("test", per_hop, seed, (hops, hops)) for hops in range(1, MAX_HOPS + 1)]
    scores, reference_scores, differing = [], [], 0
    for count in loops:
        for asked in prompts:
            got = _ask(answers, asked, count, progress)
            scores.append(_score(got, asked, count))
            if reference is not None:
                wanted = _ask(reference, asked, count, progress)
                reference_scores.append(_score(wanted, asked, count))
                differing += int((got != wanted).sum())
    return Evaluation(
        precision=precision,
        prompts=per_hop * MAX_HOPS,
        trained_hops=TRAINED_HOPS,
        loops=list(loops),
        scores=scores,
        reference=reference_scores,
        differing=differing if reference is not None else None,
    )


def _ask(answers: Answers, prompts: Prompts, loops: int, progress: Callable[[int], None]) -> NDArray[np.int64]:
    given = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts.ids[start : start + _BATCH]
        given.append(answers(batch, loops))
        progress(len(batch))
    return np.concatenate(given)


def _score(given: NDArray[np.int64], prompts: Prompts, loops: int) -> Score:
    correct, total = int((given == prompts.answer).sum()), len(prompts)
    low, high = _wilson(correct, total)
    return Score(hops=int(prompts.hops[0]), loops=loops, correct=correct, total=total, low=low, high=high)


def _wilson(correct: int, total: int) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), which holds at 0 and 1 too."""
    share, spread = correct / total, _Z * _Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def render(evaluation: Evaluation) -> str:
    """A table: a row per k, a column per loop count, accuracy in % with its interval."""
    scores = {(score.hops, score.loops): score for score in evaluation.scores}
    rows = [
        [
            str(hops),
            *(_cell(scores[hops, loops]) for loops in evaluation.loops),
            "(beyond training)" if hops > evaluation.trained_hops else "",
        ]
        for hops in sorted({score.hops for score in evaluation.scores})
    ]
    head = ["k", *(f"{loops} loops" for loops in evaluation.loops), ""]
    title = f"accuracy in % [95 % interval] on {evaluation.prompts} test prompts, {evaluation.precision}"
    lines = [title, text_table(head, rows, left=())]
    if evaluation.differing is not None:
        asked = evaluation.prompts * len(evaluation.loops)
        lines.append(f"answers that differ from PyTorch's: {evaluation.differing} of {asked}")
    if any(evaluation.points_lost().values()):
        costs = "  ".join(f"{count} loops {0.0 - points:+.2f}" for count, points in evaluation.points_lost().items())
        lines.append(f"accuracy over k = 1..{evaluation.trained_hops} less PyTorch's, in points: {costs}")
    return "\n".join(lines)


def _cell(score: Score) -> str:
    return f"{100 * score.accuracy:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
