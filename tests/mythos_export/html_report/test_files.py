"""What the report reads is checked before it is shown: the comparison, and measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mythos_export.bundle import Bundle, BundleError, file_entry
from mythos_export.html_report import parity_file
from mythos_export.html_report.measurements import Accuracy, Latency, MeasurementError, read_measurement
from mythos_export.html_report.parity_file import read_parity

Copy = Callable[[Path], Path]


class TestParity:
    def test_it_reads_what_the_check_writes(self, proven_int8: Path) -> None:
        from mythos_export.parity.report import ParityReport

        bundle = Bundle.open(proven_int8)
        written = ParityReport.model_validate_json(bundle.file("parity.json").read_text())
        found = read_parity(bundle)
        assert found is not None
        assert found.model_dump(include={"loops", "failures", "weights_compared"}) == written.model_dump(
            include={"loops", "failures", "weights_compared"}
        )
        for case, original in zip(found.graphs[0].cases, written.graphs[0].cases, strict=True):
            assert case.model_dump() == {name: getattr_dump(original, name) for name in type(case).model_fields}

    def test_its_fields_are_the_checks(self) -> None:
        from mythos_export.parity.compare import CaseResult, DepthResult, Flip
        from mythos_export.parity.loss import Loss
        from mythos_export.parity.report import GraphReport, ParityReport
        from mythos_export.parity.tolerances import Tolerance

        for ours, theirs in {
            parity_file.Parity: ParityReport,
            parity_file.GraphCases: GraphReport,
            parity_file.Case: CaseResult,
            parity_file.Depth: DepthResult,
            parity_file.Flip: Flip,
            parity_file.Loss: Loss,
            parity_file.Tolerance: Tolerance,
        }.items():
            assert ours.model_fields.keys() <= theirs.model_fields.keys(), ours

    def test_where_tokens_halt_adds_up(self, proven_int8: Path) -> None:
        found = read_parity(Bundle.open(proven_int8))
        assert found is not None
        for case in found.graphs[0].cases:
            assert len(case.halting_depths) == max(case.loops)
            assert sum(case.halting_depths) == case.tokens + case.excluded

    def test_without_one_there_is_nothing_to_read(self, tiny_bundle: Path) -> None:
        assert read_parity(Bundle.open(tiny_bundle)) is None

    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"[]", b"\xff", b'{"loops": [NaN]}', b'{"loops": ["<script>"]}', b"[" * 100_000],
    )
    def test_damage_is_one_line(self, proven_int8: Path, copy: Copy, content: bytes) -> None:
        path = copy(proven_int8)
        (path / "parity.json").write_bytes(content)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["parity.json"] = file_entry(path / "parity.json").model_dump()
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"parity\.json: .*export the bundle again") as refused:
            read_parity(Bundle.open(path))
        assert "\n" not in str(refused.value)


class TestMeasurements:
    @pytest.fixture
    def read(self, proven_int8: Path, tmp_path: Path) -> Callable[..., Any]:
        def read(kind: type[Accuracy] | type[Latency], values: object) -> Any:
            file = tmp_path / "measured.json"
            file.write_text(values if isinstance(values, str) else json.dumps(values))
            return read_measurement(kind, file, Bundle.open(proven_int8))

        return read

    def test_accuracy_is_what_evaluate_prints(self, read: Callable[..., Any], accuracy: dict[str, Any]) -> None:
        from mythos_export.evaluate import Evaluation

        printed = Evaluation.model_validate(accuracy).model_dump()
        assert read(Accuracy, printed).model_dump() == printed

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
            ({"prompts": "40"}, "prompts"),
            ({"prompts": -1}, "prompts: .* evaluate BUNDLE --json writes one"),
            ({"loops": [1.5]}, "loops.0"),
            ({"more": 1}, "more: Extra inputs"),
        ],
    )
    def test_an_accuracy_that_cannot_be_is_refused(
        self, read: Callable[..., Any], accuracy: dict[str, Any], change: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(MeasurementError, match=complaint):
            read(Accuracy, accuracy | change)

    def test_all_right_is_an_accuracy(self, read: Callable[..., Any], accuracy: dict[str, Any]) -> None:
        """Of a Wilson interval, in floating point, 1 may lie just outside."""
        score = {"hops": 1, "loops": 4, "correct": 4, "total": 4, "low": 0.51, "high": 0.9999999999999999}
        assert read(Accuracy, accuracy | {"scores": [score]}).scores[0].accuracy == 1

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
        with pytest.raises(MeasurementError, match=complaint):
            read(Latency, latency)

    @pytest.mark.parametrize("value", [0, -1, "NaN", "3.0", True, 1e10, None])
    def test_a_latency_that_cannot_be_is_refused(
        self, read: Callable[..., Any], latency: dict[str, Any], value: object
    ) -> None:
        latency["measurements"][1]["ms_per_token"] = value
        with pytest.raises(MeasurementError, match=r"measurements\.1\.ms_per_token"):
            read(Latency, latency)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"precision": NaN}', "\x00"])
    def test_other_files_are_refused(self, read: Callable[..., Any], text: str) -> None:
        for kind in (Accuracy, Latency):
            with pytest.raises(MeasurementError, match="not a usable file of measurements"):
                read(kind, text)

    def test_no_file_and_no_plain_file(self, proven_int8: Path, tmp_path: Path) -> None:
        bundle = Bundle.open(proven_int8)
        with pytest.raises(MeasurementError, match="No such file"):
            read_measurement(Accuracy, tmp_path / "none", bundle)
        with pytest.raises(MeasurementError, match="not a file of measurements"):
            read_measurement(Accuracy, tmp_path, bundle)


def getattr_dump(value: BaseModel, name: str) -> Any:
    """A field as plain data, those of models within it that the report does not read left out."""
    found = value.model_dump()[name]
    kept = {"trajectory": parity_file.Depth, "flips": parity_file.Flip}.get(name)
    return [{key: each[key] for key in kept.model_fields} for each in found] if kept else found
