"""The mixture of experts in int8 and int4, one kernel or a node per expert, against the reference's own mixture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from mixtures import graph_of_mixture
from stored_weights import RUNS_INT4, bound, eventful_weights, session, state_of

from calibration.simulate import round_blocks
from mythos_export.passes import LowerMoEFused, LowerMoEGrouped, QuantizeNBits
from mythos_export.passes.rewriting import PassDidNothing
from mythos_export.quantization import EMBEDDING, ROUTED_EXPERTS, Choices, blockwise
from mythos_export.targets import TARGETS
from reference_model.components.moe import MixtureOfExperts, Routing
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import mixture_sizes

pytestmark = pytest.mark.skipif(not RUNS_INT4, reason="this onnxruntime is older than the target's minimum")

# Shares of the outputs' range. The same numbers are added in another order: measured 3e-7 at most. Where that moves a
# hidden value across a rounding of the second matrix's input, one number in 32 is a 127th off: measured for two
# tokens in a thousand, 5e-4 at most.
EXACT, FLIPPED = 2e-6, 2e-3


def fused(config: MythosConfig, precision: str = "int4") -> LowerMoEFused:
    return LowerMoEFused(blockwise(config, precision))


def lowered(config: MythosConfig, *, kernel: str, precision: str = "int4") -> ir.Model:
    model = graph_of_mixture(config)
    if kernel == "QMoE":
        fused(config, precision)(model)
    else:
        LowerMoEGrouped()(model)
        QuantizeNBits(blockwise(config, precision), Choices(keep=frozenset({EMBEDDING})))(model)
    return model


def rounding_mixture(config: MythosConfig, arrays: dict[str, np.ndarray]) -> MixtureOfExperts:
    """The reference's, with the weights that the graph holds and inputs rounded as its kernels do."""
    moe, block = MixtureOfExperts(mixture_sizes(config)), blockwise(config, "int4").block
    for expert in moe.routed_experts:
        for linear in expert.children():
            linear.register_forward_pre_hook(lambda _, inputs: (round_blocks(inputs[0], block),))
    state = {name.removeprefix("recurrent.block.ffn."): value for name, value in state_of(arrays, config).items()}
    assert not moe.load_state_dict(state, strict=False).unexpected_keys
    return moe.requires_grad_(False)


def routing_of(config: MythosConfig, count: int, *, rng: np.random.Generator, only: int) -> Routing:
    """Any experts below `only`, weights that do not sum to one, and one of them 0."""
    ranks = rng.random((count, only)).argsort(axis=1)[:, : config.n_experts_per_tok]
    shares = rng.random(ranks.shape, dtype=np.float32)
    shares[1:2, -1] = 0
    return Routing(torch.zeros(count, config.n_experts), torch.from_numpy(ranks), torch.from_numpy(shares))


def check(config: MythosConfig, *, kernel: str, precision: str = "int4", only: int | None = None) -> None:
    model = lowered(config, kernel=kernel, precision=precision)
    arrays = bound([model], eventful_weights(config), config)
    reference, runtime = rounding_mixture(config, arrays), session(model)
    rng = np.random.default_rng(0)
    for count in (1, 40, 0):
        tokens = rng.standard_normal((count, config.dim), dtype=np.float32)
        tokens[2:3] = 0
        routing = routing_of(config, count, rng=rng, only=only or config.n_experts)
        feeds = {"tokens": tokens, "chosen": routing.experts.numpy(), "weights": routing.weights.numpy()}
        (got,) = runtime.run(None, feeds)
        wanted = reference.mix(torch.from_numpy(tokens), routing).numpy()
        assert got.shape == wanted.shape
        if count:
            errors = np.abs(got - wanted).max(axis=1) / np.ptp(wanted)
            assert np.median(errors) <= EXACT
            assert errors.max() <= FLIPPED
        if count > 1:
            assert not got[2].any()


SIZES = {
    "as a rule": {},
    "one expert a token": {"n_experts_per_tok": 1},
    "all experts": {"n_experts": 3, "n_experts_per_tok": 3},
    "one expert in all": {"n_experts": 1, "n_experts_per_tok": 1},
    "wide": {"dim": 96, "expert_dim": 160, "n_heads": 4},
    "blocks of 64": {"dim": 128, "expert_dim": 192},
    "blocks of 128": {"dim": 256, "expert_dim": 128},
    "one block of 128": {"dim": 128, "expert_dim": 384},
}


@pytest.mark.parametrize("fields", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kernel", ["QMoE", "MatMulNBits"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_it_computes_the_references_mixture(
    mla_config: MythosConfig, fields: dict[str, int], kernel: str, precision: str
) -> None:
    check(replace(mla_config, **fields), kernel=kernel, precision=precision)


@pytest.mark.parametrize("kernel", ["QMoE", "MatMulNBits"])
def test_experts_without_a_token_change_nothing(mla_config: MythosConfig, kernel: str) -> None:
    check(mla_config, kernel=kernel, only=3)


def test_sizes_that_the_block_does_not_divide(mla_config: MythosConfig) -> None:
    check(replace(mla_config, dim=40, expert_dim=24), kernel="MatMulNBits")


@pytest.mark.parametrize(("precision", "kind", "share"), [("int4", "int4b32", 2), ("int8", "int8b32", 1)])
def test_all_experts_are_one_node_over_two_stacks(
    mla_config: MythosConfig, precision: str, kind: str, share: int
) -> None:
    model = lowered(mla_config, kernel="QMoE", precision=precision)
    (node,) = (node for node in model.graph if node.domain == "com.microsoft")
    assert node.op_type == "QMoE"
    shapes = {name: list(value.shape) for name, value in model.graph.initializers.items()}
    assert shapes == {
        f"{ROUTED_EXPERTS}.gate_up.{kind}.stacked.scale": [6, 64, 2],
        f"{ROUTED_EXPERTS}.gate_up.{kind}.stacked": [6, 64, 64 // share],
        f"{ROUTED_EXPERTS}.down.{kind}.stacked.scale": [6, 64, 1],
        f"{ROUTED_EXPERTS}.down.{kind}.stacked": [6, 64, 32 // share],
    }


@pytest.mark.parametrize("fields", [{"dim": 80}, {"expert_dim": 24}])
def test_the_kernel_is_refused_sizes_that_the_block_does_not_divide(
    mla_config: MythosConfig, fields: dict[str, int]
) -> None:
    config = replace(mla_config, **fields)
    with pytest.raises(ir.passes.PassError) as refused:
        ir.passes.Sequential(fused(config))(graph_of_mixture(config))
    assert "blocks of 32 do not divide" in str(refused.value.__cause__)


def test_a_graph_without_a_mixture_is_an_error(mla_config: MythosConfig) -> None:
    model = lowered(mla_config, kernel="QMoE")
    with pytest.raises(PassDidNothing, match="holds no SparseMoE"):
        fused(mla_config)(model)


@pytest.mark.parametrize(
    ("fields", "keep", "kernel"),
    [
        ({}, "coda.0.ffn.up", LowerMoEFused),
        ({}, f"{ROUTED_EXPERTS}.*.down", LowerMoEGrouped),
        ({"expert_dim": 48}, "head", LowerMoEGrouped),
        ({"dim": 80}, "head", LowerMoEGrouped),
    ],
)
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_target_uses_the_kernel_where_it_can(
    mla_config: MythosConfig, fields: dict[str, int], keep: str, kernel: type, precision: str
) -> None:
    target = TARGETS["onnxruntime"]
    lowerings = target.lowerings(replace(mla_config, **fields), precision, Choices(keep=frozenset({keep})))
    assert [type(each) for each in lowerings if each.__class__ in (LowerMoEFused, LowerMoEGrouped)] == [kernel]
    assert LowerMoEFused not in map(type, target.lowerings(mla_config, "fp32", Choices()))
