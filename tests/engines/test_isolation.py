"""The engine runs where neither torch nor onnx is installed, and imports in no time."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import engines
import mythos_export
from mythos_export.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]

# An import hook, so that a stray `import torch` anywhere below fails as on a bare device.
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
BARE = ("torch", "onnx", "onnx_ir", "onnxscript", "reference_model", "safetensors", "calibration", "typer", "rich")


def run(code: str, *, absent: tuple[str, ...] = BARE) -> str:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent) + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


GENERATE = """
import json, mythos_export
engine = mythos_export.load({path!r})
print(json.dumps([list(engine.generate([1, 2, 3], loops=loops, max_new_tokens=8)) for loops in (1, 3)]))
"""


def test_the_toy_generates_without_the_export_packages(
    toy: Callable[..., Bundle], toy_tokens: Callable[..., list[int]]
) -> None:
    assert json.loads(run(GENERATE.format(path=str(toy().path)))) == [
        toy_tokens([1, 2, 3], loops, 8) for loops in (1, 3)
    ]


@pytest.mark.parametrize("fixture", ["tiny_bundle", "tiny_gqa_bundle"])
def test_a_real_bundle_generates_without_the_export_packages(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    tokens = json.loads(run(GENERATE.format(path=str(path))))
    assert [len(answer) for answer in tokens] == [8, 8]


def test_importing_needs_no_runtime() -> None:
    run("import engines, engines.text, engines.onnxruntime", absent=(*BARE, "onnxruntime", "tokenizers"))


def test_importing_loads_nothing_heavy() -> None:
    loaded = run("import engines; print(*sorted({name.split('.')[0] for name in sys.modules}))", absent=()).split()
    assert not {"onnxruntime", "torch", "onnx", "onnx_ir", "tokenizers", "typer", "rich"} & set(loaded)


def test_both_ways_in_take_the_same() -> None:
    ours, theirs = inspect.signature(mythos_export.load), inspect.signature(engines.load)
    assert [str(each) for each in ours.parameters.values()] == [str(each) for each in theirs.parameters.values()]


@pytest.mark.parametrize("load", [mythos_export.load, engines.load])
def test_every_option_arrives(load: Callable[..., engines.Engine], toy: Callable[..., Bundle]) -> None:
    hashed: list[int] = []
    bundle = toy()
    assert load(str(bundle.path), progress=hashed.append, threads=1).manifest == bundle.manifest
    assert sum(hashed) == bundle.total_bytes
    load(bundle.path, check_hashes=False, progress=hashed.append)
    assert sum(hashed) == bundle.total_bytes
    with pytest.raises(engines.EngineError, match="runtime is 'tpu'"):
        load(bundle.path, runtime="tpu")
