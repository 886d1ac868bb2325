"""What docs/graph.md says of the graph is so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mythos_export.signature import cache_parts, input_specs, output_specs
from mythos_export.targets import TARGETS
from mythos_export.weights.tensors import float_type
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture
from tests.docs.pages import prose

PAGE = prose("docs/graph.md")


def table(heading: str) -> list[list[str]]:
    """The cells of the page's table whose first heading this is."""
    found = re.search(rf"(?m)^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE)
    assert found is not None
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


@pytest.mark.parametrize("heading", ["input", "output"])
def test_signature(heading: str, mla_config: MythosConfig) -> None:
    parts = cache_parts(architecture(mla_config), "fp32")
    specs = input_specs(parts) if heading == "input" else output_specs(mla_config.vocab_size, parts, None)
    plain = [spec for spec in specs if spec.name.split(".")[0] not in ("past", "new")]
    told = [row for row in table(heading) if "<" not in row[0]]
    assert [row[0] for row in told] == [spec.name for spec in plain]
    for (_, shape, *_), spec in zip(told, plain):
        dtype = {"int64": "int64", "float32": "fp32"}[spec.dtype]
        sizes = {"past_plus_seq": "past + seq", "kept": "k", mla_config.vocab_size: "vocab"}
        assert shape == f"{dtype} [{', '.join(str(sizes.get(size, size)) for size in spec.shape)}]"


def test_cache_shapes(mla_config: MythosConfig) -> None:
    attention = ""
    told: dict[str, list[str]] = {"MLA": [], "GQA": []}
    config = replace(mla_config, n_kv_heads=1)  # every size of a row by a number of its own
    for each, part, shape in table("attention"):
        attention = each or attention
        sizes = re.findall(r"\w+", re.sub(r"\].*", "", shape))
        assert sizes[:3] == ["depth", "batch", "past"]
        told[attention].append(f"{part} {[getattr(config, size) for size in sizes[3:]]}")
    for attention, rows in told.items():
        parts = cache_parts(architecture(replace(config, attn_type=attention.lower())), "fp32")
        assert [f"{part.name.split('.')[1]} {part.row}" for part in parts] == rows * 3
        assert [part.name.split(".")[0] for part in parts[::2]] == ["prelude", "recurrent", "coda"]


def test_cache_types() -> None:
    told = {name: row[1].split(",")[0] for row in table("precision") for name in row[0].split(", ")}
    precisions = {precision for target in TARGETS.values() for precision in target.precisions}
    assert told == {precision: float_type(precision) for precision in precisions}


@dataclass
class Caller:
    """Two sequences of three tokens in one call, as asked but for what is given."""

    path: Path

    def __post_init__(self) -> None:
        self.manifest = json.loads((self.path / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(self.path / "model.onnx", options)

    def past(self, depth: int, value: float = 0.0, tokens: int = 0) -> dict[str, Any]:
        return {
            f"past.{part['name']}": np.full(
                (depth if part["depth"] == "loops" else part["depth"], 2, tokens, *part["row"]), value, part["dtype"]
            )
            for part in self.manifest["cache"]
        }

    def __call__(self, **given: Any) -> dict[str, Any]:
        inputs = {
            "input_ids": np.array([[5, 17, 30], [8, 40, 2]]),
            "attention_mask": np.ones((2, 3), np.int64),
            "position_ids": np.array([[0, 1, 2]] * 2),
            "n_loops": np.array([4, 2]),
            "logits_to_keep": np.array(0),
            **self.past(4),
            **given,
        }
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs)))


@pytest.fixture(scope="module")
def caller(tiny_bundle: Path) -> Caller:
    return Caller(tiny_bundle)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_loops": np.array([5, 2])}, "out of data bounds"),
        ({"attention_mask": np.ones((2, 2), np.int64)}, "cannot be reshaped"),
        ({"attention_mask": np.ones((2, 4), np.int64)}, "cannot be reshaped"),
        ({"input_ids": np.array([[5, 17, 97], [8, 40, 2]])}, "out of data bounds"),
    ],
)
def test_what_the_runtime_refuses(caller: Caller, given: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        caller(**given)


def test_no_loops_leave_nothing(caller: Caller) -> None:
    found = caller(n_loops=np.array([4, 0]))
    assert not found["logits"][1].any() and not found["halting.depth"][1].any()
    np.testing.assert_array_equal(found["logits"][0], caller()["logits"][0])


def test_a_negative_token_is_another(caller: Caller) -> None:
    last = caller(input_ids=np.array([[5, 17, 96], [8, 40, 2]]))["logits"]
    np.testing.assert_array_equal(caller(input_ids=np.array([[5, 17, -1], [8, 40, 2]]))["logits"], last)


def test_hidden_slots_must_be_finite(caller: Caller) -> None:
    mask = np.array([[0, 0, 1, 1, 1]] * 2)
    assert np.isnan(caller(attention_mask=mask, **caller.past(4, np.nan, tokens=2))["logits"]).all()
    found = caller(attention_mask=mask, **caller.past(4, 7.0, tokens=2))["logits"]
    np.testing.assert_allclose(found, caller()["logits"], atol=1e-4)


def test_a_cache_may_be_deeper_than_the_loop(caller: Caller) -> None:
    found = caller(**caller.past(9))
    np.testing.assert_array_equal(found["logits"], caller()["logits"])
    assert all(len(rows) == 4 for name, rows in found.items() if name.startswith("new.recurrent."))


def test_unrolled(make_bundle: Callable[..., Any], mla_config: MythosConfig, caller: Caller) -> None:
    bundle = make_bundle(mla_config, loops="3,4")
    unrolled = Caller(bundle.path)
    assert {graph["file"]: graph["loops"] for graph in unrolled.manifest["graphs"]} == {
        "model.onnx": "dynamic",
        "model.loops3.onnx": 3,
        "model.loops4.onnx": 4,
    }
    assert len(list(bundle.path.glob("*.data"))) == 1
    unrolled.session = onnxruntime.InferenceSession(bundle.path / "model.loops4.onnx")
    np.testing.assert_allclose(unrolled()["logits"], caller()["logits"], atol=1e-4)
    shallow = unrolled(n_loops=np.array([1, 2]))
    np.testing.assert_allclose(shallow["logits"], caller(n_loops=np.array([1, 2]))["logits"], atol=1e-4)
    assert all(len(rows) == 4 for name, rows in shallow.items() if name.startswith("new.recurrent."))
    np.testing.assert_array_equal(unrolled(n_loops=np.array([9, 2]))["logits"], unrolled()["logits"])
