"""Whatever a user gets wrong is one clear line on stderr, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from mythos_export import cli
from mythos_export.bundle import file_entry
from reference_model.checkpoint import SeededWeights
from reference_model.open_mythos.config import MythosConfig

ROOT = Path(__file__).resolve().parents[2]


Run = Callable[..., Any]  # of an outcome
Refused = Callable[..., str]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(bundle: Path, **changes: Any) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(values | changes))


def rehash(bundle: Path) -> None:
    """Let the manifest vouch for what its files hold now."""
    names = json.loads((bundle / "manifest.json").read_text())["files"]
    edit_manifest(bundle, files={name: file_entry(bundle / name).model_dump() for name in names})


class TestModel:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--scale", "2b"], "unknown scale '2b'; known: "),
            (["--scale", ""], "unknown scale ''"),
            (["--scale", "\x1b[31m1b\n"], "unknown scale"),
            (["--dry-run"], "which model? give --scale"),
            (["--scale", "1b", "--attn", "flash"], "--attn is 'flash'; it must be mla or gqa"),
            (["--scale", "1b", "--target", "tpu"], "unknown target 'tpu'; known: portable"),
            (["--scale", "1b", "--precision", "int3"], "no precision 'int3'; it has: fp32"),
            (["--scale", "1b", "--opset", "7"], "--opset is 7"),
            (["--scale", "1b", "--opset", "99"], "--opset is 99"),
            (["--scale", "1b", "--opset", "new"], "Invalid value for '--opset'"),
            (["--scale", "1b", "--seed", "-1"], "--seed is -1"),
            (["--scale", "1b", "--seed", "9" * 30], "--seed is 999"),
            (["--scale", "1b", "--seed", "x"], "Invalid value for '--seed'"),
            (["--scale", "1b", "--frobnicate"], "No such option: --frobnicate"),
            (["--scale"], "requires an argument"),
            (["frobnicate"], "No such command 'frobnicate'"),
            (["--scale", "1b", "verify", "x"], "unexpected extra argument"),
            (["export", "--scale", "2b"], "unknown scale '2b'; known: "),
            (["export"], "which model? give --scale"),
            (["export", "runs/demo"], "unexpected extra argument"),
            (["--scale", "\udcff"], "is not valid UTF-8"),
        ],
    )
    def test_that_cannot_be_meant(self, refused: Refused, arguments: list[str], complaint: str) -> None:
        assert complaint in refused(*arguments)

    def test_named_twice(self, refused: Refused, config_file: Path) -> None:
        assert "give one" in refused("--scale", "1b", "--config", config_file)

    @pytest.mark.parametrize("loops", ["0", "-3", "abc", "1,x", "", "9999999999999999999", "4,4", "+-3"])
    def test_at_a_depth_that_means_nothing(self, refused: Refused, loops: str) -> None:
        assert f"--loops is {loops!r}" in refused("--scale", "1b", f"--loops={loops}")


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"dim": 60}, "head dim 15"),
            ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd"),
            ({"n_experts_per_tok": 7}, "n_experts_per_tok 7 (top-k) exceeds n_experts 6"),
            ({"dim": 1 << 31}, "more than fit in any file"),
            ({"dim": 10**40}, "dim is 1000"),
            ({"attn_type": "\x1b[2J\n"}, "attn_type is"),
        ],
    )
    def test_that_no_model_has(
        self, refused: Refused, config_file: Path, mla_config: MythosConfig, changes: dict[str, Any], complaint: str
    ) -> None:
        config_file.write_text(json.dumps(asdict(mla_config) | changes))
        assert complaint in refused("--config", config_file)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)])
    def test_that_is_none(self, refused: Refused, config_file: Path, content: bytes) -> None:
        config_file.write_bytes(content)
        assert "config.json: " in refused("--config", config_file)

    def test_that_is_missing(self, refused: Refused) -> None:
        assert "No such file" in refused("--config", "none.json")

    def test_that_is_a_folder(self, refused: Refused, tmp_path: Path) -> None:
        assert "cannot be read" in refused("--config", tmp_path)


class Malicious:
    """What unpickling would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class TestCheckpoint:
    def save(self, config: MythosConfig, file: Path) -> Path:
        source = SeededWeights(config, 0)
        save_file({name: source.read(name) for name in source.names()}, file)
        return file

    def test_that_is_missing(self, refused: Refused, config_file: Path) -> None:
        line = refused("--config", config_file, "--checkpoint", "none.safetensors")
        assert "none.safetensors: no such file" in line

    @pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
    def test_that_is_empty(self, refused: Refused, config_file: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")
        assert "the file is empty" in refused("--config", config_file, "--checkpoint", tmp_path / name)

    def test_that_is_truncated(
        self, refused: Refused, config_file: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        file = self.save(mla_config, tmp_path / "x.safetensors")
        os.truncate(file, file.stat().st_size - 1)
        assert "truncated or damaged" in refused("--config", config_file, "--checkpoint", file)

    def test_saved_by_torch_and_truncated(self, refused: Refused, config_file: Path, tmp_path: Path) -> None:
        torch.save({"embed.weight": torch.zeros(97, 64)}, tmp_path / "x.pt")
        os.truncate(tmp_path / "x.pt", 5000)
        line = refused("--config", config_file, "--checkpoint", tmp_path / "x.pt")
        assert "x.pt: " in line

    def test_of_the_other_attention(
        self, refused: Refused, config_file: Path, tmp_path: Path, gqa_config: MythosConfig
    ) -> None:
        file = self.save(gqa_config, tmp_path / "x.safetensors")
        assert "these weights have gqa attention" in refused("--config", config_file, "--checkpoint", file)

    def test_of_another_size(
        self, refused: Refused, config_file: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        file = self.save(replace(mla_config, vocab_size=98), tmp_path / "x.safetensors")
        line = refused("--config", config_file, "--checkpoint", file)
        assert "1 of another shape (embed.weight [98, 64] where [97, 64] is needed)" in line

    def test_of_another_architecture(self, refused: Refused, config_file: Path, tmp_path: Path) -> None:
        save_file({"transformer.wte.weight": torch.zeros(4)}, tmp_path / "x.safetensors")
        line = refused("--config", config_file, "--checkpoint", tmp_path / "x.safetensors")
        assert "this is not an OpenMythos checkpoint" in line

    def test_whose_loop_diverges(
        self, refused: Refused, config_file: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        source = SeededWeights(mla_config, 0)
        tensors = {name: source.read(name) for name in source.names()}
        tensors["recurrent.injection.log_A"] = torch.full_like(tensors["recurrent.injection.log_A"], float("nan"))
        save_file(tensors, tmp_path / "x.safetensors")
        line = refused("--config", config_file, "--checkpoint", tmp_path / "x.safetensors")
        assert "spectral radius of the injection is nan" in line

    @pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
    def test_that_would_run_a_program(self, refused: Refused, config_file: Path, tmp_path: Path, form: str) -> None:
        file, marker = tmp_path / "x.pt", tmp_path / "ran"
        content = {"model": Malicious(marker)}
        if form == "pickle":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form == "torch")
        line = refused("--config", config_file, "--checkpoint", file)
        assert "system, which is not weights; it was not run" in line
        assert not marker.exists()

    def test_malice_would_have_worked(self, tmp_path: Path) -> None:
        """Guards the test above."""
        pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
        assert (tmp_path / "ran").exists()


class TestOutput:
    def test_that_exists(self, refused: Refused, config_file: Path, bundle: Path) -> None:
        assert "exists already; pass --force" in refused("--config", config_file, "--output", bundle)

    def test_that_exists_by_default_name(self, refused: Refused, config_file: Path, tmp_path: Path) -> None:
        (tmp_path / "work" / "mythos-config-fp32").mkdir()
        assert "mythos-config-fp32: exists already" in refused("--config", config_file)

    def test_that_force_does_not_replace(self, refused: Refused, config_file: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "manifest.json").write_text('{"manifest_version": 3}')
        line = refused("--config", config_file, "--output", tmp_path / "mine", "--force")
        assert "is not a bundle, so --force will not replace it" in line

    @pytest.mark.parametrize("output", ["../config.json/x", "../config.json/x/y", "/proc/x", "/dev/null/x", "y" * 300])
    def test_that_cannot_be_made(self, refused: Refused, config_file: Path, output: str) -> None:
        assert "cannot be written" in refused("--config", config_file, "--output", output)

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
    def test_in_a_read_only_folder(self, refused: Refused, config_file: Path, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0o555)
        line = refused("--config", config_file, "--output", tmp_path / "closed" / "x")
        assert "Permission denied" in line


@pytest.mark.parametrize("verb", [["verify"], ["generate", "--tokens", "1,2"]], ids=["verify", "generate"])
class TestBundle:
    def test_that_is_not_there(self, refused: Refused, verb: list[str]) -> None:
        assert "no such folder" in refused(*verb, "none")

    @pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json"])
    def test_with_a_flipped_byte(self, refused: Refused, bundle: Path, verb: list[str], name: str) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)
        assert "altered since it was exported" in refused(*verb, bundle)

    def test_that_is_truncated(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        os.truncate(bundle / "model.onnx.data", 1000)
        assert "1000 bytes where the manifest says" in refused(*verb, bundle)

    def test_that_lacks_a_file(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        (bundle / "model.onnx.data").unlink()
        assert "model.onnx.data: missing" in refused(*verb, bundle)

    @pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a\nb\x1b[2J"])
    def test_that_climbs_out(self, refused: Refused, bundle: Path, verb: list[str], name: str) -> None:
        edit_manifest(bundle, files={name: {"sha256": "0" * 64, "size": 0}})
        assert "refused" in refused(*verb, bundle)

    def test_with_a_linked_file(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        (bundle / "model.onnx.data").rename(bundle.parent / "elsewhere")
        (bundle / "model.onnx.data").symlink_to(bundle.parent / "elsewhere")
        assert "leads out of the bundle" in refused(*verb, bundle)

    def test_of_a_future_format(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        edit_manifest(bundle, format_version=2)
        assert "upgrade mythos-export" in refused(*verb, bundle)

    @pytest.mark.parametrize("content", ["", "[" * 100_000, "1" * 5000, '{"format_version": 1}', "x" * (5 << 20)])
    def test_with_junk_for_a_manifest(self, refused: Refused, bundle: Path, verb: list[str], content: str) -> None:
        (bundle / "manifest.json").write_text(content)
        assert "manifest.json: " in refused(*verb, bundle)

    @pytest.mark.parametrize("location", ["../../../../../../../../etc/hostname", "/etc/hostname", "unlisted"])
    def test_whose_graph_reads_other_files(
        self, refused: Refused, bundle: Path, verb: list[str], location: str
    ) -> None:
        """The manifest vouches for the graph."""
        shutil.copy(bundle / "model.onnx.data", bundle / "unlisted")
        model = onnx.load(bundle / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        onnx.save(model, bundle / "model.onnx")
        rehash(bundle)
        assert "which is not a file of this bundle; refused" in refused(*verb, bundle)

    def test_whose_graph_is_none(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        (bundle / "model.onnx").write_bytes(b"not a graph")
        rehash(bundle)
        assert "not an ONNX graph" in refused(*verb, bundle)

    def test_whose_graph_is_empty(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        (bundle / "model.onnx").write_bytes(b"")
        rehash(bundle)
        assert "model.onnx: ONNX Runtime cannot load it" in refused(*verb, bundle)

    def test_whose_weights_lie_beyond_their_file(self, refused: Refused, bundle: Path, verb: list[str]) -> None:
        os.truncate(bundle / "model.onnx.data", 1000)
        rehash(bundle)
        assert "cannot" in refused(*verb, bundle)


class TestGenerate:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--tokens", "1,97"], "token id 97 at position 1 is not in 0..96"),
            (["--tokens", "-1"], "token id -1"),
            (["--tokens", "9" * 30], "token id 999"),
            (["--tokens", "1,x"], "--tokens is '1,x'"),
            (["--tokens", "1.5"], "--tokens is '1.5'"),
            (["--tokens", ""], "--tokens is ''"),
            (["--tokens", "9" * 5000], "--tokens is '999"),
            (["--tokens", ",".join(["1"] * 257)], "257 tokens, more than max_seq_len 256"),
            (["--tokens", ",".join(["1"] * 256)], "fills max_seq_len 256"),
            (["--tokens", "1", "--max-new-tokens", "256"], "ask for at most 255"),
            (["--tokens", "1", "--max-new-tokens", "0"], "max_new_tokens is 0"),
            (["--tokens", "1", "--max-new-tokens", "-4"], "max_new_tokens is -4"),
            (["--tokens", "1", "--max-new-tokens", "9" * 30], "ask for at most 255"),
            (["--tokens", "1", "--loops", "0"], "loops is 0"),
            (["--tokens", "1", "--loops", "-1"], "loops is -1"),
            (["--tokens", "1", "--loops", "9" * 30], "loops is 999"),
            (["--tokens", "1", "--loops", "x"], "Invalid value for '--loops'"),
            (["--tokens", "1", "--temperature", "-1"], "temperature is -1"),
            (["--tokens", "1", "--temperature", "nan"], "temperature is nan"),
            (["--tokens", "1", "--top-k", "-1"], "top_k is -1"),
            (["--tokens", "1", "--top-p", "0"], "top_p is 0"),
            (["--tokens", "1", "--seed", "-1"], "seed is -1"),
            (["--tokens", "1", "--threads", "0"], "Invalid value for '--threads'"),
            (["--tokens", "1", "--threads", "9" * 30], "Invalid value for '--threads'"),
            (["--prompt", "hello"], "no tokenizer.json in this bundle"),
            (["--prompt", "hello", "--tokens", "1"], "give --prompt TEXT or --tokens"),
            ([], "give --prompt TEXT or --tokens"),
        ],
    )
    def test_bad_requests(self, refused: Refused, tiny_bundle: Path, arguments: list[str], complaint: str) -> None:
        assert complaint in refused("generate", tiny_bundle, *arguments)

    def test_a_tokenizer_that_is_none(self, refused: Refused, bundle: Path) -> None:
        (bundle / "tokenizer.json").write_text("{}")
        files = json.loads((bundle / "manifest.json").read_text())["files"]
        edit_manifest(bundle, files=files | {"tokenizer.json": {}})
        rehash(bundle)
        assert "not a tokenizer" in refused("generate", bundle, "--prompt", "hello")

    def test_an_unknown_session_option(self, refused: Refused, bundle: Path) -> None:
        edit_manifest(bundle, session={"ep.context_file_path": "/tmp/x"})
        assert "ep.context_file_path" in refused("generate", bundle, "--tokens", "1")

    def test_json_is_one_object_and_nothing_else(self, run: Run, tiny_bundle: Path) -> None:
        outcome = run("generate", tiny_bundle, "--tokens", "1,2", "--max-new-tokens", "3", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert len(json.loads(outcome.out)["tokens"]) == 3


class TestVerify:
    @pytest.mark.parametrize("loops", ["0", "abc", "", "1,1", "9999999999999999999"])
    def test_depths_that_mean_nothing(self, refused: Refused, tiny_bundle: Path, loops: str) -> None:
        assert f"--loops is {loops!r}" in refused("verify", tiny_bundle, "--loops", loops)

    def test_a_depth_chosen_at_run_time(self, refused: Refused, tiny_bundle: Path) -> None:
        assert "give loop counts such as" in refused("verify", tiny_bundle, "--loops", "dynamic")

    def test_deeper_than_the_graph_is_unrolled(self, refused: Refused, bundle: Path) -> None:
        edit_manifest(bundle, graphs=[{"file": "model.onnx", "loops": 4}], loops="4")
        assert "asks for 5, but this bundle is unrolled to 4" in refused("verify", bundle, "--loops", "1,5")

    def test_an_unknown_precision(self, refused: Refused, bundle: Path) -> None:
        edit_manifest(bundle, precision="fp7")
        assert "target 'portable' in 'fp7' is unknown" in refused("verify", bundle)

    @pytest.mark.parametrize("source", [{}, {"kind": "checkpoint"}, {"kind": "checkpoint", "path": 7}])
    def test_an_unknown_source(self, refused: Refused, bundle: Path, source: dict[str, Any]) -> None:
        edit_manifest(bundle, source=source)
        assert "pass --checkpoint" in refused("verify", bundle)

    @pytest.mark.parametrize("seed", [-1, "0", True, None, 1.5])
    def test_an_unusable_seed(self, refused: Refused, bundle: Path, seed: object) -> None:
        edit_manifest(bundle, source={"kind": "seed", "seed": seed})
        assert "names no usable seed" in refused("verify", bundle)

    @pytest.mark.parametrize("path", ["/nowhere/x.safetensors", "a\nb\x1b[2J", "x" * 5000, "\0"])
    def test_a_checkpoint_that_has_moved(self, refused: Refused, bundle: Path, path: str) -> None:
        edit_manifest(bundle, source={"kind": "checkpoint", "path": path, "sha256": "0" * 64})
        assert "is not there; pass --checkpoint" in refused("verify", bundle)

    def test_another_checkpoint(self, refused: Refused, bundle: Path, tmp_path: Path, mla_config: MythosConfig) -> None:
        file = TestCheckpoint().save(mla_config, tmp_path / "other.safetensors")
        edit_manifest(bundle, source={"kind": "checkpoint", "path": str(file), "sha256": "0" * 64})
        line = refused("verify", bundle)
        assert "not the checkpoint this bundle was made from" in line
        assert "pass --checkpoint" in line

    def test_a_checkpoint_for_a_bundle_made_of_a_seed(
        self, refused: Refused, tiny_bundle: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        file = TestCheckpoint().save(mla_config, tmp_path / "same.safetensors")
        line = refused("verify", tiny_bundle, "--checkpoint", file)
        assert "not the checkpoint this bundle was made from" in line

    def test_a_config_that_is_none(self, refused: Refused, bundle: Path) -> None:
        (bundle / "config.json").write_text("{}x")
        rehash(bundle)
        assert "config.json: not valid JSON" in refused("verify", bundle)

    def test_hard_links_are_read(self, run: Run, bundle: Path) -> None:
        """A bundle that is served has them; its hashes vouch for what they hold."""
        os.link(bundle / "model.onnx.data", bundle.parent / "second name")
        assert run("verify", bundle, "--loops", "1").code == 0

    def test_json_is_one_object_and_nothing_else(self, run: Run, tiny_bundle: Path) -> None:
        outcome = run("verify", tiny_bundle, "--loops", "1", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert json.loads(outcome.out)["passed"] is True

    @pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
    def test_a_damaged_weight_is_a_failed_check_that_names_it(self, run: Run, bundle: Path, form: list[str]) -> None:
        """Its hash is right: this is not bad input, so the exit code is 1."""
        damage(bundle, "coda.0.ffn.up.weight.T")
        outcome = run("verify", bundle, "--loops", "1", *form)
        assert outcome.code == 1
        assert "coda.0.ffn.up.weight.T" in outcome.out
        if form:
            assert json.loads(outcome.out, parse_constant=pytest.fail)["passed"] is False

    def test_json_has_no_infinities(self, run: Run, bundle: Path) -> None:
        """What cannot be compared has no finite error, and JSON no number for that."""
        graph = onnx.load(bundle / "model.onnx", load_external_data=False)
        (loop,) = (node for node in graph.graph.node if node.op_type == "Loop")
        graph.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["two"], value_int=2))
        loop.input[0] = "two"
        onnx.save(graph, bundle / "model.onnx")
        rehash(bundle)
        outcome = run("verify", bundle, "--loops", "1", "--json")
        assert outcome.code == 1
        assert json.loads(outcome.out, parse_constant=pytest.fail)["passed"] is False


def damage(bundle: Path, name: str) -> None:
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    offset = int({entry.key: entry.value for entry in tensor.external_data}["offset"])
    data = np.memmap(bundle / "model.onnx.data", np.uint8, "r+")
    data[offset] ^= 1  # the lowest bit of the mantissa
    data.flush()
    rehash(bundle)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 55), lambda: np.empty(1 << 55, np.uint8)])
def test_out_of_memory(refused: Refused, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], object]) -> None:
    monkeypatch.setattr("mythos_export.commands.verify.run", lambda *arguments, **options: allocate())
    assert "error: out of memory" in refused("verify", "x")


@pytest.mark.parametrize(("package", "extra"), [("torch", "export"), ("onnxruntime", "cpu")])
def test_a_missing_package_names_its_extra(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    def imports(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.nn")

    monkeypatch.setattr("mythos_export.commands.verify.run", imports)
    assert f'this needs {package}, which is not installed; run: pip install "mythos-export[{extra}]"' in refused(
        "verify", "x"
    )


@pytest.mark.parametrize("error", [KeyError("ours"), ModuleNotFoundError("x", name="x"), RuntimeError("ours")])
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("mythos_export.commands.verify.run", fails)
    monkeypatch.setattr(sys, "argv", ["mythos-export", "verify", "x"])
    with pytest.raises(type(error)):
        cli.main()


class TestProcess:
    """What only a process of its own shows."""

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mythos_export", *arguments], cwd=ROOT, text=True, stderr=subprocess.PIPE, **options
        )

    def test_a_mistake_ends_in_code_2(self) -> None:
        process = self.start("--scale", "2b", stdout=subprocess.PIPE)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert out == ""
        assert err.startswith("error: unknown scale '2b'")
        assert err.count("\n") == 1

    def test_a_closed_pipe_is_no_traceback(self, tiny_bundle: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        process = self.start("generate", str(tiny_bundle), "--tokens", "1", stdout=writer)
        os.close(writer)
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0  # nobody reads it, and that changes nothing

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk_behind_stdout_is_one_line(self, tiny_bundle: Path) -> None:
        with open("/dev/full", "w") as full:
            process = self.start("generate", str(tiny_bundle), "--tokens", "1", stdout=full)
            err = process.communicate(timeout=120)[1]
        assert err == "error: the result: No space left on device\n"
        assert process.returncode == 2
