"""Only a family's own folder knows what its weights are called; elsewhere the description is asked."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("mythos_export", "calibration", "engines")

# In a string: a name, or how one begins or ends.
_NAMES = re.compile(
    r"kv_up|q_down|q_up_|kv_down|routed_experts|shared_experts|router_bias|log_A|log_dt|\.lora\b|\.injection\b|\.halt\b"
    r"|\b(recurrent|coda|prelude)\.(\w|$)|\bembed\.(\w|$)|\bnorm\.weight|\.weight\b|lm_head"
)
# An attribute of a module, which is called as its weights are.
_MODULES = frozenset({"recurrent", "kv_up", "routed_experts", "shared_experts", "router_bias", "injection", "lora"})

# Files that still do. Each entry goes when its file no longer needs it; no file may be added.
STILL = {
    "calibration/simulate.py": "rounds where the modules of one family are",
    "mythos_export/assemble.py": "lays down one family's stages, its head and its norm",
    "mythos_export/html_report/quantization.py": "shortens names of layers",
    "mythos_export/parity/probe.py": "names values as one family's trace does",
    "mythos_export/parity/reference.py": "looks into the modules of one family",
    "mythos_export/stages.py": "takes the modules of one family apart",
    "mythos_export/trace.py": "makes modules of one family",
}


def names_in(source: str) -> Iterator[str]:
    """What a file says of weights' names: in strings that are not docstrings, and as attributes."""
    tree = ast.parse(source)
    texts = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            if _NAMES.search(node.value):
                yield f"{node.lineno}: {node.value[:80]!r}"
        elif isinstance(node, ast.Attribute) and node.attr in _MODULES:
            yield f"{node.lineno}: .{node.attr}"


FILES = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_no_file_but_those_knows_a_weights_name(file: str) -> None:
    found = list(names_in((ROOT / file).read_text(encoding="utf-8")))
    if file in STILL:
        assert found, f"{file} is clean: take it off the list"
    else:
        assert not found


def test_the_list_names_files_that_are_there() -> None:
    assert STILL.keys() <= set(FILES)


@pytest.mark.parametrize(
    "planted",
    [
        'name.startswith("recurrent.")',
        'name.endswith(".kv_up.weight")',
        'f"coda.{layer}.attn"',
        'graph.initializers["embed.weight"]',
        'TABLE = "model.routed_experts.gate"',
        "model.recurrent.block",
        're.compile(r"(^|[._])norm\\.weight$")',
    ],
)
def test_each_way_of_knowing_one_is_seen(planted: str) -> None:
    assert list(names_in(planted))


@pytest.mark.parametrize(
    "harmless", ['"""Of recurrent.block.attn."""', '"Prelude, then coda. "', '"--keep coda.*"', "architecture.by_name"]
)
def test_words_are_no_names(harmless: str) -> None:
    assert not list(names_in(harmless))
