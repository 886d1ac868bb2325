"""Bundles that move, change or are links."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

import engines
from engines import EngineError
from engines.linked_bundle import plain_folder
from mythos_export.bundle import Bundle, BundleError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def in_hub_cache(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle as `huggingface_hub` lays it in its cache."""
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for file in tiny_bundle.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, repository / "blobs" / blob)
        os.symlink(f"../../blobs/{blob}", snapshot / file.name)
    return snapshot


def tokens(engine: engines.Engine) -> list[int]:
    return list(engine.generate([1, 2, 3], loops=2, max_new_tokens=3))


class TestWorkingFolder:
    def test_a_relative_path_outlives_it(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(bundle.parent)
        engine = engines.load("bundle")
        monkeypatch.chdir("/")
        assert tokens(engine) == tokens(engines.load(bundle))


class TestReplaced:
    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
    def test_between_opening_and_first_use_it_is_noticed(self, bundle: Path, name: str) -> None:
        engine = engines.load(bundle)
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / "other").write_bytes(content)
        (bundle / "other").replace(bundle / name)
        with pytest.raises((BundleError, EngineError), match=f"{name}: changed since the bundle was opened"):
            tokens(engine)

    def test_removed(self, bundle: Path) -> None:
        engine = engines.load(bundle)
        (bundle / "model.onnx.data").unlink()
        with pytest.raises((BundleError, EngineError), match="changed since the bundle was opened"):
            tokens(engine)


class TestHubCache:
    @pytest.mark.parametrize("check_hashes", [True, False])
    def test_it_opens_and_runs(self, in_hub_cache: Path, tiny_bundle: Path, check_hashes: bool) -> None:
        Bundle.open(in_hub_cache, check_hashes=check_hashes)
        assert tokens(engines.load(in_hub_cache)) == tokens(engines.load(tiny_bundle))

    def test_a_graph_with_more_outputs_runs_too(self, in_hub_cache: Path) -> None:
        engine = engines.load(in_hub_cache)
        file = engine.manifest.graphs[0]
        graph = engine.load_model((in_hub_cache / file.file).read_bytes(), file)  # type: ignore[attr-defined]
        assert graph.loops == file.loops
        with plain_folder(engine.bundle) as folder:
            assert not any(path.is_symlink() for path in folder.iterdir())
        assert not folder.exists()

    @pytest.mark.parametrize("check_hashes", [True, False])
    def test_the_hash_of_what_a_link_leads_to_is_always_checked(self, in_hub_cache: Path, check_hashes: bool) -> None:
        blob = (in_hub_cache / "model.onnx.data").resolve()
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
        with pytest.raises(BundleError, match=r"model\.onnx\.data: altered since it was exported"):
            Bundle.open(in_hub_cache, check_hashes=check_hashes)

    def test_a_link_to_another_file_is_refused(self, in_hub_cache: Path) -> None:
        (in_hub_cache / "config.json").unlink()
        os.symlink("/etc/hostname", in_hub_cache / "config.json")
        with pytest.raises(BundleError, match=r"config\.json: "):
            Bundle.open(in_hub_cache, check_hashes=False)

    def test_a_link_that_leads_nowhere(self, in_hub_cache: Path) -> None:
        (in_hub_cache / "config.json").unlink()
        os.symlink("config.json", in_hub_cache / "config.json")
        with pytest.raises(BundleError, match=r"config\.json: "):
            Bundle.open(in_hub_cache)
