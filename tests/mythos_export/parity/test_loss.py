"""What quantising may cost: measures that no offset of all logits hides or feigns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mythos_export.parity.compare import Flip, _flip_failures, measure_logits
from mythos_export.parity.loss import Loss, loss_failures, loss_warnings
from mythos_export.parity.tolerances import TOLERANCES


def logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((12, 50)) * scale).astype(np.float32)


def loss_of(original: np.ndarray, changed: np.ndarray) -> Loss:
    values: dict[str, Any] = measure_logits(original, changed, top1_margin=0.0)
    names = ("relative_error", "error_over_range", "cosine", "kl", "top1_agreement")
    return Loss(loops=4, halting_agreement=1.0, depths=[], **{name: values[name] for name in names})


def test_another_model_behind_a_large_offset_is_refused() -> None:
    offset = np.float32(500.0)
    loss = loss_of(logits(0) + offset, logits(1) + offset)
    assert loss.kl > 1 and loss.top1_agreement < 0.5 and loss.relative_error > 1
    (failure,) = loss_failures([loss])
    assert "at 4 loops" in failure and "nats from the original's" in failure and "this is another model" in failure


def test_an_offset_of_every_logit_is_no_loss() -> None:
    original = logits(0)
    loss = loss_of(original, original * 1.001 + np.float32(80.0))
    assert loss.kl < 4e-3 and loss.top1_agreement == 1 and loss.relative_error < 0.01
    assert not loss_failures([loss]) and not loss_warnings([loss])


def test_a_model_that_answers_nothing_is_refused() -> None:
    assert loss_failures([loss_of(logits(0), np.zeros_like(logits(0)))])
    assert loss_failures([loss_of(logits(0, scale=0.3), np.zeros_like(logits(0)))]), "with little to lose too"


def test_what_is_no_number_is_refused() -> None:
    assert loss_failures([loss_of(logits(0), logits(0) * np.float32("nan"))])


def test_a_user_is_told_of_what_they_will_notice() -> None:
    original = logits(0)
    loss = loss_of(original, original + 0.25 * logits(1))
    assert 0.1 <= loss.kl < 1
    assert not loss_failures([loss])
    (warning,) = loss_warnings([loss])
    assert warning.startswith("warning: at 4 loops") and "--keep auto" in warning


def test_tokens_that_are_nearly_tied_may_change_places() -> None:
    original = np.zeros((12, 50), np.float32)
    loss = loss_of(original + 1e-4 * logits(0), original + 1e-4 * logits(1))
    assert loss.top1_agreement < 0.5
    assert not loss_warnings([loss_of(original + 1e-4 * logits(0), original + 1e-4 * (logits(0) + 0.1 * logits(1)))])


class TestFlips:
    """A decision that differs is a fault unless it is a near-tie, or stands behind one."""

    TOLERANCE = TOLERANCES["fp32"]

    def failures(self, *flips: Flip, guided: bool = False) -> list[str]:
        return _flip_failures(list(flips), self.TOLERANCE, guided=guided)

    def flip(self, position: int, depth: int, margin: float, *, sequence: int = 0, kind: str = "router") -> Flip:
        return Flip(kind=kind, sequence=sequence, position=position, depth=depth, margin=margin)

    def test_what_a_near_tie_reaches_is_excused(self) -> None:
        tie = self.flip(2, 6, 1e-5)
        assert not self.failures(tie, self.flip(2, 7, 0.3), self.flip(6, 16, 0.3), self.flip(3, 6, 0.3, kind="halting"))

    @pytest.mark.parametrize(("position", "depth", "sequence"), [(1, 16, 0), (6, 6, 0), (6, 5, 0), (6, 16, 1)])
    def test_what_it_cannot_reach_is_not(self, position: int, depth: int, sequence: int) -> None:
        wrong = self.flip(position, depth, 0.3, sequence=sequence)
        (failure,) = self.failures(self.flip(2, 6, 1e-5), wrong)
        assert "1 router decisions differ that are no near-tie" in failure

    def test_a_clear_decision_excuses_nothing(self) -> None:
        assert self.failures(self.flip(2, 6, 0.3), self.flip(6, 16, 0.3))

    def test_halting_reaches_no_router(self) -> None:
        assert self.failures(self.flip(2, 6, 1e-5, kind="halting"), self.flip(6, 16, 0.3))

    def test_where_pytorch_follows_the_graph_nothing_reaches_anything(self) -> None:
        assert self.failures(self.flip(2, 6, 1e-5), self.flip(6, 16, 0.3), guided=True)
