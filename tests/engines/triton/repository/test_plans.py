"""The TensorRT backend: engines of TensorRT proper, shown on receipts that no TensorRT wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineError
from engines.receipts import Axis, EngineEntry, Profile, Receipt, source_hash
from engines.triton.repository.config import parse_config
from engines.triton.repository.write import write_repository
from mythos_export.bundle import Bundle, file_entry

WIDE = Profile(
    batch=Axis(min=1, opt=1, max=4),
    seq=Axis(min=1, opt=8, max=32),
    past=Axis(min=0, opt=8, max=64),
    loops=Axis(min=1, opt=4, max=8),
)


def reopened(folder: Path, **changes: Any) -> Bundle:
    manifest = Bundle.open(folder, check_hashes=False).manifest
    listed = {name: file_entry(folder / name) for name in manifest.files}
    return Bundle(folder, manifest.model_copy(update={"target": "tensorrt", "files": listed, **changes}))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """As an export for TensorRT."""
    return reopened(Path(shutil.copytree(tiny_bundle, tmp_path / "bundle")))


def build(
    bundle: Bundle, sm: str, *, runtime: str = "tensorrt", profile: Profile = WIDE, graph: str = "model.onnx"
) -> Path:
    """An engine and its receipt."""
    stem = f"sm{sm.replace('.', '')}"
    folder = bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    plan = folder / f"{stem}.model.plan"
    plan.write_bytes(f"engine for {sm}".encode())
    engine = EngineEntry(
        file=plan.name,
        loops="dynamic",
        graph=graph,
        source=source_hash(bundle, graph),
        entry=file_entry(plan),
        seconds=1.0,
        gemms=None,
    )
    receipt = Receipt(
        format_version=1,
        sm=sm,
        runtime=runtime,
        runtime_version="10.3.0",
        tool="0",
        created="",
        precision="fp32",
        flags=[],
        profile=profile,
        engines=[engine],
    )
    (folder / f"{stem}.json").write_text(receipt.model_dump_json())
    return plan


def written(bundle: Bundle) -> Path:
    destination = bundle.path.parent / "repo"
    return write_repository(bundle, destination, backend="tensorrt", device="gpu", name="m").path


def test_one_engine(bundle: Bundle) -> None:
    build(bundle, "8.9")
    repository = written(bundle)
    version = repository / "m-tensors" / "1"
    assert {path.name: path.read_bytes() for path in version.iterdir()} == {"model.plan": b"engine for 8.9"}
    config = parse_config((repository / "m-tensors" / "config.pbtxt").read_text())
    assert config.backend == "tensorrt" and config.instance_group[0].kind == 1 and not config.cc_model_filenames
    assert [(port.name, list(port.dims)) for port in config.input if port.is_shape_tensor] == [("logits_to_keep", [1])]
    readme = (repository / "README.md").read_text()
    assert "not yet run on hardware" in readme
    assert "on 8.9 it needs TensorRT 10.3.0, and takes batch 1 to 4, seq 1 to 32, past 0 to 64, loops 1 to 8" in readme
    assert not (repository / "m" / "1" / "bundle" / "engines").exists(), "the generator runs the graph"


def test_one_engine_for_each_gpu(bundle: Bundle) -> None:
    build(bundle, "8.7")
    build(bundle, "12.0")
    build(bundle, "8.9", runtime="tensorrt_rtx")
    repository = written(bundle)
    config = parse_config((repository / "m-tensors" / "config.pbtxt").read_text())
    assert dict(config.cc_model_filenames) == {"8.7": "model.sm87.plan", "12.0": "model.sm120.plan"}
    for sm, file in config.cc_model_filenames.items():
        assert (repository / "m-tensors" / "1" / file).read_bytes() == f"engine for {sm}".encode()


def test_another_targets_bundle(bundle: Bundle) -> None:
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"target": "portable"}))
    with pytest.raises(EngineError, match="made for target 'portable'; export it with --target tensorrt"):
        written(other)


def test_no_engines(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="has no engines of TensorRT proper; Triton's"):
        written(bundle)


def test_engines_of_the_other_tensorrt(bundle: Bundle) -> None:
    build(bundle, "8.9", runtime="tensorrt_rtx")
    with pytest.raises(EngineError, match=r"but those of tensorrt_rtx; .*or use --backend onnxruntime --device gpu"):
        written(bundle)


def test_an_engine_that_is_altered(bundle: Bundle) -> None:
    build(bundle, "8.9").write_bytes(b"engine for 8.6")
    with pytest.raises(EngineError, match=r"sm89\.model\.plan: altered since it was built"):
        written(bundle)


def test_an_engine_that_is_stale(bundle: Bundle) -> None:
    build(bundle, "8.9")
    files = {**bundle.manifest.files, "model.onnx": bundle.manifest.files["config.json"]}
    with pytest.raises(EngineError, match=r"was built from another model\.onnx"):
        written(Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files})))


def test_engines_of_another_graph_only(bundle: Bundle) -> None:
    build(bundle, "8.9", graph="config.json")
    with pytest.raises(EngineError, match=r"the receipt for 8\.9 has no engine of model\.onnx"):
        written(bundle)


def test_engines_that_cannot_begin_a_sequence(bundle: Bundle) -> None:
    build(bundle, "8.9", profile=WIDE.model_copy(update={"past": Axis(min=4, opt=8, max=64)}))
    with pytest.raises(EngineError, match="want 4 cached tokens at least, so that no sequence could begin"):
        written(bundle)


@pytest.mark.parametrize("content", ["{", '{"runtime": 1}', ""])
def test_a_receipt_that_is_none(bundle: Bundle, content: str) -> None:
    build(bundle, "8.9")
    (bundle.path / "engines" / "sm89.json").write_text(content)
    with pytest.raises(EngineError, match=r"sm89\.json: not a usable receipt"):
        written(bundle)
