"""The frame takes nothing for granted: no loop, several blocks a loop, no stage around it, a head of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from looped_decoder import LoopedDecoder, looped_pieces
from stored_weights import session
from torch import nn

from mythos_export import passes
from mythos_export.assemble import assemble
from mythos_export.bundle import CachePart
from mythos_export.graph_parts import recurrent_loop
from mythos_export.graphs import assembled
from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.trace import TracedPieces, trace, trace_pieces
from reference_model.config import MythosConfig
from reference_model.frame import Norm
from reference_model.plain_decoder.model import PlainConfig, PlainDecoder
from reference_model.plain_decoder.pieces import pieces

OPSET = 21
CONFIG = PlainConfig(vocab_size=53, dim=24, layers=2, heads=4, kv_heads=2, head_dim=10, hidden_dim=40)


def signature(config: PlainConfig, stage: str, depth: Any) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of a model with one stage."""
    row = [config.kv_heads, config.head_dim]
    parts = [CachePart(name=f"{stage}.{part}", depth=depth, row=row, dtype="float32") for part in ("key", "value")]
    vocabulary: Any = config
    return input_specs(parts), output_specs(vocabulary, parts, None)


def lowered(traced: TracedPieces, inputs: Iterable[Any], outputs: Iterable[Any]) -> ir.Model:
    model = assemble(traced, list(inputs), list(outputs), opset=OPSET)
    rewrites = [passes.LowerNorm(), passes.LowerRotary(), passes.LowerGroupedQueryAttention()]
    for rewrite in (*rewrites, passes.TransposeWeights(), passes.SpreadPast()):
        rewrite(model)
    return model


def eventful(model: nn.Module) -> nn.Module:
    """Norms that differ from channel to channel, biases that are not zero, attention that is not uniform."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight") or name.startswith("boundary"):
                value.normal_(1.0, 0.3, generator=draw)
            elif value.ndim == 1:
                value.normal_(0.0, 0.5, generator=draw)
            else:
                value.normal_(0.0, 1.2 * value.shape[-1] ** -0.5, generator=draw)
    return model.requires_grad_(False)


def runnable(model: ir.Model, reference: nn.Module) -> Any:
    """A session on the graph with the reference's weights; every one of them must be asked for."""
    passes.Tidy()(model)
    state, unread = reference.state_dict(), {name for name, _ in reference.named_parameters()}
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            weight = state[name.removesuffix(".T")]
            unread.discard(name.removesuffix(".T"))
            weight = weight.T if name.endswith(".T") else weight
            value.const_value = ir.Tensor(weight.contiguous().numpy(), name=name)
    assert not unread
    return session(model)


def stacked(rows: list[tuple[torch.Tensor, torch.Tensor]], stage: str) -> dict[str, np.ndarray]:
    pairs = zip(("key", "value"), zip(*rows))
    return {f"past.{stage}.{part}": torch.stack(list(values)).numpy() for part, values in pairs}


def assert_close(got: np.ndarray, expected: torch.Tensor) -> None:
    wanted = expected.numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


VARIANTS = {
    "plain": {},
    "biased": {"bias": True},
    "query and key norm": {"query_key_norm": True},
    "one key head": {"kv_heads": 1},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_decoder_without_a_loop(fields: Mapping[str, Any]) -> None:
    config = replace(CONFIG, **fields)
    inputs, outputs = signature(config, "layers", config.layers)
    inputs = [spec for spec in inputs if spec.name != "n_loops"]
    outputs = [spec for spec in outputs if spec.name != "halting.depth"]
    model = lowered(trace_pieces(lambda: pieces(config), opset=OPSET), inputs, outputs)
    assert not any(node.op_type == "Loop" for node in model.graph)
    reference = eventful(PlainDecoder(config))
    graph = runnable(model, reference)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    past, done = reference.empty(2), 0
    for length in (6, 1, 2):
        until = done + length
        called = ids[:, done:until], mask[:, :until], positions[:, done:until]
        logits, new = reference(*called, past)
        feeds = dict(zip(("input_ids", "attention_mask", "position_ids"), (part.numpy() for part in called)))
        feeds |= stacked(past, "layers") | {"logits_to_keep": np.array(0)}
        got = dict(zip([spec.name for spec in outputs], graph.run(None, feeds)))
        assert_close(got["logits"], logits)
        for part, values in zip(("key", "value"), zip(*new)):
            assert_close(got[f"new.layers.{part}"], torch.stack(values))
        past = [tuple(torch.cat(pair, dim=1) for pair in zip(*rows)) for rows in zip(past, new)]
        done = until


class TestSeveralBlocksALoop:
    """Two, with neither a stage before nor one behind, and no halting."""

    @pytest.fixture(scope="class")
    @classmethod
    def traced(cls) -> TracedPieces:
        return trace_pieces(lambda: looped_pieces(CONFIG), opset=OPSET)

    @staticmethod
    def check(model: ir.Model, reference: nn.Module, *, most: int) -> None:
        graph = runnable(model, reference)
        n_loops = torch.tensor([1, most, 2])
        ids = torch.randint(0, CONFIG.vocab_size, (3, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[2, :2] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        nothing = torch.zeros(3, 0, CONFIG.kv_heads, CONFIG.head_dim)
        past, done = [(nothing, nothing)] * (most * CONFIG.layers), 0
        names = [value.name for value in model.graph.outputs]
        for length in (5, 1, 1):
            until = done + length
            called = ids[:, done:until], mask[:, :until], positions[:, done:until]
            logits, new = reference(*called, n_loops, past)
            feeds = dict(zip(("input_ids", "attention_mask", "position_ids"), (part.numpy() for part in called)))
            feeds |= stacked(past, "recurrent") | {"logits_to_keep": np.array(0), "n_loops": n_loops.numpy()}
            got = dict(zip(names, graph.run(None, feeds)))
            assert_close(got["logits"], logits)
            for part, values in zip(("key", "value"), zip(*new)):
                assert_close(got[f"new.recurrent.{part}"], torch.stack(values))
            assert got["halting.depth"].tolist() == [[depth] * length for depth in n_loops.tolist()]
            past = [tuple(torch.cat(pair, dim=1) for pair in zip(*rows)) for rows in zip(past, new)]
            done = until

    @pytest.mark.parametrize("hoist", [False, True])
    @pytest.mark.parametrize("depth", [None, 4], ids=["loop", "unrolled"])
    def test_compute_what_pytorch_does(self, traced: TracedPieces, depth: int | None, hoist: bool) -> None:
        model = lowered(traced, *signature(CONFIG, "recurrent", "loops"))
        if hoist:
            passes.Hoist()(model)
        if depth is not None:
            passes.Unroll(depth)(model)
            shapes = {str(value.name): value.shape for value in model.graph.outputs}
            rows = shapes["new.recurrent.key"]
            assert rows is not None and rows[0] == depth * CONFIG.layers
        self.check(model, eventful(LoopedDecoder(CONFIG)), most=4)

    def test_sizes_are_not_measured_in_the_loop(self, traced: TracedPieces) -> None:
        model = lowered(traced, *signature(CONFIG, "recurrent", "loops"))
        passes.Hoist()(model)
        body = recurrent_loop(model.graph).attributes["body"].as_graph()
        assert "Shape" not in {node.op_type for node in body}

    @pytest.mark.parametrize("scans", [False, True], ids=["half scans", "float scans"])
    def test_cache_their_rows_in_half_precision(self, traced: TracedPieces, scans: bool) -> None:
        """Each row is rounded before anybody attends to it, in every layer of a loop."""
        model = lowered(traced, *signature(CONFIG, "recurrent", "loops"))
        passes.ReducePrecision(ir.DataType.FLOAT16, compute=ir.DataType.FLOAT)(model)
        if scans:
            passes.FloatScans()(model)
        body = recurrent_loop(model.graph).attributes["body"].as_graph()
        rounded = [node for node in body if node.op_type == "Cast" and str(node.name).endswith("rounded.Cast_0")]
        assert len(rounded) == 2 * CONFIG.layers
        assert {value.dtype for value in model.graph.outputs if "new." in str(value.name)} == {ir.DataType.FLOAT16}

    def test_a_norm_behind_the_loop(self) -> None:
        """In place of the head's: the same numbers, so the same logits."""
        after = Norm("norm.weight", CONFIG.epsilon)
        traced = trace_pieces(lambda: looped_pieces(CONFIG, after=after), opset=OPSET)
        self.check(lowered(traced, *signature(CONFIG, "recurrent", "loops")), eventful(LoopedDecoder(CONFIG)), most=3)

    @pytest.mark.parametrize(("start", "number"), [("zeros", 0), ("ones", 1), ("input", 0)])
    def test_what_a_state_begins_with(self, start: str, number: int) -> None:
        traced = trace_pieces(lambda: looped_pieces(CONFIG, state=start), opset=OPSET)
        model = assemble(traced, *signature(CONFIG, "recurrent", "loops"), opset=OPSET)
        begins = recurrent_loop(model.graph).inputs[2]
        producer = begins.producer() if begins is not None else None
        assert producer is not None and producer.op_type == "ConstantOfShape"
        value = producer.attributes.get_tensor("value") if "value" in producer.attributes else None
        assert (0 if value is None else value.numpy().item()) == number


def test_a_stage_without_layers_has_a_cache_only_where_the_signature_lists_one(mla_config: MythosConfig) -> None:
    config = replace(mla_config, prelude_layers=0)
    listed = assembled(config, opset=OPSET)
    assert {"past.prelude.latent", "past.prelude.rope"} <= {value.name for value in listed.graph.inputs}
    parts = [part for part in cache_parts(config, "fp32") if part.depth]
    traced = trace(config, opset=OPSET)
    model = assemble(traced, input_specs(parts), output_specs(config, parts, None), opset=OPSET)
    names = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    assert "new.coda.rope" in names
    assert not any(".prelude." in name for name in names)
