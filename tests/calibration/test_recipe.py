"""A recipe travels as a file, and comes from anywhere: what opens is complete and finite, all else is one line."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.errors import CalibrationError
from calibration.recipe import ActivationRange, Recipe
from mythos_export.records.files import InputFileError
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

DEPTHS = 3
SMALLEST, LARGEST = 1e-30, 1e30


def range_of(*limits: float) -> ActivationRange:
    return ActivationRange(feeds=["a"], low=[-limit for limit in limits], high=list(limits), limit=list(limits))


RECIPE = Recipe(
    model="0" * 64,
    precision="int8",
    method="minmax",
    depths=DEPTHS,
    samples=2,
    tokens=64,
    data="random tokens, seed 0",
    activations={
        "prelude.0.attn.wq.input": range_of(1.5),
        "recurrent.block.attn.wq.input": range_of(0.1, 1 / 3, 7e-8),
        "recurrent.block.attn.wo.input": range_of(1.0, 1.9, 1.1),
        "head.input": range_of(2.0),
    },
)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "recipe.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputFileError) as refused:
        Recipe.from_file(path)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message.replace(f"{path.parent}{os.sep}", "")


class TestRoundTrip:
    def test_to_the_last_bit(self, tmp_path: Path) -> None:
        again = Recipe.from_file(write(tmp_path, RECIPE.to_json()))
        assert again == RECIPE
        assert again.to_json() == RECIPE.to_json()
        assert again.activations["recurrent.block.attn.wq.input"].limit == [0.1, 1 / 3, 7e-8]

    @settings(deadline=None, max_examples=50)
    @given(limits=st.lists(st.floats(SMALLEST, LARGEST), min_size=DEPTHS, max_size=DEPTHS))
    def test_of_any_limits(self, limits: list[float]) -> None:
        recipe = RECIPE.model_copy(update={"activations": {"recurrent.x": range_of(*limits)}})
        assert Recipe.model_validate_json(recipe.to_json()) == recipe

    def test_the_file_can_be_edited(self, tmp_path: Path) -> None:
        values = json.loads(RECIPE.to_json())
        values["activations"]["head.input"]["limit"] = [3]
        assert Recipe.from_file(write(tmp_path, json.dumps(values))).limits("shared")["head.input"] == [3.0]


class TestLimits:
    def test_shared_are_the_widest(self) -> None:
        assert RECIPE.limits("shared") == {
            "prelude.0.attn.wq.input": [1.5],
            "recurrent.block.attn.wq.input": [1 / 3],
            "recurrent.block.attn.wo.input": [1.9],
            "head.input": [2.0],
        }

    def test_per_depth_are_as_measured(self) -> None:
        assert RECIPE.limits("per-depth") == {name: found.limit for name, found in RECIPE.activations.items()}

    def test_auto_goes_by_depth_only_where_depths_differ_by_more_than_a_bit(self) -> None:
        found = RECIPE.limits("auto")
        assert found["recurrent.block.attn.wq.input"] == [0.1, 1 / 3, 7e-8]
        assert found["recurrent.block.attn.wo.input"] == [1.9]
        assert (found["prelude.0.attn.wq.input"], found["head.input"]) == ([1.5], [2.0])

    @pytest.mark.parametrize(("widest", "depths"), [(2.0, 1), (math.nextafter(2, 3), 3)])
    def test_auto_turns_at_twice(self, widest: float, depths: int) -> None:
        recipe = RECIPE.model_copy(update={"activations": {"recurrent.x": range_of(1.0, widest, 1.0)}})
        assert len(recipe.limits("auto")["recurrent.x"]) == depths


LOOPED = ("activations", "recurrent.block.attn.wq.input")


def edited(*path: Any, value: Any = None, without: bool = False) -> str:
    values = json.loads(RECIPE.to_json())
    at = values
    for key in path[:-1]:
        at = at[key]
    if without:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(values)


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (edited(*LOOPED, "limit", 0, value=math.nan), "limit.0: "),
            (edited(*LOOPED, "limit", 1, value=0), "limit.1: Input should be greater than or equal to "),
            (edited(*LOOPED, "limit", 1, value=1e31), "limit.1: Input should be less than or equal to "),
            (edited(*LOOPED, "limit", 1, value="wide"), "limit.1: "),
            (edited(*LOOPED, "high", 0, value=math.inf), "high.0: "),
            (edited(*LOOPED, "low", value=[1.0] * 4), "low, high and limit differ in length"),
            (edited(*LOOPED, "limit", value=[]), "limit: "),
            (edited(*LOOPED, value=range_of(1.0, 1.0).model_dump()), "has 2 depths, expected 1 or 3"),
            (
                edited("activations", "head.input", value=range_of(1.0, 1.0).model_dump()),
                "has 2 depths, expected 1 or 3",
            ),
            (edited("depths", value=2), "has 3 depths, expected 1 or 2"),
            (edited("depths", value=0), "depths: "),
            (edited(*LOOPED, "feeds", value=[]), "feeds: "),
            (edited(*LOOPED, "bits", value=8), "bits: Extra inputs are not permitted"),
            (edited("activations", value={}), "activations: "),
            (edited("activations", without=True), "activations: Field required"),
            (edited("precision", value="int4"), "precision: "),
            (edited("method", value="guess"), "method: "),
            (edited("format_version", value=2), "format_version: "),
            (edited("samples", value=0), "samples: "),
        ],
    )
    def test_with_one_wrong_value(self, tmp_path: Path, content: str, complaint: str) -> None:
        message = refusal(write(tmp_path, content))
        assert message.startswith("recipe.json: ") and message.endswith("; calibrate again")
        assert complaint in message

    def test_what_is_none(self, tmp_path: Path) -> None:
        assert refusal(write(tmp_path, "{")).startswith("recipe.json: Invalid JSON")

    def test_names_that_would_reach_the_terminal(self, tmp_path: Path) -> None:
        assert "?[2J" in refusal(write(tmp_path, edited("\x1b[2J\n", value=1)))
        assert "?[2J" in refusal(
            write(tmp_path, edited("activations", "\x1b[2J" * 500, value=range_of(1, 2).model_dump()))
        )


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below the top."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inner for found in ((*path, key), *places(each, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A recipe with some of its values replaced, left out or added, and perhaps some of its bytes."""
    values = copy.deepcopy(json.loads(RECIPE.to_json()))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(places(values) or [("lost",)]))
        at = values
        for key in path[:-1]:
            at = at[key]
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace":
            at[path[-1]] = draw(JUNK)
        elif kind == "add" and isinstance(at, dict):
            at[draw(st.text(max_size=8))] = draw(JUNK)
        elif kind == "add":
            at.append(draw(JUNK))
        else:
            at.pop(path[-1], None) if isinstance(at, dict) else at.pop(path[-1])
    content = bytearray(json.dumps(values).encode())
    for at in draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[at] = draw(st.integers(0, 255))
    return bytes(content)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(content=mutated())
def test_whatever_opens_is_complete_and_finite(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    try:
        recipe = Recipe.from_file(path)
    except InputFileError as error:
        assert str(error).isprintable()
        return
    assert recipe.activations and recipe.depths >= 1
    for ranges in ("shared", "per-depth", "auto"):
        for name, limits in recipe.limits(ranges).items():  # type: ignore[arg-type]
            assert len(limits) in (1, recipe.depths if name.startswith("recurrent.") else 1)
            assert all(SMALLEST <= limit <= LARGEST for limit in limits)
    for found in recipe.activations.values():
        assert found.feeds and len(found.low) == len(found.high) == len(found.limit)
        assert all(math.isfinite(value) for value in (*found.low, *found.high))
    assert Recipe.model_validate_json(recipe.to_json()) == recipe


class TestDepths:
    """Which of its activations loop, only a model can say."""

    @staticmethod
    def recipe(name: str, *depths: int) -> Recipe:
        fed = range_of(*(float(depth) for depth in depths)).model_copy(update={"feeds": [name]})
        return RECIPE.model_copy(update={"activations": {f"{name}.input": fed}})

    @pytest.mark.parametrize(
        ("name", "depths"),
        [("prelude.0.attn.wq", (1,)), ("recurrent.block.attn.wq", (1, 2, 3)), ("head", (1,)), ("coda.1.ffn.up", (1,))],
    )
    def test_are_those_of_the_model(self, gqa_config: MythosConfig, name: str, depths: tuple[int, ...]) -> None:
        self.recipe(name, *depths).check_depths(architecture(gqa_config))

    @pytest.mark.parametrize(
        ("name", "depths", "complaint"),
        [
            ("head", (1, 2, 3), "head.input has 3 depths, expected 1"),
            ("coda.0.attn.wq", (1, 2, 3), "has 3 depths, expected 1"),
            ("recurrent.block.attn.wo", (1,), "has 1 depths, expected 3"),
            ("recurrent.block.attn.w", (1, 2, 3), "feeds a layer that the model does not have"),
            ("recurrent.act.halt", (1, 2, 3), "feeds a layer that the model does not have"),
        ],
    )
    def test_others_are_refused(
        self, gqa_config: MythosConfig, name: str, depths: tuple[int, ...], complaint: str
    ) -> None:
        with pytest.raises(CalibrationError, match=complaint):
            self.recipe(name, *depths).check_depths(architecture(gqa_config))
