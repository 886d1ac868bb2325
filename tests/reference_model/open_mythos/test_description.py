"""The description of OpenMythos, held to what the modules are and do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reference_model.architecture import HALTING_WEIGHTED, HEAD, LOOP, Architecture
from reference_model.cache import Cache
from reference_model.model import MythosModel
from reference_model.open_mythos.config import SCALES, MythosConfig, config_for_scale
from reference_model.open_mythos.description import architecture
from reference_model.open_mythos.parameters import parameter_shapes


@pytest.fixture(params=["mla", "gqa"])
def config(request: pytest.FixtureRequest, mla_config: MythosConfig) -> MythosConfig:
    return mla_config.with_attention(request.param)


@pytest.mark.parametrize(
    "change",
    [{}, {"prelude_layers": 0, "coda_layers": 0}, {"n_shared_experts": 0}, {"prelude_layers": 3, "n_experts": 2}],
    ids=str,
)
def test_parameters_are_those_of_the_modules(config: MythosConfig, change: dict[str, int]) -> None:
    config = replace(config, **change)
    state = {name: tuple(tensor.shape) for name, tensor in MythosModel(config).state_dict().items()}
    described = {parameter.name: parameter.shape for parameter in architecture(config).parameters}
    assert described == state == parameter_shapes(config)


def test_cached_rows_are_those_of_the_modules(config: MythosConfig) -> None:
    empty = Cache.empty(config, batch=2, loops=5).named(config, "past")
    described = {
        f"past.{part.name}": (part.layers * (5 if part.per_loop else 1), 2, 0, *part.row)
        for part in architecture(config).cache
    }
    assert described == {name: tuple(tensor.shape) for name, tensor in empty.items()}


def test_states_are_those_that_the_loop_carries(config: MythosConfig) -> None:
    from reference_model.recurrent import LoopState

    loop = architecture(config).loop
    assert loop is not None
    assert tuple(state.name for state in loop.states) == LoopState._fields


def test_equal_configs_have_one_description(config: MythosConfig) -> None:
    assert architecture(config) is architecture(replace(config))


def layers_of(described: Architecture, **wanted: object) -> set[str]:
    return {
        layer.name
        for parameter in described.parameters
        if all(getattr(parameter, name) == value for name, value in wanted.items())
        for layer in parameter.layers
    }


class TestRoles:
    def test_every_matrix_but_control_may_be_quantised(self, config: MythosConfig) -> None:
        described = architecture(config)
        quantised = {parameter.name for parameter in described.parameters if parameter.role in ("table", "linear")}
        control = ("recurrent.act.", "recurrent.lora.", "recurrent.injection.", "recurrent.block.ffn.router")
        assert quantised == {
            name for name, shape in parameter_shapes(config).items() if len(shape) > 1 and not name.startswith(control)
        }

    def test_control_has_a_reason_and_a_pattern_that_names_it(self, config: MythosConfig) -> None:
        reasons = {
            parameter.control.names: parameter.control.reason
            for parameter in architecture(config).parameters
            if parameter.control is not None and parameter.name.startswith(parameter.control.names.removesuffix("*"))
        }
        assert reasons == {
            "recurrent.act.*": "halting",
            "recurrent.lora.*": "depth LoRA",
            "recurrent.injection.*": "injection",
            "recurrent.block.ffn.router*": "router",
        }

    def test_the_table_serves_the_head_and_the_lookup_the_latter_last(self, config: MythosConfig) -> None:
        described = architecture(config)
        assert next(iter(described.layers)) == "head" and [*described.layers][-1] == "embed"
        assert described.stage_of["head"] == HEAD and described.stage_of["embed"] == "embedding"
        assert described.table.product is not None and described.table.product.name == "head"

    def test_experts_share_names(self, config: MythosConfig) -> None:
        described = architecture(config)
        (group,) = described.experts
        for matrix, contraction in (("gate", config.dim), ("up", config.dim), ("down", config.expert_dim)):
            name = f"{group.name}.*.{matrix}"
            members = described.parameters_of(name)
            assert [each.expert.index for each in members if each.expert] == list(range(config.n_experts))
            assert described.layers[name].contraction == contraction and described.in_loop(name)

    def test_only_what_reads_behind_the_loop_has_a_hazard(self, config: MythosConfig) -> None:
        names = ("q_down", "kv_down") if config.attn_type == "mla" else ("wq", "wk", "wv")
        hazards = layers_of(architecture(config), hazards=frozenset({HALTING_WEIGHTED}))
        assert hazards == {f"coda.0.attn.{name}" for name in names}
        assert not layers_of(architecture(replace(config, coda_layers=0)), hazards=frozenset({HALTING_WEIGHTED}))


def test_what_attention_absorbs_covers_the_weight_once(mla_config: MythosConfig) -> None:
    (parameter,) = architecture(mla_config).parameters_of("coda.0.attn.kv_up.key")
    key, value = parameter.layers
    assert key.view.shape(parameter.shape) == (4, 12, 16) and key.contraction == 12
    assert value.view.shape(parameter.shape) == (4, 16, 10) and value.contraction == 16


@pytest.mark.parametrize("scale", ["nano", *SCALES])
def test_every_scale_is_described_without_its_weights(scale: str) -> None:
    config = config_for_scale(scale)
    described = architecture(config)
    assert described.stages == ("embedding", "prelude", LOOP, "coda", HEAD)
    assert {parameter.stage for parameter in described.parameters} == set(described.stages)
    assert described.size == sum(parameter.size for parameter in described.parameters)
