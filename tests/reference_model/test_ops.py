"""Components compute by the operations they are given, and follow another run where they are asked to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from eventful import eventful_
from torch import Tensor

from reference_model.components.component import Component, Linear, use_ops
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import MythosModel, Trajectory
from reference_model.open_mythos.recurrent import Decisions
from reference_model.ops import TorchOps

IDS = torch.arange(14).reshape(2, 7)


class Noted(TorchOps):
    """Notes who calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def linear(self, layer: Linear, x: Tensor) -> Tensor:
        self.called.append(layer.name)
        return super().linear(layer, x)

    def enter_loop(self, index: int) -> None:
        self.called.append(index)


@pytest.fixture(params=["mla", "gqa"])
def model(request: pytest.FixtureRequest, mla_config: MythosConfig) -> MythosModel:
    model = MythosModel(replace(mla_config, attn_type=request.param)).requires_grad_(False)
    eventful_(model, 3)
    return model


def test_every_linear_layer_goes_by_its_name(model: MythosModel) -> None:
    ops = Noted()
    use_ops(model, ops)(IDS, 2)
    by_name = {name for name, module in model.named_modules() if isinstance(module, Linear)}
    names = {call for call in ops.called if isinstance(call, str)}
    absorbed = {name for name in by_name if name.endswith("kv_up")}  # an operand of attention, not a layer of its own
    routed = {name for name in by_name if "routed_experts" in name}
    assert by_name - absorbed - routed <= names <= by_name
    assert names & routed


def test_a_loop_is_announced_before_it_is_computed(model: MythosModel) -> None:
    ops = Noted()
    use_ops(model, ops)(IDS, 3)
    assert [call for call in ops.called if isinstance(call, int)] == [0, 1, 2]
    first = next(place for place, call in enumerate(ops.called) if str(call).startswith("recurrent."))
    assert 0 in ops.called[:first]


def test_models_do_not_share_their_operations(model: MythosModel) -> None:
    use_ops(model, Noted())
    other = MythosModel(model.config)
    assert not any(isinstance(module.ops, Noted) for module in other.modules() if isinstance(module, Component))


def test_rows_are_rounded_before_they_are_attended_to(model: MythosModel) -> None:
    plain = model(IDS, 2)
    rounded = use_ops(model, TorchOps(torch.float16))(IDS, 2)
    for stage in ("prelude", "recurrent", "coda"):
        for rows in getattr(rounded.rows, stage):
            assert torch.equal(rows, rows.half().float())
    assert not torch.equal(plain.rows.recurrent[0], rounded.rows.recurrent[0])
    assert 0 < (plain.logits - rounded.logits).abs().max() < 0.1 * plain.logits.abs().max()


def followed(run: Trajectory) -> list[Decisions]:
    starts = [None, *(step.hidden for step in run.trace[:-1])]
    return [Decisions(start, step.routing.experts) for start, step in zip(starts, run.trace)]


class TestFollow:
    def test_a_run_of_its_own_changes_nothing(self, model: MythosModel) -> None:
        run = model(IDS, 4)
        again = model(IDS, 4, follow=followed(run))
        assert torch.equal(run.logits, again.logits)
        assert torch.equal(run.halting_depth, again.halting_depth)

    def test_other_experts_are_mixed_and_its_own_choice_is_told(self, model: MythosModel) -> None:
        run = model(IDS, 2)
        told = [step._replace(experts=(step.experts + 1) % model.config.n_experts) for step in followed(run)]
        other = model(IDS, 2, follow=told)
        assert torch.equal(other.trace[0].routing.experts, run.trace[0].routing.experts)
        assert not torch.allclose(other.trace[0].hidden, run.trace[0].hidden)

    def test_every_loop_starts_where_the_other_run_was(self, model: MythosModel) -> None:
        run = model(IDS, 3)
        told = followed(run)
        assert told[1].start is not None
        told[1] = told[1]._replace(start=told[1].start * 2)
        other = model(IDS, 3, follow=told)
        assert torch.equal(other.trace[0].hidden, run.trace[0].hidden)
        assert not torch.allclose(other.trace[1].hidden, run.trace[1].hidden)
        assert torch.equal(other.trace[2].hidden, run.trace[2].hidden)

    def test_a_shorter_run_cannot_be_followed(self, model: MythosModel) -> None:
        with pytest.raises(ValueError, match="n_loops 3 exceeds the 2 loops of the run to follow"):
            model(IDS, 3, follow=followed(model(IDS, 2)))
