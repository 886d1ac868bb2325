"""nano in every precision of every target, exported as a user exports it: with the comparison with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mythos_export.targets import TARGETS

CASES = [(target, precision) for target, entry in TARGETS.items() for precision in entry.precisions]


@pytest.mark.dear
@pytest.mark.parametrize(("target", "precision"), CASES, ids=map("-".join, CASES))
def test_it_is_proven(run: Callable[..., Any], tmp_path: Path, target: str, precision: str) -> None:
    outcome = run("--scale", "nano", "--target", target, "--precision", precision, "--output", tmp_path / "nano")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((tmp_path / "nano" / "manifest.json").read_text())
    assert manifest["parity"]["passed"] is True
    assert (manifest["target"], manifest["precision"]) == (target, precision)
