"""Bundles whose kernels give a row other bits when the number of rows is odd: each sequence beside its own copy."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stored_weights import RUNS_INT4, eventful_weights

import engines
from engines import Engine, EngineError
from engines.sampling import Sampling
from engines.serving import Request, Scheduler, ServingLimits
from engines.serving.copies import row_copies
from engines.serving.footprint import Footprint
from engines.serving.ticket import Ticket
from mythos_export.targets import quantization_of
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

Logits = list[NDArray[np.float32]]

NEEDS_KERNELS = pytest.mark.skipif(
    not RUNS_INT4, reason="this onnxruntime is older than the bundles of this target ask"
)
KINDS = [
    *(("onnxruntime", precision, width) for precision in ("int8", "int4") for width in (64, 128)),
    ("portable", "fp16", 128),
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=NEEDS_KERNELS if kind[0] == "onnxruntime" else [], id="-".join(map(str, kind)))
        for kind in KINDS
    ],
)
def bundle(request: pytest.FixtureRequest, make_bundle: Callable[..., Any], mla_config: MythosConfig) -> Path:
    """Quantised ones in blocks of 64 or 128: at nano's 32, kernels for x86-64 agree."""
    target, precision, width = request.param
    config = replace(mla_config, dim=width, expert_dim=width, coda_layers=1)
    if target == "onnxruntime":
        assert quantization_of(target, precision, architecture(config)).block == width
    weights = eventful_weights(config)
    path: Path = make_bundle(config, source=weights, precision=precision, target=target).path
    return path


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def engine(request: pytest.FixtureRequest, bundle: Path) -> Engine:
    if request.param > 1 and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("how products are split among threads was measured on x86-64")
    return engines.load(bundle, threads=request.param)


def served(engine: Engine, requests: list[Request], recorder: Any, monkeypatch: Any, batch: int) -> list[Logits]:
    """What each request's tokens were chosen from; two more come a step."""
    noted: dict[Any, Logits] = {}
    accept = Ticket.accept

    def noting(self: Ticket, row: NDArray[np.float32], halting_depth: int) -> Any:
        noted[self._listener].append(row.copy())
        return accept(self, row, halting_depth)

    scheduler, heard, together = Scheduler(engine, ServingLimits(max_batch=batch, prefill_chunk=16)), [], 0
    with monkeypatch.context() as patched:
        patched.setattr(Ticket, "accept", noting)
        busy = True
        while busy:
            for request in requests[len(heard) : len(heard) + 2]:
                heard.append(recorder())
                noted[heard[-1]] = []
                scheduler.submit(request, heard[-1])
            busy = scheduler.step()
            together = max(together, scheduler.stats.running)
    assert [each.end for each in heard] == ["length"] * len(requests)
    assert together == min(batch, len(requests))
    return [noted[each] for each in heard]


@pytest.fixture
def requests() -> list[Request]:
    """Of mixed depths and lengths; some prompts as long as others, some longer than a chunk."""
    rng = np.random.default_rng(1)
    return [
        Request(
            rng.integers(97, size=[5, 5, 9, 21][index % 4]).tolist(),
            loops=1 + index * 5 % 12,
            max_new_tokens=24 + index % 3,
            sampling=Sampling(0.9, seed=index) if index % 2 else Sampling(),
        )
        for index in range(16)
    ]


def test_the_same_bits_in_any_batch(engine: Engine, requests: list[Request], recorder: Any, monkeypatch: Any) -> None:
    alone = [served(engine, [request], recorder, monkeypatch, 1)[0] for request in requests]
    for batch in (1, 2, 3, 5, 16):
        together = served(engine, requests, recorder, monkeypatch, batch)
        for index, (found, expected) in enumerate(zip(together, alone, strict=True)):
            assert len(found) == len(expected) == requests[index].max_new_tokens
            for step, (row, same) in enumerate(zip(found, expected)):
                assert np.array_equal(row, same), (batch, index, step)


def test_a_prompt_is_read_alone(bundle: Path, recorder: Any, spy_on: Callable[[Engine], Any]) -> None:
    spied = spy_on(engines.load(bundle, threads=1))
    scheduler = Scheduler(spied.engine)
    for depth in (1, 2, 3):
        scheduler.submit(Request([depth] * 4, depth, 2), recorder())
    while scheduler.step():
        pass
    prompts = [call for call in spied.calls if call["seq"] > 1]
    assert [call["ids"] for call in prompts] == [[depth] * 4 for depth in (1, 2, 3)]
    assert all(call["batch"] % 2 == 0 for call in spied.calls if call["seq"] == 1)


def test_memory_of_the_copies_is_counted(bundle: Path, recorder: Any) -> None:
    engine = engines.load(bundle, threads=1)
    request, parts = Request([1] * 9, 4, 8), engine.manifest.cache
    needed = Footprint(parts, 2).worst(1, 16, 4)
    assert needed == Footprint(parts).worst(2, 16, 4)
    with pytest.raises(EngineError, match=f"need {needed} bytes of cache"):
        Scheduler(engine, ServingLimits(cache_bytes=needed - 1)).submit(request, recorder())
    scheduler, most = Scheduler(engine, ServingLimits(cache_bytes=needed)), 0
    scheduler.submit(request, recorder())
    while scheduler.step():
        most = max(most, scheduler.stats.cache_bytes)
    assert Footprint(parts).bytes(2, 16, 4) == most <= needed


@pytest.mark.parametrize(
    ("target", "precision", "copies"),
    [
        *(("onnxruntime", "int8", 2), ("onnxruntime", "int4", 2), ("onnxruntime", "fp32", 1)),
        *(("portable", precision, 1) for precision in ("fp32", "bf16", "int8", "fp8", "int4")),
        *(("portable", "fp16", 2), ("tensorrt", "fp16", 2), ("tensorrt", "int8", 1)),
    ],
)
def test_who_has_copies(toy_engine: Engine, target: str, precision: str, copies: int) -> None:
    manifest = toy_engine.manifest.model_copy(update={"target": target, "precision": precision})
    assert row_copies(manifest) == copies
