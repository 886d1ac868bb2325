"""Statistics in the graph: they change no result, and say what really flows there, depth by depth."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.statistics import BINS, Point, add_extremes, add_histograms, find_points
from engines.generation import RunningBatch
from engines.onnxruntime import OnnxRuntimeEngine
from engines.prompts import read_prompts
from mythos_export.bundle import GraphFile
from mythos_export.graph_parts import recurrent_loop
from mythos_export.linears import layer_names
from mythos_export.quantization import EMBEDDING
from reference_model.checkpoint import SeededWeights, load_model
from reference_model.components.attention import LatentAttention
from reference_model.config import MythosConfig
from reference_model.open_mythos.cache import Cache
from reference_model.ops import Rows

LOOPS, PROMPT = 4, 9  # as in conftest.py

MakeModel = Callable[[], ir.Model]
Arrays = dict[str, NDArray[Any]]
Observe = Callable[[ir.Model, list[str]], list[Arrays]]
Extremes = dict[str, NDArray[np.float32]]  # by point or layer: [depths or 1, ...]
Count = Callable[[Extremes], list[dict[str, NDArray[np.int64]]]]

HIDDEN_OF_EXPERTS = "recurrent.block.ffn.routed_experts.*.down.input"


def tops_of(points: list[Point], top: float) -> dict[str, NDArray[np.float32]]:
    return {point.name: np.full(LOOPS if point.in_loop else 1, top, np.float32) for point in points}


@pytest.fixture(scope="module")
def seen(make_model: MakeModel, observe: Observe) -> dict[str, NDArray[np.float32]]:
    """By point: least and greatest of all calls, [depths or 1, 2]."""
    model = make_model()
    outputs = add_extremes(model)
    calls = observe(model, [name for pair in outputs.values() for name in pair])
    return {
        point: np.stack(
            [
                np.min([np.atleast_1d(call[low]) for call in calls], axis=0),
                np.max([np.atleast_1d(call[high]) for call in calls], axis=0),
            ],
            axis=-1,
        )
        for point, (low, high) in outputs.items()
    }


class TestPoints:
    def test_every_layer_reads_exactly_one(self, make_model: MakeModel, config: MythosConfig) -> None:
        fed = [layer for point in find_points(make_model()) for layer in point.feeds]
        assert sorted(fed) == sorted(name for name in layer_names(config) if name != EMBEDDING)

    def test_layers_that_read_the_same_value_share_it(self, make_model: MakeModel, config: MythosConfig) -> None:
        feeds = [set(point.feeds) for point in find_points(make_model())]
        projections = ("q_down", "kv_down") if config.attn_type == "mla" else ("wq", "wk", "wv")
        assert {f"prelude.0.attn.{name}" for name in projections} in feeds
        ffn = "recurrent.block.ffn"
        experts = (
            f"{ffn}.{kind}.{name}" for kind in ("routed_experts.*", "shared_experts.0") for name in ("gate", "up")
        )
        assert set(experts) in feeds

    def test_the_hidden_values_of_the_experts_are_one(self, make_model: MakeModel, config: MythosConfig) -> None:
        (point,) = (point for point in find_points(make_model()) if point.name == HIDDEN_OF_EXPERTS)
        assert len(point.values) == config.n_experts
        assert all(len(other.values) == 1 for other in find_points(make_model()) if other.name != point.name)

    def test_what_loops_is_known(self, make_model: MakeModel) -> None:
        for point in find_points(make_model()):
            assert point.in_loop == point.name.startswith("recurrent.")
            assert point.in_loop == all(layer.startswith("recurrent.") for layer in point.feeds)


class TestTheGraphStaysAsItIs:
    """Bit by bit: a statistic that moved a rounding would measure another model."""

    @pytest.mark.parametrize("statistics", ["extremes", "histograms"])
    def test_prefill_and_decode(self, make_model: MakeModel, observe: Observe, recorded: Any, statistics: str) -> None:
        model = make_model()
        add_extremes(model) if statistics == "extremes" else add_histograms(model, tops_of(find_points(model), 3.0))
        got = observe(model, list(recorded.gave[0]))
        assert len(got) == 4 and {"logits", "halting.depth"} < got[0].keys()
        assert len([name for name in got[0] if name.startswith("new.")]) == 6
        for ours, theirs in zip(got, recorded.gave):
            for name, value in theirs.items():
                np.testing.assert_array_equal(ours[name], value, err_msg=name, strict=True)

    @pytest.mark.parametrize("statistics", ["extremes", "histograms"])
    def test_a_padded_batch_of_mixed_depths(
        self, make_model: MakeModel, engine: OnnxRuntimeEngine, statistics: str
    ) -> None:
        model = make_model()
        add_extremes(model) if statistics == "extremes" else add_histograms(model, tops_of(find_points(model), 3.0))
        file = GraphFile(file="model.onnx", loops="dynamic")
        graphs = [engine.load_graph(file), engine.load_model(ir.to_proto(model).SerializeToString(), file)]
        runs = []
        for graph in graphs:
            running = RunningBatch(graph, engine.manifest, np.array([2, LOOPS, 1]), capacity=8)
            all_logits = running.extend(
                read_prompts([[1, 2, 3], [4, 5, 6, 7, 8], [9]], None, engine.manifest.limits), 0
            )
            running.step([3, 2, 1])
            runs.append((all_logits, running.logits, running.halting_depth))
        for plain, observed in zip(*runs):
            np.testing.assert_array_equal(observed, plain, strict=True)


class TestExtremes:
    def test_are_those_of_the_reference_at_every_depth(
        self, seen: Extremes, make_model: MakeModel, config: MythosConfig, sequence: NDArray[np.int64]
    ) -> None:
        wanted = reference_extremes(config, sequence)
        compared = 0
        for point in find_points(make_model()):
            for layer in point.feeds:
                assert seen[point.name].shape == (LOOPS if point.in_loop else 1, 2)
                np.testing.assert_allclose(seen[point.name], wanted[layer], rtol=1e-5, err_msg=f"{point.name}: {layer}")
                compared += 1
        assert compared == len(wanted)

    def test_differ_from_depth_to_depth(self, seen: Extremes) -> None:
        """Guards the test above: the rows of a depth are not told from another's by chance."""
        for name, extremes in seen.items():
            if name.startswith("recurrent."):
                assert len(np.unique(extremes[:, 1])) == LOOPS, name


@contextmanager
def watched(model: Any) -> Iterator[dict[tuple[str, int], list[Tensor]]]:
    """Every value that a linear layer of the reference reads, by layer and depth (0 outside the loop)."""
    seen: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    depth = 0
    step = model.recurrent.step

    def counted(state: Any, encoded: Tensor, loop_index: Tensor, *rest: Any) -> Any:
        nonlocal depth
        depth = int(loop_index)
        result = step(state, encoded, loop_index, *rest)
        depth = 0
        return result

    def keep(layer: str, value: Tensor) -> None:
        if value.numel():
            seen[layer, depth].append(value.detach())

    def attend(self: LatentAttention, query: Any, rows: Rows, past: Rows, visible: Tensor) -> Tensor:
        """Attention by its definition, and what it is in latent space."""
        keep(f"{self.name}.kv_up.key", query[0])
        latent, rope_key = (torch.cat(pair, dim=1) for pair in zip(past, rows))
        key = self.kv_up(latent).unflatten(-1, (self.n_heads, -1))[..., : self.nope_dim]
        scores = torch.einsum("bshn,bthn->bhst", query[0], key) + torch.einsum("bshr,btr->bhst", query[1], rope_key)
        weights = (scores * self.scale).masked_fill(~visible, -torch.inf).softmax(dim=-1)
        keep(f"{self.name}.kv_up.value", torch.einsum("bhst,btk->bhsk", weights, latent))
        return LatentAttention.attend(self, query, rows, past, visible)

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(".kv_up"):
            layer = re.sub(r"routed_experts\.\d+", "routed_experts.*", name)
            handles.append(module.register_forward_pre_hook(lambda _, args, layer=layer: keep(layer, args[0])))
        elif isinstance(module, LatentAttention):
            module.name, module.attend = name, MethodType(attend, module)
    handles.append(model.norm.register_forward_hook(lambda *args: keep("head", args[-1])))
    model.recurrent.step = counted
    yield seen
    for handle in handles:
        handle.remove()


@torch.inference_mode()
def reference_extremes(config: MythosConfig, sequence: NDArray[np.int64]) -> Extremes:
    """By layer, the least and greatest value it reads over the same calls in PyTorch."""
    model = load_model(SeededWeights(config, 0), config)
    ids = torch.from_numpy(sequence)[None]
    with watched(model) as seen:
        cache: Cache | None = None
        for start, stop in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, ids.shape[1]))]:
            rows = model(ids[:, start:stop], LOOPS, cache=cache, logits_to_keep=1).rows
            cache = rows if cache is None else cache.append(rows)
    never_quantised = ("recurrent.act.", "recurrent.lora.", "recurrent.block.ffn.router")
    layers = {layer for layer, _ in seen if not layer.startswith(never_quantised)}
    return {
        layer: np.array(
            [
                [min(float(x.min()) for x in seen[layer, depth]), max(float(x.max()) for x in seen[layer, depth])]
                for depth in range(LOOPS if layer.startswith("recurrent.") else 1)
            ]
        )
        for layer in layers
    }


@pytest.fixture(scope="module")
def values(make_model: MakeModel, observe: Observe) -> list[Extremes]:
    """What flows through each point, call by call: [depths or 1, numbers]."""
    model = make_model()
    outputs = expose(model)
    calls = observe(model, list(outputs.values()))
    depths = {name: LOOPS if name.startswith("recurrent.") else 1 for name in outputs}
    return [{point: call[name].reshape(depths[point], -1) for point, name in outputs.items()} for call in calls]


@pytest.fixture(scope="module")
def tops(seen: Extremes) -> Extremes:
    """By point: the largest |x| of each depth."""
    return {name: np.abs(extremes).max(axis=-1) for name, extremes in seen.items()}


@pytest.fixture(scope="module")
def count(make_model: MakeModel, observe: Observe) -> Count:
    """Histograms up to given tops, call by call: [depths or 1, BINS]."""

    def histograms(tops: Extremes) -> list[dict[str, NDArray[np.int64]]]:
        model = make_model()
        outputs = add_histograms(model, tops)
        calls = observe(model, list(outputs.values()))
        return [{point: np.atleast_2d(call[name]) for point, name in outputs.items()} for call in calls]

    return histograms


class TestHistograms:
    def test_count_every_value_in_its_bin(self, count: Count, tops: Extremes, values: list[Extremes]) -> None:
        for counts, call in zip(count(tops), values):
            assert counts.keys() == call.keys()
            for name, found in counts.items():
                x = np.abs(call[name]).astype(np.float64)
                assert found.shape == (len(x), BINS)
                assert found.sum(axis=1).tolist() == [x.shape[1]] * len(x), name
                for row, numbers, top in zip(found, x, tops[name]):
                    wanted, edges = np.histogram(numbers, BINS, (0, float(top)))
                    near = np.abs(numbers[:, None] - edges).min(axis=1) < 1e-6 * top  # may round to either side
                    assert np.abs((row - wanted).cumsum()).max() <= near.sum(), name

    def test_hold_the_largest_in_their_last_bin(self, count: Count, tops: Extremes, values: list[Extremes]) -> None:
        """x / top is 1 there, one bin past the end."""
        found = count(tops)
        for name, top in tops.items():
            for depth, limit in enumerate(top):
                (call,) = {index for index, call in enumerate(values) if (np.abs(call[name][depth]) == limit).any()}
                assert found[call][name][depth, -1] >= 1, name

    def test_take_what_lies_beyond_into_their_last_bin(
        self, count: Count, tops: Extremes, values: list[Extremes]
    ) -> None:
        for found, call in zip(count({name: top / 2 for name, top in tops.items()}), values):
            for name, counts in found.items():
                beyond = (np.abs(call[name]) >= tops[name][:, None] / 2).sum(axis=1)
                assert counts.sum() == call[name].size
                assert (counts[:, -1] >= beyond).all(), name

    def test_past_the_depths_they_know_use_the_last(self, count: Count, tops: Extremes) -> None:
        known = {name: top[:2] for name, top in tops.items()}
        repeated = {name: top[[0, 1, 1, 1]] if len(top) > 1 else top for name, top in tops.items()}
        for ours, theirs in zip(count(known), count(repeated)):
            for name, counts in theirs.items():
                np.testing.assert_array_equal(ours[name], counts, err_msg=name)


def expose(model: ir.Model) -> dict[str, str]:
    """Make the values of every point outputs themselves, flat; returns their names."""
    names = {}
    loop = recurrent_loop(model.graph)
    body = loop.attributes["body"].as_graph()
    for point in find_points(model):
        graph = body if point.in_loop else model.graph
        shape = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", ir.tensor([-1]))})
        flat = [ir.Node("", "Reshape", [value, shape.outputs[0]]) for value in point.values]
        joined = ir.Node("", "Concat", [node.outputs[0] for node in flat], {"axis": ir.AttrInt64("axis", 0)})
        graph.extend([shape, *flat, joined])
        for index, node in enumerate((shape, *flat, joined)):
            node.outputs[0].name = f"raw.{point.name}.{index}"
        result = joined.outputs[0]
        result.type = ir.TensorType(ir.DataType.FLOAT)
        if point.in_loop:
            body.outputs.append(result)
            loop.resize_outputs(len(loop.outputs) + 1)
            result = loop.outputs[-1]
            result.name, result.type = f"raw.{point.name}", ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(result)
        names[point.name] = str(result.name)
    return names
