"""The grouped mixture of experts against the reference's own mixture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from mixtures import graph_of_mixture
from stored_weights import bound, eventful_weights, session, state_of

from mythos_export.passes import LowerMoEGrouped
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.quantization import ROUTED_EXPERTS
from reference_model.components.moe import MixtureOfExperts, Routing
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import mixture_sizes

PREFIX = "recurrent.block.ffn."


def lowered(config: MythosConfig) -> ir.Model:
    model = graph_of_mixture(config)
    LowerMoEGrouped()(model)
    return model


@pytest.mark.parametrize(
    "fields", [{}, {"n_experts_per_tok": 1}, {"n_experts": 1, "n_experts_per_tok": 1}, {"n_experts_per_tok": 6}]
)
@pytest.mark.parametrize("needed", [1.0, 0.5, 0.0], ids=["all", "some", "none"])
def test_it_computes_the_references_mixture(mla_config: MythosConfig, fields: dict[str, int], needed: float) -> None:
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
        weights = rng.random(chosen.shape, dtype=np.float32) * (rng.random((count, 1)) < needed)
        weights = weights.astype(np.float32)
        (got,) = runtime.run(None, {"tokens": tokens, "chosen": chosen, "weights": weights})
        routing = Routing(torch.zeros(count, config.n_experts), torch.from_numpy(chosen), torch.from_numpy(weights))
        with torch.no_grad():
            wanted = reference.mix(torch.from_numpy(tokens), routing).numpy()
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_token_that_weighs_nothing_reaches_no_expert(mla_config: MythosConfig) -> None:
    """An expert that gives infinity for whatever reaches it shows who does."""
    model = lowered(mla_config)
    bound([model], eventful_weights(mla_config), mla_config)
    weight = model.graph.initializers[f"{ROUTED_EXPERTS}.3.down.weight.T"]
    weight.const_value = ir.Tensor(np.full(weight.shape.numpy(), np.inf, np.float32))
    tokens = np.random.default_rng(0).standard_normal((3, mla_config.dim), dtype=np.float32)
    feeds = {"tokens": tokens, "chosen": np.array([[0, 1], [3, 0], [1, 3]])}
    weights = np.array([[0.5, 0.5], [0, 0], [1, 0]], np.float32)
    (got,) = session(model).run(None, feeds | {"weights": weights})
    assert np.isfinite(got).all() and not got[1].any()
    (got,) = session(model).run(None, feeds | {"weights": weights + 0.1})
    assert np.isfinite(got[0]).all() and not np.isfinite(got[1:]).all(axis=1).any(), "the plant is there"


def test_a_graph_without_a_mixture_is_an_error(mla_config: MythosConfig) -> None:
    with pytest.raises(PassDidNothing, match="holds no SparseMoE"):
        LowerMoEGrouped()(lowered(mla_config))
