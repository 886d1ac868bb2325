"""The main job under its name and without it, and options that are declared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mythos_export.commands import export as command
from mythos_export.commands.options import ExportOptions

Run = Callable[..., Any]

# One value for each option of an export, none of them the default.
TYPED = {
    "scale": "1b",
    "config": Path("c.json"),
    "checkpoint": Path("x.pt"),
    "seed": 3,
    "attn": "gqa",
    "loops": "4,8",
    "target": "tensorrt",
    "precision": "int8",
    "calibration_data": Path("d.npy"),
    "calibration_method": "mse",
    "calibration_loops": 5,
    "ranges": "auto",
    "special_tokens": "none",
    "minimum_runtime": "1.22",
    "recipe": Path("r.json"),
    "keep": "coda.*",
    "opset": 22,
    "output": Path("o"),
    "dry_run": True,
    "validate": False,
    "force": True,
    "json": True,
}
FLAGS = {"dry_run": "--dry-run", "validate": "--no-validate", "force": "--force", "json": "--json"}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[ExportOptions]:
    """What the main job is asked for; it does not run."""
    options: list[ExportOptions] = []
    monkeypatch.setattr(command, "run", options.append)
    return options


def words(name: str) -> list[str]:
    return [FLAGS[name]] if name in FLAGS else [f"--{name.replace('_', '-')}", str(TYPED[name])]


@pytest.mark.parametrize("verb", [[], ["export"]], ids=["bare", "named"])
def test_every_option_arrives(run: Run, received: list[ExportOptions], verb: list[str]) -> None:
    assert {field.name for field in fields(ExportOptions)} == TYPED.keys()
    assert run(*verb, *(word for name in TYPED for word in words(name))).code == 0
    assert received == [ExportOptions(**TYPED)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TYPED)
def test_first_and_alone(run: Run, received: list[ExportOptions], name: str) -> None:
    run(*words(name))
    assert received == [ExportOptions(**{name: TYPED[name]})]  # type: ignore[arg-type]


def test_short_and_joined_forms(run: Run, received: list[ExportOptions]) -> None:
    run("-o", "x", "--scale=nano")
    run("--scale=nano", "-ox")
    assert received == [ExportOptions(scale="nano", output=Path("x"))] * 2


def test_the_words_of_the_readme(run: Run, received: list[ExportOptions]) -> None:
    run("--scale", "1b", "--loops", "dynamic")
    run("export", "--scale", "1b", "--loops", "dynamic")
    assert received == [ExportOptions(scale="1b", loops="dynamic")] * 2


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert "mythos-export --scale 1b --loops dynamic" in " ".join(outcome.out.split())
    assert {"export", "verify", "generate"} <= set(outcome.out.split())
    assert "..." not in outcome.out.partition("Commands:")[2], "what each does, whole, in 80 columns"


@pytest.mark.parametrize("arguments", [["export", "--help"], ["export", "-h"], ["--scale", "1b", "--help"]])
def test_help_of_the_main_job(run: Run, received: list[ExportOptions], arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.err, received) == (0, "", [])
    assert all(words(name)[0].replace("--no-", "--") in outcome.out for name in TYPED)


def test_an_option_before_another_verb_is_not_dropped(run: Run, received: list[ExportOptions]) -> None:
    outcome = run("--json", "verify", "runs/demo")
    assert (outcome.code, received) == (2, [])
    assert "unexpected extra argument" in outcome.err
