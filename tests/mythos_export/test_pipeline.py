"""What the main job refuses and records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mythos_export.bundle import Bundle, ParitySummary
from mythos_export.pipeline import ExportRequest, ParityFailed, export, spectral_radius
from mythos_export.progress import Reporter
from mythos_export.requests import default_name
from reference_model.checkpoint import CheckpointError, SeededWeights
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import MythosModel


class Altered(SeededWeights):
    """Random weights with one tensor of one's own."""

    def __init__(self, config: MythosConfig, name: str, value: float) -> None:
        super().__init__(config, 0)
        self._name, self._value = name, value

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return torch.full_like(tensor, self._value) if name == self._name else tensor


def request(config: MythosConfig, output: Path, source: SeededWeights, precision: str = "fp32") -> ExportRequest:
    return ExportRequest(name="tiny", config=config, source=source, output=output, precision=precision)


def test_the_spectral_radius_is_the_models(tiny_bundle: Path, mla_config: MythosConfig) -> None:
    source = SeededWeights(mla_config, 0)
    model = MythosModel(mla_config)
    model.load_state_dict({name: source.read(name) for name in source.names()})
    assert Bundle.open(tiny_bundle).manifest.spectral_radius == pytest.approx(model.spectral_radius(), rel=1e-6)


@pytest.mark.parametrize("value", [-40.0, float("nan")])
def test_an_unstable_injection_is_refused(mla_config: MythosConfig, tmp_path: Path, value: float) -> None:
    source = Altered(mla_config, "recurrent.injection.log_A", value)
    with pytest.raises(CheckpointError, match="spectral radius"):
        spectral_radius(source)
    with pytest.raises(CheckpointError, match="spectral radius"):
        export(request(mla_config, tmp_path / "x", source), Reporter(quiet=True), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "precision", "complaint"),
    [
        ("coda.0.ffn.up.weight", float("inf"), "fp32", "NaN or infinite"),
        ("recurrent.block.ffn.routed_experts.3.gate.weight", float("nan"), "fp32", "NaN or infinite"),
        ("embed.weight", 70_000.0, "fp16", "beyond fp16's 65504; use --precision bf16 or fp32"),
    ],
)
def test_weights_that_cannot_be_written_are_named(
    mla_config: MythosConfig, tmp_path: Path, name: str, value: float, precision: str, complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint) as refused:
        export(
            request(mla_config, tmp_path / "x", Altered(mla_config, name, value), precision), Reporter(quiet=True), None
        )
    assert name in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_fails_its_proof_is_not_kept(mla_config: MythosConfig, tmp_path: Path) -> None:
    def disprove(bundle: Bundle, *_: object) -> tuple[ParitySummary, list[str]]:
        (bundle.path / "parity.json").write_text("{}")
        summary = ParitySummary(passed=False, loops=[1], max_error_over_range=1.0, tolerance=1e-4, top1_agreement=0.0)
        return summary, ["it is wrong", "twice"]

    with pytest.raises(ParityFailed, match=r"does not compute what PyTorch computes: it is wrong \(and 1 more\)"):
        export(request(mla_config, tmp_path / "x", SeededWeights(mla_config, 0)), Reporter(quiet=True), disprove)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("1b", None, "portable", "fp32"), "mythos-1b-fp32"),
        (("1b", "gqa", "portable", "int8"), "mythos-1b-gqa-int8"),
        (("nano", None, "tensorrt", "int8"), "mythos-nano-tensorrt-int8"),
    ],
)
def test_bundles_of_different_targets_do_not_share_a_name(
    arguments: tuple[str, str | None, str, str], name: str
) -> None:
    assert default_name(*arguments) == name
