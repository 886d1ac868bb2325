"""`parity.json` is written and read through one declaration; what cannot be is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mythos_export.bundle import Bundle, BundleError, file_entry
from mythos_export.records.parity import PARITY, ParityReport, read_parity


def values(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / PARITY).read_text())


def replaced(bundle: Path, content: bytes) -> Bundle:
    (bundle / PARITY).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][PARITY] = file_entry(bundle / PARITY).model_dump()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(bundle)


def test_what_is_written_is_read(proven_int8: Path) -> None:
    report = read_parity(Bundle.open(proven_int8))
    assert report is not None
    assert json.loads(report.model_dump_json()) == values(proven_int8)
    for case in report.graphs[0].cases:
        assert len(case.halting_depths) == max(case.loops)
        assert sum(case.halting_depths) == case.tokens + case.excluded


def test_what_is_not_finite_is_null_in_the_file_and_no_number_when_read(proven_int8: Path) -> None:
    content = values(proven_int8)
    content["graphs"][0]["cases"][0] |= {"max_abs_error": None, "kl": None}
    report = ParityReport.model_validate_json(json.dumps(content))
    case = report.graphs[0].cases[0]
    assert math.isnan(case.max_abs_error) and math.isnan(case.kl)
    case.error_over_range = math.inf
    assert json.loads(report.model_dump_json())["graphs"][0]["cases"][0]["error_over_range"] is None


def test_without_one_there_is_nothing_to_read(tiny_bundle: Path) -> None:
    assert read_parity(Bundle.open(tiny_bundle)) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"loops": [NaN]}', b'{"loops": ["<script>"]}', b"[" * 100_000]
)
def test_damage_is_one_line(proven_int8: Path, copy: Callable[[Path], Path], content: bytes) -> None:
    bundle = replaced(copy(proven_int8), content)
    with pytest.raises(BundleError, match=r"parity\.json: .*export the bundle again") as refused:
        read_parity(bundle)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("error_over_range", -1.0), ("top1_agreement", 1.5), ("tokens", -1), ("loops", [])]
)
def test_a_number_that_cannot_be_is_named(
    proven_int8: Path, copy: Callable[[Path], Path], name: str, value: object
) -> None:
    content = values(proven_int8)
    content["graphs"][0]["cases"][0][name] = value
    bundle = replaced(copy(proven_int8), json.dumps(content).encode())
    with pytest.raises(BundleError, match=rf"graphs\.0\.cases\.0\.{name}: "):
        read_parity(bundle)
