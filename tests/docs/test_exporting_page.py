"""What docs/exporting.md says of passes and of the graph is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from mythos_export.graph_parts import recurrent_loop
from mythos_export.parity.probe import PROBES
from mythos_export.quantization import Choices
from mythos_export.targets import TARGETS
from reference_model.config import MythosConfig
from tests.docs.pages import ROOT, prose

ATTENTION = {"mla": "LowerLatentAttention", "gqa": "LowerGroupedQueryAttention"}
PAGE = prose("docs/exporting.md")


def rows() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Target, precision, passes of the experts, passes of the precision."""
    found = re.search(r"(?m)^\| target \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE)
    assert found is not None
    target = ""
    for row in found[1].splitlines():
        cells = [re.findall(r"`(\w+)`", cell) for cell in row.strip("|").split("|")]
        target = cells[0][0] if cells[0] else target
        yield from ((target, precision, cells[2], cells[3]) for precision in cells[1])


def test_every_precision_is_told() -> None:
    told = [(target, precision) for target, precision, *_ in rows()]
    assert sorted(told) == sorted((name, each) for name, target in TARGETS.items() for each in target.precisions)


@pytest.mark.parametrize("attn", ["mla", "gqa"])
@pytest.mark.parametrize(("target", "precision", "experts", "last"), list(rows()))
def test_passes(
    target: str, precision: str, experts: list[str], last: list[str], attn: str, mla_config: MythosConfig
) -> None:
    """`experts` are one pass, or the one where blocks of 32 fit and the one where they do not."""
    config = replace(mla_config, attn_type=attn)
    assert config.dim % 32 == config.expert_dim % 32 == 0
    for pass_of_experts, dim in zip(experts, (config.dim, config.dim - 16)):
        shape, entry = replace(config, dim=dim), TARGETS[target]
        passes = [*entry.lowerings(shape, precision, Choices()), *entry.precision_passes(shape, precision, Choices())]
        shared = ["Hoist"] if target == "tensorrt" else ["Hoist", "SpreadPast"]
        expected = ["LowerNorm", "LowerRotary", ATTENTION[attn], pass_of_experts, "TransposeWeights", *shared, *last]
        assert [type(each).__name__ for each in passes] == expected


def test_domain_ops() -> None:
    source = (ROOT / "mythos_export" / "symbolic_ops.py").read_text(encoding="utf-8")
    assert set(re.findall(r"`mythos::(\w+)`", PAGE)) == set(re.findall(r'_node\("(\w+)"', source))


def test_what_the_loop_carries_and_scans(tiny_bundle: Path) -> None:
    """The picture's words are the graph's."""
    loop = recurrent_loop(ir.load(tiny_bundle / "model.onnx").graph)
    body = loop.attributes["body"].as_graph()
    picture = (ROOT / "docs" / "graph.svg").read_text(encoding="utf-8")
    carried = [value.name for value in body.inputs[2:]]
    assert carried == ["hidden", "output", "cumulative_p"]
    assert ", ".join(carried) in picture
    for told in carried:
        assert f"`{told}`" in PAGE
    assert [value.name for value in loop.outputs[3:5]] == ["new.recurrent.latent", "new.recurrent.rope"]
    assert loop.inputs[1] is None
    (always,) = (node for node in body if body.outputs[0] in node.outputs)
    assert always.op_type == "Constant"
    for name in set(re.findall(r"(?:past|new)\.\w+|input_ids|logits|halting\.depth|n_loops", picture)):
        assert any(each.startswith(name) for each in _signature(tiny_bundle)), name


def _signature(path: Path) -> list[str]:
    graph = ir.load(path / "model.onnx").graph
    return [str(value.name) for value in (*graph.inputs, *graph.outputs)]


def test_what_stays_inside() -> None:
    for name in re.findall(r"`((?:act|router)\.\w+)`", PAGE):
        assert any(value.endswith(f".{name}") for value in PROBES.values())
