"""Measurements are checked before they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mythos_export.bundle import Bundle
from mythos_export.records.files import InputFileError
from mythos_export.records.measurements import Evaluation, Latency, read_measurement


class TestMeasurements:
    @pytest.fixture
    def read(self, proven_int8: Path, tmp_path: Path) -> Callable[..., Any]:
        def read(kind: type[Evaluation] | type[Latency], values: object) -> Any:
            file = tmp_path / "measured.json"
            file.write_text(values if isinstance(values, str) else json.dumps(values))
            return read_measurement(kind, file, Bundle.open(proven_int8))

        return read

    def test_latency(self, read: Callable[..., Any], latency: dict[str, Any]) -> None:
        assert [each.ms_per_token for each in read(Latency, latency).measurements] == [2.5, 5.0, 1.25]

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"precision": "fp32"}, "measured in fp32, but .* is int8"),
            ({"scores": []}, "scores: List should have at least 1 item"),
            (
                {"scores": [{"hops": 1, "loops": 1, "correct": 3, "total": 2, "low": 0, "high": 1}]},
                "more right answers",
            ),
            (
                {"scores": [{"hops": 1, "loops": 1, "correct": 1, "total": 2, "low": 0.9, "high": 0.1}]},
                "ends before it begins",
            ),
            (
                {"scores": [{"hops": 1, "loops": 4, "correct": 1, "total": 2, "low": 0, "high": 1}] * 2},
                r"scores: \(1, 4\) is there twice",
            ),
            ({"loops": [4, 8, 4]}, "loops: 4 is there twice"),
            ({"loops": [True]}, "loops.0"),
            ({"prompts": -1}, "prompts: .* evaluate BUNDLE --json writes one"),
            ({"more": 1}, "more: Extra inputs"),
        ],
    )
    def test_an_accuracy_that_cannot_be_is_refused(
        self, read: Callable[..., Any], accuracy: dict[str, Any], change: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(InputFileError, match=complaint):
            read(Evaluation, accuracy | change)

    def test_all_right_is_an_accuracy(self, read: Callable[..., Any], accuracy: dict[str, Any]) -> None:
        """Of a Wilson interval, in floating point, 1 may lie just outside."""
        score = {"hops": 1, "loops": 4, "correct": 4, "total": 4, "low": 0.51, "high": 0.9999999999999999}
        assert read(Evaluation, accuracy | {"scores": [score]}).scores[0].accuracy == 1

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"low_ms": 3.0, "high_ms": 1.0}, "ends before it begins"),
            ({"low_ms": 1.0}, "two ends"),
            ({"loops": 4}, "there twice"),
        ],
    )
    def test_a_measurement_that_contradicts_itself_is_refused(
        self, read: Callable[..., Any], latency: dict[str, Any], change: dict[str, Any], complaint: str
    ) -> None:
        latency["measurements"][1] |= change
        with pytest.raises(InputFileError, match=complaint):
            read(Latency, latency)

    @pytest.mark.parametrize("value", [0, "3.0", True, None])
    def test_a_latency_that_cannot_be_is_refused(
        self, read: Callable[..., Any], latency: dict[str, Any], value: object
    ) -> None:
        latency["measurements"][1]["ms_per_token"] = value
        with pytest.raises(InputFileError, match=r"measurements\.1\.ms_per_token"):
            read(Latency, latency)

    @pytest.mark.parametrize("text", ["", "[1]", '{"precision": NaN}'])
    def test_other_files_are_refused(self, read: Callable[..., Any], text: str) -> None:
        for kind in (Evaluation, Latency):
            with pytest.raises(InputFileError, match=r"measured\.json: .*; (mythos-export evaluate|docs/report)"):
                read(kind, text)

    def test_no_file_and_no_plain_file(self, proven_int8: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(proven_int8)
        with pytest.raises(InputFileError, match="No such file"):
            read_measurement(Evaluation, tmp_path / "none", bundle)
        with pytest.raises(InputFileError, match="not a regular file"):
            read_measurement(Evaluation, tmp_path, bundle)
