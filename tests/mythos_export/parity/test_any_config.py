"""Random configurations, from upstream's own state dict to tokens out of ONNX Runtime, against open-mythos itself."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from eventful import configs, eventful_
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import engines
from mythos_export.pipeline import ExportRequest, export
from mythos_export.progress import Reporter
from reference_model.checkpoint import open_checkpoint
from reference_model.open_mythos.config import MythosConfig

# Each example traces a model anew, which takes seconds; a failing one is reported as it is, not shrunk.
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


def check(upstream: ModuleType, config: MythosConfig, seed: int) -> None:
    theirs = upstream.OpenMythos(upstream.MythosConfig(**asdict(config))).eval()
    eventful_(theirs, seed)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "upstream.pt")
        source = open_checkpoint(Path(folder) / "upstream.pt")
        request = ExportRequest(name="any", config=config, source=source, output=Path(folder) / "any")
        engine = engines.load(export(request, Reporter(quiet=True), None).path)
        for loops in (1, 2, 4, 8):
            with torch.inference_mode():
                wanted = theirs(ids, n_loops=loops).numpy()
            assert np.abs(engine.logits(ids.numpy(), loops) - wanted).max() <= 1e-4 * np.ptp(wanted)
        running = engine.start(ids[:, :6].numpy(), 3, capacity=9)
        cache: dict[str, object] = {}
        with torch.inference_mode():
            theirs(ids[:, :6], n_loops=3, kv_cache=cache)
            for position in range(6, 9):
                token = ids[:, position : position + 1]
                wanted = theirs(token, n_loops=3, kv_cache=cache, start_pos=position)[:, -1].numpy()
                got = running.step(token[:, 0].numpy())
                assert np.abs(got - wanted).max() <= 1e-4 * np.ptp(wanted)


@settings(max_examples=4, phases=NO_SHRINKING, **QUICK)
@given(config=configs(), seed=st.integers(0, 10_000))
def test_a_few_random_configs(upstream: ModuleType, config: MythosConfig, seed: int) -> None:
    check(upstream, config, seed)


@pytest.mark.dear
@settings(max_examples=25, phases=NO_SHRINKING, **QUICK)
@given(config=configs(), seed=st.integers(10_001, 20_000))
def test_many_random_configs(upstream: ModuleType, config: MythosConfig, seed: int) -> None:
    check(upstream, config, seed)
