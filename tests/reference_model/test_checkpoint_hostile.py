"""Files that are damaged or mean harm: one clear line, and nothing of theirs runs."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from reference_model.checkpoint import CheckpointError, SeededWeights, check_fit, open_checkpoint
from reference_model.open_mythos.config import MythosConfig

SMALL = MythosConfig(
    vocab_size=11,
    dim=8,
    n_heads=2,
    n_kv_heads=1,
    max_seq_len=16,
    max_loop_iters=2,
    prelude_layers=1,
    coda_layers=1,
    attn_type="gqa",
    n_experts=2,
    n_shared_experts=1,
    n_experts_per_tok=1,
    expert_dim=4,
    lora_rank=2,
)
STATE = {name: SeededWeights(SMALL, 0).read(name) for name in sorted(SeededWeights(SMALL, 0).names())}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


class Harm:
    """Unpickles into a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


class TestMaliciousPickles:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "marker"

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "model.pt"

    def test_the_marker_works(self, marker: Path) -> None:
        pickle.loads(pickle.dumps(Harm(os.system, f"touch {marker}")))
        assert marker.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("where", ["top", "state", "optimizer", "cfg", "beside"])
    def test_os_system(self, path: Path, marker: Path, where: str, zipped: bool) -> None:
        harm = Harm(os.system, f"touch {marker}")
        saved: dict[str, Any] = {"model": dict(STATE), "cfg": asdict(SMALL), "optimizer": {"state": {0: {}}}}
        if where == "state":
            saved["model"]["norm.weight"] = harm
        elif where == "optimizer":
            saved["optimizer"]["state"][0]["exp_avg"] = [{"deep": (harm,)}]
        elif where == "cfg":
            saved["cfg"]["dim"] = harm
        elif where == "beside":
            saved["extra"] = harm
        torch.save(harm if where == "top" else saved, path, _use_new_zipfile_serialization=zipped)
        message = refusal(path)
        assert f"its pickle carries {os.system.__module__}.system, which is not weights" in message
        assert "save it again with torch.save(model.state_dict(), ...) or as safetensors" in message
        assert not marker.exists()

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol(self, path: Path, marker: Path, protocol: int) -> None:
        path.write_bytes(pickle.dumps({"norm.weight": Harm(os.system, f"touch {marker}")}, protocol=protocol))
        assert "system" in refusal(path)
        torch.save({"norm.weight": Harm(os.system, f"touch {marker}")}, path, pickle_protocol=protocol)
        assert "system" in refusal(path)
        assert not marker.exists()

    def test_eval(self, path: Path, marker: Path) -> None:
        torch.save({"model": STATE, "step": Harm(eval, f"open({str(marker)!r}, 'w')")}, path)
        assert "its pickle carries builtins.eval" in refusal(path)
        assert not marker.exists()

    def test_numpy_objects(self, path: Path, marker: Path) -> None:
        array = np.array([Harm(os.system, f"touch {marker}")], dtype=object)
        torch.save({"model": STATE, "rng": array}, path)
        assert f"its pickle carries {os.system.__module__}.system" in refusal(path)
        assert not marker.exists()

    def test_a_harmful_config_object(self, path: Path, marker: Path, upstream: ModuleType) -> None:
        cfg = upstream.MythosConfig(**asdict(SMALL))
        cfg.dim = Harm(os.system, f"touch {marker}")
        torch.save({"model": STATE, "cfg": cfg}, path)
        assert f"carries {os.system.__module__}.system" in refusal(path)
        assert not marker.exists()

    @pytest.mark.parametrize(
        "state", [None, [1], {"dim": torch.zeros(3)}, {1: 2}, {"dim": 10**100}, {"__class__": "x"}]
    )
    def test_a_config_object_of_strange_values(self, path: Path, upstream: ModuleType, state: Any) -> None:
        class Strange:
            def __reduce__(self) -> tuple[Any, ...]:
                return upstream.MythosConfig, (), state

        torch.save({"model": STATE, "cfg": Strange()}, path)
        source = open_checkpoint(path)
        assert source.config is None and "cfg is not a valid config" in str(source.config_problem)

    def test_a_config_cannot_be_called_with_arguments(self, path: Path, upstream: ModuleType) -> None:
        torch.save({"model": STATE, "cfg": Harm(upstream.MythosConfig, 1, 2)}, path)
        refusal(path)

    def test_memory_is_not_taken_by_a_pickle(self, path: Path) -> None:
        torch.save({"model": STATE, "x": Harm(bytearray, 1 << 50)}, path)
        assert "its pickle carries builtins.bytearray" in refusal(path)

    def test_another_class_of_open_mythos(self, path: Path, upstream: ModuleType) -> None:
        torch.save(upstream.RMSNorm(4), path)
        assert "its pickle carries open_mythos.main.RMSNorm" in refusal(path)

    def test_what_the_environment_allows_does_not_matter(
        self, path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        torch.save(Harm(os.system, f"touch {marker}"), path)
        refusal(path)
        assert not marker.exists()

    def test_open_mythos_need_not_be_installed(
        self, path: Path, upstream: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.save({"model": STATE, "cfg": upstream.MythosConfig(**asdict(SMALL))}, path)
        for name in [name for name in sys.modules if name.split(".")[0] == "open_mythos"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "open_mythos", None)  # type: ignore[arg-type]
        assert open_checkpoint(path).config == SMALL

    def test_nothing_stays_allowed(self, path: Path) -> None:
        torch.save({"model": STATE, "cfg": asdict(SMALL)}, path)
        open_checkpoint(path)
        assert not [entry for entry in torch.serialization.get_safe_globals() if "Config" in str(entry)]


class TestOddPickles:
    @pytest.mark.parametrize(
        ("saved", "message"),
        [
            ([torch.zeros(1)], "holds a list, not a state dict"),
            ({}, "holds no tensors"),
            ({"model": {}}, "holds no tensors"),
            ({"step": 3}, "'step' stands for a int, not a tensor"),
            ({3: torch.zeros(1)}, "a key of type int stands for"),
            ({"model": torch.zeros(1), "step": 1}, "'step' stands for a int"),
            ({"a": torch.zeros(2, device="meta")}, "which is not weights"),
            ({"a": torch.zeros(2, 2).to_sparse()}, "which is not weights"),
            (collections.Counter("ab"), "holds a Counter, not a state dict"),
        ],
    )
    def test_refused(self, tmp_path: Path, saved: Any, message: str) -> None:
        torch.save(saved, tmp_path / "model.pt")
        assert message in refusal(tmp_path / "model.pt")

    @pytest.mark.parametrize(
        ("beside", "problem"),
        [
            ({"cfg": 3}, "cfg is not a valid config: not a mapping"),
            ({"cfg": asdict(SMALL), "vocab_size": [3]}, "vocab_size is a list"),
        ],
    )
    def test_a_config_that_cannot_be_read(self, tmp_path: Path, beside: Any, problem: str) -> None:
        torch.save({"model": {"a": torch.zeros(1)}, **beside}, tmp_path / "model.pt")
        assert problem in str(open_checkpoint(tmp_path / "model.pt").config_problem)

    def test_torchscript(self, tmp_path: Path) -> None:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
        refusal(tmp_path / "model.pt")

    def test_a_foreign_zip(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
            archive.writestr("readme.txt", "hello")
        assert "a zip file without data.pkl" in refusal(tmp_path / "model.pt")

    def test_compressed_entries(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for entry in plain.infolist():
                archive.writestr(entry.filename, plain.read(entry))
        assert "its entries are compressed" in refusal(tmp_path / "model.pt")


class TestNotACheckpoint:
    @pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.bin", "model.safetensors.index.json"])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0",
            b"hello, world\n",
            b"PK\x03\x04",
            b"\x80\x02.",
            b"\x80\x04N.",
            b"{}",
            b"[]",
            b'{"a": 1}',
            os.urandom(5000),
        ],
    )
    def test_of_any_name(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)

    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(tmp_path / "nonesuch.pt")
        assert refusal(tmp_path / "file\0name")

    def test_a_directory_without_an_index(self, tmp_path: Path) -> None:
        assert "a folder without weights" in refusal(tmp_path)

    def test_a_directory_with_two(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
        assert "holds 2 files of weights (a.safetensors.index.json, b.safetensors" in refusal(tmp_path)

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in refusal(tmp_path / "pipe")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").touch(mode=0)
        assert "Permission denied" in refusal(tmp_path / "model.pt")

    @pytest.mark.parametrize("length", [0, 1, 7, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    def test_header_lengths(self, tmp_path: Path, length: int) -> None:
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":{}}')
        refusal(tmp_path / "model.safetensors")


class TestIndex:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
        directory = tmp_path / "model"
        directory.mkdir()
        save_file({"a": torch.zeros(1)}, directory / "shard.safetensors")
        return directory / "model.safetensors.index.json"

    def test_a_good_one(self, index: Path) -> None:
        index.write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
        assert open_checkpoint(index).names() == {"a"}

    @pytest.mark.parametrize(
        "shard", ["../outside.safetensors", "/etc/passwd", "..", ".", "", "sub/x", "a\\b", "c:x", "a\0b", "x/../shard"]
    )
    def test_shards_outside(self, index: Path, shard: str) -> None:
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        assert "is not a plain file name" in refusal(index)

    def test_an_absolute_path_to_a_good_file(self, index: Path, tmp_path: Path) -> None:
        index.write_text(json.dumps({"weight_map": {"a": str(tmp_path / "outside.safetensors")}}))
        assert "is not a plain file name" in refusal(index)

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ([], "has no weight_map"),
            ({}, "has no weight_map"),
            ({"weight_map": {}}, "has no weight_map"),
            ({"weight_map": ["a"]}, "has no weight_map"),
            ({"weight_map": {"a": 3}}, "a shard name is int, not a string"),
            ({"weight_map": {"a": "gone.safetensors"}}, "shard 'gone.safetensors' is missing"),
            ({"weight_map": {"a": "x" * 5000}}, "cannot be read|is missing"),
            ({"weight_map": {"a": "model.safetensors.index.json"}}, "truncated or damaged"),
            ({"weight_map": {"b": "shard.safetensors"}}, "lacks 1 tensors that the index promises, first 'b'"),
        ],
    )
    def test_refused(self, index: Path, document: Any, message: str) -> None:
        index.write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(index)

    @pytest.mark.parametrize("text", ["[" * 200_000, '{"weight_map": ' + "9" * 5000 + "}", "\ud800", "nan"])
    def test_bad_json(self, index: Path, text: str) -> None:
        index.write_bytes(text.encode("utf-8", "surrogatepass"))
        refusal(index)

    def test_a_truncated_shard(self, index: Path) -> None:
        index.write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
        shard = index.with_name("shard.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1])
        assert "truncated or damaged" in refusal(index)


def valid_files() -> dict[str, bytes]:
    """One small checkpoint in each format, as bytes."""
    files = {}
    for zipped in (True, False):
        buffer = io.BytesIO()
        saved = {"model": STATE, "cfg": asdict(SMALL), "vocab_size": SMALL.vocab_size}
        torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
        files["zip" if zipped else "legacy"] = buffer.getvalue()
    files["safetensors"] = save(STATE, metadata={"config": SMALL.to_json()})
    return files


FILES = valid_files()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model"


def use_all(path: Path) -> None:
    """Everything that the product does with a checkpoint; only a clear refusal may come of it."""
    message = ""
    try:
        source = open_checkpoint(path)
        for name in source.names():
            source.read(name).abs()
        check_fit(source, source.config or SMALL)
    except CheckpointError as error:
        message = str(error)
    assert message.isprintable()


class TestDamage:
    @pytest.mark.parametrize("kind", FILES)
    def test_the_valid_files_are_valid(self, kind: str, scratch: Path) -> None:
        scratch.write_bytes(FILES[kind])
        source = open_checkpoint(scratch)
        assert source.config == SMALL
        check_fit(source, SMALL)

    @pytest.mark.parametrize("kind", ["zip", "safetensors"])
    @pytest.mark.parametrize("kept", [0.01, 0.3, 0.5, 0.9, 0.999])
    def test_truncation_is_seen_at_once(self, kind: str, kept: float, scratch: Path) -> None:
        scratch.write_bytes(FILES[kind][: int(len(FILES[kind]) * kept)])
        assert refusal(scratch)

    @pytest.mark.parametrize("kind", FILES)
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flipped_and_cut_bytes(self, kind: str, scratch: Path, data: st.DataObject) -> None:
        content = bytearray(FILES[kind])
        # Half of the flips hit the first bytes, where the structure of two of the formats is.
        position = st.integers(0, len(content) - 1) | st.integers(0, 4000)
        for place, value in data.draw(st.lists(st.tuples(position, st.integers(0, 255)), max_size=4)):
            content[min(place, len(content) - 1)] = value
        start, length = data.draw(st.tuples(st.integers(0, len(content)), st.integers(0, 64) | st.just(len(content))))
        if data.draw(st.booleans()):
            del content[start : start + length]
        scratch.write_bytes(content)
        use_all(scratch)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flips_inside_the_pickle_of_a_sound_zip(self, scratch: Path, data: st.DataObject) -> None:
        """A checksum guards no one: whoever means harm writes a fitting one."""
        with (
            zipfile.ZipFile(io.BytesIO(FILES["zip"])) as plain,
            zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive,
        ):
            for entry in plain.infolist():
                content = bytearray(plain.read(entry))
                if entry.filename.endswith("data.pkl"):
                    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
                    for place, value in data.draw(flips):
                        content[place] = value
                archive.writestr(entry.filename, bytes(content))
        use_all(scratch)

    def test_a_file_replaced_after_it_was_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(STATE, path)
        source = open_checkpoint(path)
        path.unlink()
        save_file({name: tensor.double() for name, tensor in STATE.items()}, path)
        with pytest.raises(CheckpointError, match=r"norm.weight changed while it was being read"):
            source.read("norm.weight")
