"""The dense mixture of experts against the reference's own mixture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from mixtures import graph_of_mixture
from stored_weights import bound, eventful_weights, session, state_of

from mythos_export.passes import LowerMoEDense
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.quantization import ROUTED_EXPERTS
from reference_model.components.moe import MixtureOfExperts, Routing
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import mixture_sizes

PREFIX = "recurrent.block.ffn."


def lowered(config: MythosConfig) -> ir.Model:
    model = graph_of_mixture(config)
    LowerMoEDense()(model)
    return model


@pytest.mark.parametrize(
    "fields", [{}, {"n_experts_per_tok": 1}, {"n_experts": 1, "n_experts_per_tok": 1}, {"n_experts_per_tok": 6}]
)
def test_it_computes_the_references_mixture(mla_config: MythosConfig, fields: dict[str, int]) -> None:
    config = replace(mla_config, **fields)
    model = lowered(config)
    arrays = bound([model], eventful_weights(config), config)
    reference = MixtureOfExperts(mixture_sizes(config))
    state = {name.removeprefix(PREFIX): value for name, value in state_of(arrays, config).items()}
    assert not reference.load_state_dict(state, strict=False).unexpected_keys
    rng, runtime = np.random.default_rng(0), session(model)
    for count in (1, 40, 0):
        tokens = rng.standard_normal((count, config.dim), dtype=np.float32)
        chosen = rng.random((count, config.n_experts)).argsort(axis=1)[:, : config.n_experts_per_tok]
        weights = rng.random(chosen.shape, dtype=np.float32)
        (got,) = runtime.run(None, {"tokens": tokens, "chosen": chosen, "weights": weights})
        routing = Routing(torch.zeros(count, config.n_experts), torch.from_numpy(chosen), torch.from_numpy(weights))
        with torch.no_grad():
            wanted = reference.mix(torch.from_numpy(tokens), routing).numpy()
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_an_expert_that_is_not_chosen_may_overflow(mla_config: MythosConfig) -> None:
    """In fp16 it does: infinity times a share of 0 must not be NaN."""
    model = lowered(mla_config)
    bound([model], eventful_weights(mla_config), mla_config)
    weight = model.graph.initializers[f"{ROUTED_EXPERTS}.3.down.weight.T"]
    weight.const_value = ir.Tensor(np.full(weight.shape.numpy(), np.inf, np.float32))
    tokens = np.random.default_rng(0).standard_normal((5, mla_config.dim), dtype=np.float32)
    feeds = {"tokens": tokens, "chosen": np.tile([0, 1], (5, 1)), "weights": np.full((5, 2), 0.5, np.float32)}
    (got,) = session(model).run(None, feeds)
    assert np.isfinite(got).all()
    (got,) = session(model).run(None, feeds | {"chosen": np.tile([0, 3], (5, 1))})
    assert not np.isfinite(got).all(), "the plant is there"


def test_no_size_depends_on_the_routing(mla_config: MythosConfig) -> None:
    ops = Counter(node.op_type for node in lowered(mla_config).graph)
    assert ops["MatMul"] == 3 * mla_config.n_experts
    assert not {"NonZero", "Gather", "TopK", "ScatterElements"} & ops.keys()


def test_a_graph_without_a_mixture_is_an_error(mla_config: MythosConfig) -> None:
    with pytest.raises(PassDidNothing, match="holds no SparseMoE"):
        LowerMoEDense()(lowered(mla_config))
