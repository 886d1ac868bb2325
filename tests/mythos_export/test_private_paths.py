"""A bundle tells nobody where on the exporting machine anything lay, or whose machine it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from mythos_export import cli
from mythos_export.commands.export import without_folders
from reference_model.checkpoint import SeededWeights
from reference_model.open_mythos.config import MythosConfig

ROOT = Path(__file__).resolve().parents[2]
USER = "ann-onymous"  # in every path below, and a name that occurs nowhere by itself
Run = Callable[..., Any]


def call(patch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    patch.setattr(sys, "argv", ["mythos-export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mla_config: MythosConfig) -> Path:
    """A user's folder with a checkpoint, data and two bundles, all named by their absolute paths."""
    home = tmp_path_factory.mktemp("homes") / USER
    (home / "models").mkdir(parents=True)
    source = SeededWeights(mla_config, 0)
    save_file({name: source.read(name) for name in source.names()}, home / "models" / "tiny.safetensors")
    (home / "models" / "shape.json").write_text(mla_config.to_json())
    np.save(home / "models" / "tokens.npy", np.random.default_rng(0).integers(0, 97, (4, 64)))
    model = ("--config", home / "models" / "shape.json", "--checkpoint", home / "models" / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HOME", str(home))
        patch.setenv("USER", USER)
        patch.setenv("LOGNAME", USER)
        call(patch, *model, f"--output={home}/bundles/plain", "--loops", "2,3")
        data = ("--calibration-data", home / "models" / "tokens.npy")
        call(patch, "export", *model, "-o", home / "bundles" / "int8", "--precision", "int8", *data)
        recipe = ("--recipe", home / "bundles" / "int8" / "recipe.json")
        call(patch, *model, f"-o{home}/bundles/again", "--precision=int8", *recipe, "--no-validate")
        call(patch, "triton", home / "bundles" / "plain", "--repository", home / "repository")
        call(patch, "report", home / "bundles" / "int8")
    return home


@pytest.mark.parametrize("folder", ["bundles/plain", "bundles/int8", "bundles/again", "repository"])
def test_no_file_names_a_folder(home: Path, folder: str) -> None:
    files = [path for path in (home / folder).rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in (USER, str(ROOT), sys.prefix, "site-packages"):
            assert secret.encode() not in content, f"{path.name} holds {secret}"


def test_what_it_names_instead(home: Path) -> None:
    manifest = json.loads((home / "bundles" / "again" / "manifest.json").read_text())
    assert manifest["command"] == [
        *("mythos-export", "--config", "shape.json", "--checkpoint", "tiny.safetensors", "-oagain"),
        *("--precision=int8", "--recipe", "recipe.json", "--no-validate"),
    ]
    assert manifest["source"]["file"] == "tiny.safetensors"
    assert len(manifest["source"]["sha256"]) == 64
    report = (home / "bundles" / "again" / "report.html").read_text()
    assert "tiny.safetensors" in report and manifest["source"]["sha256"] in report


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("/home/ann/x.pt", "x.pt"),
        ("../x.pt", "x.pt"),
        ("weights/", "weights"),
        ("--checkpoint=/home/ann/x.pt", "--checkpoint=x.pt"),
        ("--output=runs/demo", "--output=demo"),
        ("-o/home/ann/out", "-oout"),
        ("-o", "-o"),
        ("--no-validate", "--no-validate"),
        ("--keep=coda.*,auto:0.1", "--keep=coda.*,auto:0.1"),
        ("..", ".."),
        ("/", "/"),
        ("hf://org/name", "hf://org/name"),
        ("a=b/c\nd/e", "e"),
        ("", ""),
    ],
)
def test_words(typed: str, recorded: str) -> None:
    assert without_folders(typed) == recorded


class TestFindingItAgain:
    """`verify` wants the checkpoint, and knows its name and hash."""

    @pytest.fixture
    def bundle(self, home: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(home / "bundles" / "again", tmp_path / "elsewhere" / "bundle"))

    def test_not_there(self, refused: Run, bundle: Path) -> None:
        line = refused("verify", bundle)
        assert "'tiny.safetensors' is neither in the working folder nor beside the bundle; pass --checkpoint" in line

    def test_named(self, run: Run, bundle: Path, home: Path) -> None:
        assert run("verify", bundle, "--loops", "1", "--checkpoint", home / "models" / "tiny.safetensors").code == 0

    @pytest.mark.parametrize("place", ["work", "elsewhere"])
    def test_nearby(self, run: Run, bundle: Path, home: Path, tmp_path: Path, place: str) -> None:
        shutil.copy(home / "models" / "tiny.safetensors", tmp_path / place)
        assert run("verify", bundle, "--loops", "1").code == 0

    def test_another_of_that_name(self, refused: Run, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "work" / "tiny.safetensors").write_bytes(b"no checkpoint")
        assert "pass --checkpoint" in refused("verify", bundle)

    @pytest.mark.parametrize("name", ["../models/tiny.safetensors", "", "..", "a\0b", "x" * 5000, "a\nb"])
    def test_a_name_that_leads_elsewhere(
        self, refused: Run, bundle: Path, home: Path, tmp_path: Path, name: str
    ) -> None:
        shutil.copytree(home / "models", tmp_path / "models")
        values = json.loads((bundle / "manifest.json").read_text())
        values["source"]["file"] = name
        (bundle / "manifest.json").write_text(json.dumps(values))
        assert "pass --checkpoint" in refused("verify", bundle)

    def test_a_manifest_of_an_earlier_release(self, run: Run, bundle: Path, home: Path) -> None:
        values = json.loads((bundle / "manifest.json").read_text())
        del values["source"]["file"]
        values["source"]["path"] = str(home / "models" / "tiny.safetensors")
        (bundle / "manifest.json").write_text(json.dumps(values))
        assert run("verify", bundle, "--loops", "1").code == 0
