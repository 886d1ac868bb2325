"""What a plan counts is what an export writes and an engine allocates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.choose import QuantizeOptions
from engines.cache import KVCache
from mythos_export.bundle import Bundle
from mythos_export.layers import kept_layers
from mythos_export.pipeline import ExportRequest
from mythos_export.plan import plan_export
from mythos_export.planning.cache import cache_size
from mythos_export.planning.models import stored_from_config
from mythos_export.progress import Reporter
from mythos_export.quantization import Choices
from mythos_export.signature import cache_parts
from mythos_export.targets import storage_of
from mythos_export.weights.layout import stored_tensors
from mythos_export.weights.tensors import file_bytes, total_bytes
from mythos_export.weights.write import DATA_FILE
from reference_model.checkpoint import SeededWeights
from reference_model.open_mythos.config import SCALES, MythosConfig
from reference_model.open_mythos.description import architecture

MakeBundle = Callable[..., Bundle]


def test_a_dry_run_says_what_an_export_writes(
    make_bundle: MakeBundle, mla_config: MythosConfig, tmp_path: Path
) -> None:
    options = QuantizeOptions(keep=("coda.1.*", "head"))
    bundle = make_bundle(mla_config, precision="int8", quantize=options)
    request = ExportRequest(
        name="tiny",
        config=mla_config,
        source=SeededWeights(mla_config, 0),
        output=tmp_path / "none",
        precision="int8",
        quantize=options,
    )
    planned = plan_export(request, Reporter(quiet=True))
    described = architecture(mla_config)
    kept = frozenset(kept_layers(described, options.keep))
    counted = stored_tensors(described, storage_of("portable", "int8", described, Choices(keep=kept)))
    assert bundle.manifest.files[DATA_FILE].size == planned.file_bytes == file_bytes(counted)
    assert planned.weight_bytes == total_bytes(counted)
    assert not request.output.exists()


@pytest.mark.parametrize("attn", ["mla", "gqa"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_cache_is_what_the_engine_allocates(mla_config: MythosConfig, attn: str, precision: str) -> None:
    parts = cache_parts(architecture(mla_config.with_attention(attn)), precision)
    allocated = KVCache(parts, loops=5, batch=3, capacity=17)
    held = sum(buffer.nbytes for buffer in allocated.past.values()) + allocated.mask.nbytes
    assert cache_size(parts).total(loops=5, batch=3, context=17) == held


def test_a_stage_without_layers_takes_nothing(mla_config: MythosConfig) -> None:
    bare = architecture(replace(mla_config, prelude_layers=0, coda_layers=0))
    assert cache_size(cache_parts(bare, "fp32")) == (0, 4 * (16 + 8))


def test_a_trillion_parameters_are_counted_without_a_graph() -> None:
    described = architecture(SCALES["1t"])
    small, floats = (stored_from_config("1t", described, "portable", each) for each in ("int4", "fp32"))
    ratio = total_bytes(floats.tensors) / total_bytes(small.tensors)
    assert 6.2 < ratio < 6.4  # 32 bits against 4 and a 32-bit scale for every 32 numbers: 6.4, less what stays in float
