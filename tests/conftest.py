"""Models small enough to test and eventful enough to prove something, and bundles made of them."""

from __future__ import annotations

import functools
import os
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from reference_model.open_mythos.config import MythosConfig

if TYPE_CHECKING:
    from mythos_export.bundle import Bundle
    from mythos_export.pipeline import Prove
    from reference_model.checkpoint import WeightSource

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors on many threads only wait for each other
# What a background job or nohup ignores, its children would ignore too, and tests interrupt some of those.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime before an engine does

MakeBundle = Callable[..., "Bundle"]

TINY = MythosConfig(
    vocab_size=97,
    dim=64,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=256,
    max_loop_iters=6,
    prelude_layers=1,
    coda_layers=2,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    n_experts=6,
    n_shared_experts=1,
    n_experts_per_tok=2,
    expert_dim=32,
    lora_rank=4,
)


@pytest.fixture(scope="session")
def mla_config() -> MythosConfig:
    """A small model with multi-latent attention."""
    return TINY


@pytest.fixture(scope="session")
def gqa_config() -> MythosConfig:
    """The same model with grouped-query attention."""
    return replace(TINY, attn_type="gqa")


@pytest.fixture(scope="session")
def upstream() -> ModuleType:
    """`open_mythos.main`, the oracle. Its package imports transformers for a tokenizer that no test uses."""
    if "transformers" not in sys.modules:
        stub = types.ModuleType("transformers")
        stub.AutoTokenizer = None  # type: ignore[attr-defined]
        sys.modules["transformers"] = stub
    import open_mythos.main

    return open_mythos.main


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Export, unless asked otherwise without validation: `make_bundle(config, seed=0, precision="fp32", ...)`.

    Further options are those of `ExportRequest`, and `prove`.
    """
    from mythos_export.loops import parse_loops
    from mythos_export.pipeline import ExportRequest, export
    from mythos_export.progress import Reporter
    from reference_model.checkpoint import SeededWeights

    def make(
        config: MythosConfig,
        *,
        seed: int = 0,
        loops: str = "dynamic",
        source: WeightSource | None = None,
        prove: Prove | None = None,
        **options: Any,
    ) -> Bundle:
        request = ExportRequest(
            name="tiny",
            config=config,
            source=source or SeededWeights(config, seed),
            output=tmp_path_factory.mktemp("bundles") / "tiny",
            loops=parse_loops(loops),
            **options,
        )
        return export(request, Reporter(quiet=True), prove)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: MakeBundle, mla_config: MythosConfig) -> Path:
    """An exported MLA bundle; do not change it (copy it)."""
    return make_bundle(mla_config).path


@pytest.fixture(scope="session")
def tiny_gqa_bundle(make_bundle: MakeBundle, gqa_config: MythosConfig) -> Path:
    """An exported GQA bundle; do not change it (copy it)."""
    return make_bundle(gqa_config).path


@pytest.fixture(scope="session")
def quantized_bundle(
    make_bundle: MakeBundle, mla_config: MythosConfig, gqa_config: MythosConfig
) -> Callable[..., Path]:
    """Bundles that export has proven, each made once: `quantized_bundle("mla", "int8", ranges="auto")`; copy them."""
    from calibration.choose import QuantizeOptions
    from mythos_export.parity.run import prove

    @functools.cache
    def made(attn: str, precision: str, ranges: str | None = None) -> Path:
        config = {"mla": mla_config, "gqa": gqa_config}[attn]
        options = QuantizeOptions(ranges=ranges)  # type: ignore[arg-type]
        return make_bundle(config, precision=precision, quantize=options, prove=prove).path

    return made
