"""Attention in latent space computes what the reference does, whichever operand of a product the past is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from looped import value
from stored_weights import session

from mythos_export.graph_parts import Builder
from mythos_export.passes import LowerLatentAttention
from reference_model.components.attention import LatentAttention, visible_keys
from reference_model.config import MythosConfig
from reference_model.open_mythos.blocks import attention as attention_of

FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


def graph(config: MythosConfig, attention: LatentAttention) -> ir.Model:
    heads, rank, rope = config.n_heads, config.kv_lora_rank, config.qk_rope_head_dim
    inputs = [value("q_nope", FLOAT, ["b", "s", heads, config.qk_nope_head_dim])]
    inputs += [value("q_rope", FLOAT, ["b", "s", heads, rope])]
    inputs += [value(name, FLOAT, ["b", "s", size]) for name, size in (("latent", rank), ("rope", rope))]
    inputs += [value(name, FLOAT, ["b", "p", size]) for name, size in (("past_latent", rank), ("past_rope", rope))]
    inputs += [value("visible", BOOL, ["b", 1, "s", "t"])]
    kv_up = value("kv_up.weight", FLOAT, list(attention.kv_up.weight.shape))
    build = Builder("attend")
    widths = {"nope_dim": config.qk_nope_head_dim, "rope_dim": rope, "v_dim": config.v_head_dim}
    out = build.domain_op("LatentAttention", [*inputs, kv_up], scale=attention.scale, heads=heads, **widths)
    out.name, out.type, out.shape = "out", ir.TensorType(FLOAT), ir.Shape(["b", "s", heads * config.v_head_dim])
    made = ir.Graph(inputs, [out], nodes=build.take(), opset_imports={"": 21, "mythos": 1}, name="attend")
    return ir.Model(made, ir_version=10)


def lowered(config: MythosConfig, attention: LatentAttention, *, past_first: bool) -> ir.Model:
    model = graph(config, attention)
    nope = config.qk_nope_head_dim
    LowerLatentAttention(past_first=past_first)(model)
    per_head = attention.kv_up.weight.detach().unflatten(0, (config.n_heads, -1))
    absorbed = {"key": per_head[:, :nope], "value": per_head[:, nope:].transpose(1, 2)}
    for name, weight in absorbed.items():
        tensor = ir.tensor(weight.contiguous().numpy())
        model.graph.initializers[f"kv_up.weight.{name}"].const_value = tensor
    return model


@pytest.mark.parametrize("past_first", [False, True])
@pytest.mark.parametrize(("batch", "seq", "past"), [(1, 1, 0), (1, 1, 15), (2, 5, 0), (3, 4, 31)])
def test_it_attends_as_the_reference_does(
    mla_config: MythosConfig, batch: int, seq: int, past: int, past_first: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    attention = attention_of(mla_config)
    torch.nn.init.normal_(attention.kv_up.weight, std=0.5, generator=draw)

    def rows(length: int, *sizes: int) -> torch.Tensor:
        return torch.randn((batch, length, *sizes), generator=draw)

    heads, rank, rope = mla_config.n_heads, mla_config.kv_lora_rank, mla_config.qk_rope_head_dim
    query = rows(seq, heads, mla_config.qk_nope_head_dim), rows(seq, heads, rope)
    new, old = (rows(seq, rank), rows(seq, rope)), (rows(past, rank), rows(past, rope))
    mask = torch.ones((batch, past + seq), dtype=torch.int64)
    mask[0, : past // 2] = 0
    visible = visible_keys(mask, seq)
    expected = attention.attend(query, new, old, visible).detach().numpy()
    names = ["q_nope", "q_rope", "latent", "rope", "past_latent", "past_rope", "visible"]
    feeds = {name: part.numpy() for name, part in zip(names, (*query, *new, *old, visible))}
    found = session(lowered(mla_config, attention, past_first=past_first)).run(None, feeds)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_past_is_turned_over_only_where_it_is_not_first(mla_config: MythosConfig) -> None:
    for past_first in (False, True):
        model = lowered(mla_config, attention_of(mla_config), past_first=past_first)
        turned = {node.inputs[0].name for node in model.graph if node.op_type == "Transpose" and node.inputs[0]}
        assert (turned & {"past_latent", "past_rope"} == set()) == past_first
