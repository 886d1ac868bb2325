"""Exported graphs compute what the reference computes: every loop count, every way of feeding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engines
from mythos_export.bundle import Bundle
from mythos_export.parity.report import ParityReport
from mythos_export.parity.run import check_parity
from mythos_export.progress import Reporter
from reference_model.checkpoint import SeededWeights, load_model
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import generate_greedy

MakeBundle = Callable[..., Bundle]
LOOPS = (1, 2, 4, 8, 16)  # the depth-LoRA table of the test model ends at 6


def parity(bundle: Bundle, config: MythosConfig, loops: tuple[int, ...] = LOOPS) -> ParityReport:
    return check_parity(bundle, SeededWeights(config, 0), config, loops, Reporter(quiet=True))


@pytest.fixture(scope="module", params=["mla", "gqa"])
def config(request: pytest.FixtureRequest, mla_config: MythosConfig) -> MythosConfig:
    return replace(mla_config, attn_type=request.param)


@pytest.fixture(scope="module")
def bundle(config: MythosConfig, request: pytest.FixtureRequest) -> Bundle:
    name = "tiny_bundle" if config.attn_type == "mla" else "tiny_gqa_bundle"
    return Bundle.open(request.getfixturevalue(name))


def test_fp32_is_equal_at_every_loop_count(bundle: Bundle, config: MythosConfig) -> None:
    report = parity(bundle, config)
    assert report.passed, report.failures
    cases = report.graphs[0].cases
    assert {case.kind for case in cases} == {"prefill", "chunked", "cached", "mixed"}
    assert {max(case.loops) for case in cases} == set(LOOPS)
    assert all(case.error_over_range <= 1e-4 and case.top1_agreement == 1 for case in cases)
    assert all(depth.router_agreement == 1 for case in cases for depth in case.trajectory)
    deep = next(case for case in cases if case.loops == [16])
    assert [depth.depth for depth in deep.trajectory] == list(range(1, 17))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precisions_are_within_their_tolerance(
    precision: str, config: MythosConfig, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(config, precision=precision)
    report = parity(bundle, config, (1, 4, 8))
    assert report.passed, report.failures
    errors = [case.error_over_range for case in report.graphs[0].cases]
    assert max(errors) > 1e-6, "half precision must leave a trace"
    assert {part.dtype for part in bundle.manifest.cache} == {{"fp16": "float16", "bf16": "bfloat16"}[precision]}


def test_unrolled_graphs_are_equal_too(config: MythosConfig, make_bundle: MakeBundle) -> None:
    report = parity(make_bundle(config, loops="3,8"), config, (1, 3, 8, 10))
    assert report.passed, report.failures
    assert [(graph.file, graph.depth) for graph in report.graphs] == [
        ("model.onnx", "dynamic"),
        ("model.loops3.onnx", 3),
        ("model.loops8.onnx", 8),
    ]
    assert max(max(case.loops) for case in report.graphs[1].cases) == 3


def test_one_fixed_depth(config: MythosConfig, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(config, loops="4")
    report = parity(bundle, config, (1, 2, 4))
    assert report.passed, report.failures
    assert [(graph.file, graph.loops) for graph in bundle.manifest.graphs] == [("model.onnx", 4)]
    with pytest.raises(engines.EngineError, match="unrolled to 4"):
        engines.load(bundle.path).logits([1, 2], 5)


@pytest.mark.parametrize("loops", [1, 2, 4, 8, 16, 24])
def test_64_greedy_tokens(bundle: Bundle, config: MythosConfig, loops: int) -> None:
    model = load_model(SeededWeights(config, 0), config).eval()
    prompt = np.random.default_rng(loops).integers(0, config.vocab_size, 9)
    wanted = torch.cat(list(generate_greedy(model, torch.from_numpy(prompt)[None], loops, 64)))
    assert list(engines.load(bundle.path).generate(prompt, loops, max_new_tokens=64)) == wanted.tolist()


def test_64_greedy_tokens_of_a_padded_batch_of_mixed_depths(bundle: Bundle, config: MythosConfig) -> None:
    model = load_model(SeededWeights(config, 0), config).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in (9, 3, 6, 9)]
    depths = [2, 24, 1, 8]
    batch = np.stack(list(engines.load(bundle.path).generate(prompts, depths, max_new_tokens=64)), axis=1)
    for row, prompt, depth in zip(batch, prompts, depths):
        alone = torch.cat(list(generate_greedy(model, torch.tensor([prompt]), depth, 64)))
        assert row.tolist() == alone.tolist()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_batch_chunking_padding_and_depth(bundle: Bundle, config: MythosConfig, data: st.DataObject) -> None:
    model = load_model(SeededWeights(config, 0), config).eval()
    engine = engines.load(bundle.path, check_hashes=False)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    depths = data.draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths)))
    chunk = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in lengths]
    running = engine.start(prompts, depths, capacity=max(lengths), prefill_chunk=chunk)
    with torch.inference_mode():
        for row, (prompt, depth) in enumerate(zip(prompts, depths)):
            out = model(torch.tensor([prompt]), depth, logits_to_keep=1)
            wanted = out.logits[0, -1].numpy()
            assert np.abs(running.logits[row] - wanted).max() <= 1e-4 * np.ptp(wanted)
            assert running.halting_depth[row] == out.halting_depth[0, -1]
