"""The product changes no function, class or module of its own while it runs: who computes is an argument (`ops`)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("calibration", "engines", "mythos_export", "reference_model")
FILES = sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))


def patches(source: str) -> Iterator[str]:
    """Where a source replaces what it imported, or methods of objects."""
    tree = ast.parse(source)
    ours = set()  # names imported from the product
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            modules = [module] if module else [alias.name for alias in node.names]
            if any(name.split(".")[0] in ("unittest", "mock", "pytest") for name in modules):
                yield f"line {node.lineno} imports {modules[0]}"
            if any(name.split(".")[0] in PRODUCT for name in modules):
                ours |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "MethodType":
            yield f"line {node.lineno} binds a method to an object"
        targets = node.targets if isinstance(node, ast.Assign) else ()
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in ours:
                yield f"line {node.lineno} assigns to {target.value.id}.{target.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" and ast.unparse(node.args[0]) != "sys":
            yield f"line {node.lineno} calls setattr"  # streams of the process are another matter


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_patched(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert list(patches(source)) == []
    assert "type: ignore[method-assign" not in source


@pytest.mark.parametrize(
    "source",
    [
        "from unittest.mock import patch",
        "import unittest.mock",
        "from reference_model.components.norms import RMSNorm\nRMSNorm.forward = None",
        "from mythos_export import passes\npasses.LowerNorm = None",
        "from types import MethodType\nMethodType(len, 1)",
        "setattr(model, 'head', None)",
    ],
)
def test_a_patch_is_seen(source: str) -> None:
    assert list(patches(source))
