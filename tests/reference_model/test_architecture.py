"""One description for every family: other loops, no loop, tied and untied heads, fused projections."""

from __future__ import annotations

import subprocess
import sys

import pytest
from families import huginn, nanbeige, ouro, plain

from reference_model.architecture import LOOP, Architecture, Control, Layer, Parameter, View

BYTES_A_TOKEN = {"nanbeige": (2, 180_224), "ouro": (4, 786_432), "huginn": (32, 2_787_840)}  # in bf16


@pytest.mark.parametrize(
    ("described", "parameters"),
    [(nanbeige(), 4_169_800_704), (ouro(24), 1_434_652_673), (ouro(48), 2_667_974_657), (huginn(), 3_564_976_800)],
    ids=["nanbeige", "ouro-1.4b", "ouro-2.6b", "huginn"],
)
def test_published_models_have_as_many_parameters_as_published(described: Architecture, parameters: int) -> None:
    assert described.size == parameters


@pytest.mark.parametrize("described", [nanbeige(), ouro(), huginn()], ids=lambda described: described.family)
def test_and_cache_as_many_bytes_a_token(described: Architecture) -> None:
    loops, wanted = BYTES_A_TOKEN[described.family]
    assert described.loop is not None and described.loop.trained == loops
    rows = [(part.layers * (loops if part.per_loop else 1), part.row) for part in described.cache]
    assert sum(2 * layers * row[0] * row[1] for layers, row in rows) == wanted


def test_a_model_without_a_loop() -> None:
    described = plain()
    assert described.stages == ("embedding", "layers", "head")
    assert not any(described.in_loop(layer) for layer in described.layers)
    assert described.stage_of["lm_head"] == "head"
    assert described.table.product is None, "the head is not tied"
    assert [*described.layers][-1] == described.lookup.name == "model.embed_tokens"


def test_an_exit_gate_is_control_and_never_a_layer_to_quantise() -> None:
    described = ouro()
    assert "model.early_exit_gate" not in described.layers
    assert {each.name for each in described.parameters if each.role == "control"} == {
        "model.early_exit_gate.weight",
        "model.early_exit_gate.bias",
    }
    assert described.loop is not None and described.loop.stage.layers == 24 and not described.loop.may_exceed


def test_fused_projections_are_layers_of_their_own() -> None:
    described = huginn()
    (fused,) = described.parameters_of("transformer.core_block.0.attn.key")
    assert [layer.view.shape(fused.shape) for layer in fused.layers] == [(5280, 5280)] * 3
    (adapter,) = described.parameters_of("transformer.adapter")
    assert described.in_loop("transformer.adapter") and adapter.layers[0].contraction == 2 * 5280
    assert described.stage_of["head"] == "head" and described.table.product is not None


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (View(""), (12, 5)),
        (View(".T", transposed=True), (5, 12)),
        (View(".b", start=4, stop=8), (4, 5)),
        (View(".c", transposed=True, start=4), (5, 8)),
        (View(".d", groups=3), (3, 4, 5)),
        (View(".e", groups=3, stop=1), (3, 1, 5)),
        (View(".f", transposed=True, groups=3, start=1), (3, 5, 3)),
    ],
)
def test_shapes_of_views(view: View, shape: tuple[int, ...]) -> None:
    assert view.shape((12, 5)) == shape


def test_only_all_of_a_parameter_is_whole() -> None:
    assert View("").whole and View(".rows").whole
    assert not any(view.whole for view in (View("", transposed=True), View("", groups=1), View("", start=1)))
    assert View("").shape((2, 1, 3, 4)) == (2, 1, 3, 4), "a vector may be of any rank"


@pytest.mark.parametrize("role", ["linear", "table"])
def test_what_may_be_quantised_serves_a_layer(role: str) -> None:
    with pytest.raises(ValueError, match="serves a layer"):
        Parameter("a.weight", (2, 2), role, LOOP, "attention")  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "control"), [("control", None), ("linear", Control("a.*", "it steers"))])
def test_control_and_only_control_has_a_reason(role: str, control: Control | None) -> None:
    with pytest.raises(ValueError, match="has a reason"):
        Parameter("a.weight", (2, 2), role, LOOP, "gate", (Layer("a", 2),), control)  # type: ignore[arg-type]


def test_it_imports_nothing_but_the_standard_library() -> None:
    code = """
import sys
before = set(sys.modules)
import reference_model.architecture
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(names - sys.stdlib_module_names))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['reference_model']"
