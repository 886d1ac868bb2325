"""The target `tensorrt` as a whole: every precision is proven on a CPU, as the others are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir
import pytest

from mythos_export import passes
from mythos_export.bundle import Bundle
from mythos_export.graph_parts import recurrent_loop
from mythos_export.graphs import assembled
from mythos_export.linears import contractions, layer_names
from mythos_export.parity.run import check_parity
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.progress import Reporter
from mythos_export.quantization import EMBEDDING
from mythos_export.targets import TARGETS
from reference_model.checkpoint import SeededWeights
from reference_model.config import MythosConfig

MakeBundle = Callable[..., Bundle]


@pytest.mark.parametrize("attn", ["mla", "gqa"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4"])
def test_it_computes_what_pytorch_computes(
    precision: str, attn: str, mla_config: MythosConfig, make_bundle: MakeBundle
) -> None:
    config = replace(mla_config, attn_type=attn)
    bundle = make_bundle(config, target="tensorrt", precision=precision)
    report = check_parity(bundle, SeededWeights(config, 0), config, (1, 4, 8), Reporter(quiet=True))
    assert report.passed, report.failures
    if precision in ("int8", "fp8", "int4"):
        assert bundle.manifest.quantization is not None
        assert EMBEDDING in bundle.manifest.quantization.kept
        assert not [
            name for name in bundle.manifest.quantization.kept if "routed_experts" in name and "router" not in name
        ]


def test_a_fixed_depth(mla_config: MythosConfig, make_bundle: MakeBundle) -> None:
    bundle = make_bundle(mla_config, target="tensorrt", precision="fp16", loops="3")
    report = check_parity(bundle, SeededWeights(mla_config, 0), mla_config, (1, 3), Reporter(quiet=True))
    assert report.passed, report.failures


def test_only_whole_blocks_of_int4(mla_config: MythosConfig) -> None:
    """Of the tiny model: 64 and 32 are whole blocks of 32, 40 and 85 are not."""
    kept = TARGETS["tensorrt"].float_layers(mla_config, "int4")
    assert {"coda.0.attn.wo", "coda.0.ffn.down"} <= kept.keys()
    assert not {"coda.0.attn.q_down", "recurrent.block.ffn.routed_experts.*.down"} & kept.keys()
    assert contractions(mla_config).keys() == set(layer_names(mla_config)) - {EMBEDDING}


def test_scans_leave_the_loop_in_fp32(mla_config: MythosConfig) -> None:
    model = assembled(mla_config, opset=21)
    entry = TARGETS["tensorrt"]
    for rewrite in entry.lowerings(mla_config, "fp32", None):  # type: ignore[arg-type]
        rewrite(model)
    with pytest.raises(PassDidNothing, match="no scan output is in half precision"):
        passes.FloatScans()(model)
    passes.ReducePrecision(ir.DataType.FLOAT16, compute=ir.DataType.FLOAT16)(model)
    passes.FloatScans()(model)
    loop = recurrent_loop(model.graph)
    assert all(value.dtype != ir.DataType.FLOAT16 for value in loop.outputs)
    outputs = {value.name: value.dtype for value in model.graph.outputs}
    assert outputs["new.recurrent.latent"] == outputs["new.recurrent.rope"] == ir.DataType.FLOAT16
