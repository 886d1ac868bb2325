"""Weights of models that are not OpenMythos: stored, counted and put back by their description alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import huginn, nanbeige, ouro, plain

from mythos_export.planning.cache import cache_size
from mythos_export.planning.devices import find_device
from mythos_export.planning.models import model_of, stored_from_config
from mythos_export.planning.plan import Question, plan
from mythos_export.planning.work import Call, work_of
from mythos_export.quantization import QUANTIZED, Choices
from mythos_export.signature import cache_parts
from mythos_export.targets import TARGETS, storage_of
from mythos_export.weights.layout import stored_tensors
from mythos_export.weights.names import place_of, read_name, weights_of
from mythos_export.weights.restore import TIED_HEAD, restored_tensors
from mythos_export.weights.store import Quantizer
from mythos_export.weights.tensors import StoredTensor, total_bytes
from mythos_export.weights.views import cut_out, rows_of, upstream_rows
from reference_model.architecture import Architecture, View

FAMILIES = [plain(), nanbeige(), ouro(), huginn()]
EVERYTHING = [(target, precision) for target, entry in TARGETS.items() for precision in entry.precisions]
SHALLOW = [plain(), nanbeige(1), ouro(1), huginn(1)]  # one layer a loop
every_family = pytest.mark.parametrize("described", FAMILIES, ids=lambda described: described.family)
every_shallow = pytest.mark.parametrize("described", SHALLOW, ids=lambda described: described.family)


def stored(described: Architecture, target: str, precision: str, *keep: str) -> dict[str, StoredTensor]:
    tensors = stored_tensors(described, storage_of(target, precision, described, Choices(keep=frozenset(keep))))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: tensor for tensor in tensors}


@every_family
def test_in_fp32_every_number_is_stored_once(described: Architecture) -> None:
    for target in TARGETS:
        tensors = stored(described, target, "fp32")
        assert total_bytes(tensors.values()) == 4 * described.size
        assert {each.dtype for each in tensors.values()} == {"float32"}


@every_family
def test_half_precision_keeps_vectors_and_control(described: Architecture) -> None:
    floats = sum(each.size for each in described.parameters if each.role in ("vector", "control"))
    tensors = stored(described, "portable", "bf16")
    assert total_bytes(tensors.values()) == 2 * described.size + 2 * floats


@every_family
@pytest.mark.parametrize(("target", "precision"), [each for each in EVERYTHING if each[1] in QUANTIZED])
def test_quantised_every_layer_is_small_or_kept(described: Architecture, target: str, precision: str) -> None:
    tensors, kept = stored(described, target, precision), storage_of(target, precision, described).kept
    small = {read.weight for name in tensors if (read := read_name(name)) is not None}
    for weight in weights_of(described).values():
        if weight.parameter.role in ("vector", "control"):
            assert tensors[weight.name].dtype == "float32"
        elif weight.layer is not None and not weight.layer.lookup and not weight.head_copy:
            assert (weight.name in small) != (weight.layer.name in kept)
            assert (weight.name in tensors) == (weight.layer.name in kept)
    assert all(place_of(name, described) == tensor.place for name, tensor in tensors.items())
    assert not [name for name in tensors if "early_exit_gate" in name and read_name(name) is not None]


def test_an_untied_head_is_a_layer_like_others() -> None:
    described = plain()
    assert "lm_head.weight.T.int8" in stored(described, "portable", "int8")
    kept = stored(described, "portable", "int8", "lm_head", "model.embed_tokens")
    assert kept["lm_head.weight.T"].dtype == kept["model.embed_tokens.weight"].dtype == "float32"
    assert "model.embed_tokens.weight.rows" not in kept


@pytest.mark.parametrize(
    "view",
    [
        View(""),
        View(".T", transposed=True),
        View(".b", start=3, stop=7),
        View(".c", transposed=True, start=4),
        View(".d", groups=4),
        View(".e", groups=3, stop=2),
        View(".f", transposed=True, groups=6, start=1),
    ],
)
def test_a_view_is_cut_out_and_put_back(view: View) -> None:
    whole = np.arange(12 * 5, dtype=np.float32).reshape(12, 5)
    part = cut_out(whole, view)
    assert part.shape == view.shape(whole.shape)
    np.testing.assert_array_equal(cut_out(torch.from_numpy(whole), view).numpy(), part)
    rows = rows_of(view, whole.shape)
    np.testing.assert_array_equal(upstream_rows(part, view), whole if rows is None else whole[rows])
    assert (rows is None) == (part.size == whole.size)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_fused_projections_come_back_as_one(precision: str) -> None:
    """Huginn's, with smaller sizes."""
    described = _small(huginn())
    draw = np.random.default_rng(0)
    checkpoint = {each.name: draw.standard_normal(each.shape, dtype=np.float32) for each in described.parameters}

    def read(name: str) -> np.ndarray:
        weight = weights_of(described)[name]
        return cut_out(checkpoint[weight.parameter.name], weight.view)

    quantizer, again = Quantizer(read, described), {name: np.full_like(x, np.nan) for name, x in checkpoint.items()}
    again[TIED_HEAD] = again[described.table.name].copy()
    for name in stored(described, "portable", precision):
        kind = read_name(name)
        if kind is not None and kind.is_scale:
            continue
        array = read(name) if kind is None else quantizer.tensor(kind, name).numpy()
        scales = None if kind is None else quantizer.tensor(replace(kind, is_scale=True), f"{name}.scale").numpy()
        for part in restored_tensors(name, array, scales, described):
            again[part.name][slice(None) if part.rows is None else part.rows] = part.read()
    if precision in ("fp32", "int8"):  # the head reads the table
        del again[TIED_HEAD]
    for name, values in again.items():
        wanted = checkpoint[described.table.name if name == TIED_HEAD else name]
        step = {"fp32": 0.0, "int8": 1 / 127, "int4": 1 / 5}[precision]  # the largest may saturate
        assert np.abs(values - wanted).max() <= step * np.abs(wanted).max(), name


def _small(described: Architecture) -> Architecture:
    """The same parts, every size a thousandth or so."""

    def shrink(size: int) -> int:
        return {5280: 16, 10560: 32, 15840: 48, 17920: 24, 35840: 48, 65536: 50}.get(size, size)

    parameters = []
    for each in described.parameters:
        layers = tuple(
            replace(
                layer,
                contraction=shrink(layer.contraction),
                view=replace(
                    layer.view,
                    start=shrink(layer.view.start),
                    stop=None if layer.view.stop is None else shrink(layer.view.stop),
                ),
            )
            for layer in each.layers
        )
        parameters.append(replace(each, shape=tuple(map(shrink, each.shape)), layers=layers))
    return replace(described, dim=16, vocab_size=50, parameters=tuple(parameters))


class TestPlanning:
    @every_shallow
    @pytest.mark.parametrize(("target", "precision"), EVERYTHING)
    def test_a_plan_can_be_made(self, described: Architecture, target: str, precision: str) -> None:
        kind = "h200-sxm" if target == "tensorrt" else "cpu-ddr5-5600"
        question = Question(context=32, loops=2, batch=1, chunk=16, device=find_device(kind))
        found = plan(stored_from_config(described.family, described, target, precision), question)
        assert set(found.weights_by_stage) == set(described.stages)
        assert sum(found.weights_by_stage.values()) == found.memory.weights

    @every_shallow
    def test_a_token_multiplies_with_every_layer_once_a_loop(self, described: Architecture) -> None:
        """By another way: from the parameters' sizes."""
        model = model_of(stored_from_config("any", described, "portable", "fp32"))
        products = [work_of(model, Call(1, 1, 0, loops)).products["fp32"] for loops in (1, 2)]
        sizes = dict.fromkeys(described.stages, 0)
        for each in described.parameters:
            if each.role in ("linear", "control") and len(each.shape) > 1:
                sizes[each.stage] += each.size
        per_layer = described.work.pair  # the token sees itself
        layers = sum(stage.layers for stage in (*described.before, *described.after))
        looped = 0 if described.loop is None else described.loop.stage.layers
        head = described.vocab_size * described.dim if described.head.tied else 0
        once = sum(count for stage, count in sizes.items() if stage != "loop") + head + layers * per_layer
        each_loop = sizes.get("loop", 0) + looped * per_layer
        assert products == [once + each_loop, once + 2 * each_loop]

    @every_shallow
    def test_a_token_and_loop_caches_the_rows_of_all_its_layers(self, described: Architecture) -> None:
        size = cache_size(cache_parts(described, "bf16"))
        fixed, looped = (
            sum(2 * part.layers * math.prod(part.row) for part in described.cache if part.per_loop is per_loop)
            for per_loop in (False, True)
        )
        assert size == (fixed, looped)

    @pytest.mark.parametrize("described", [nanbeige(), ouro(), huginn()], ids=lambda described: described.family)
    def test_several_layers_a_loop_are_refused_and_not_taken_for_one(self, described: Architecture) -> None:
        with pytest.raises(ValueError, match="several layers a loop"):
            cache_parts(described, "fp32")

    @pytest.mark.parametrize("precision", ["bf16", "fp32"])
    def test_an_untied_table_in_memory_is_only_looked_up(self, precision: str) -> None:
        described = plain()
        cpu = find_device("cpu-ddr5-5600")
        model = model_of(stored_from_config("any", described, "portable", precision), cpu)
        tables = [tensor for tensor in model.tensors if tensor.place.stage == "embedding"]
        assert total_bytes(tables) == 97 * 48 * (2 if precision == "bf16" else 4)
