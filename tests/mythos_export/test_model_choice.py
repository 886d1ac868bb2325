"""Which model a command is about: config files beside weights, names of any script, what outranks what."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mythos_export.errors import RequestError
from mythos_export.model_choice import ModelChoice, resolve_model
from reference_model.checkpoint import SeededWeights
from reference_model.config import ConfigError, MythosConfig

HUB = {
    "architectures": ["OpenMythosForCausalLM"],
    "model_type": "openmythos",
    "torch_dtype": "float32",
    "transformers_version": "5.24.0",
    "eos_token_id": [2, 0],
    "tie_word_embeddings": True,
}


class Foreign:
    """A config class of a fork, pickled with a checkpoint."""

    def __init__(self, **values: Any) -> None:
        self.__dict__ |= values


Foreign.__qualname__ = Foreign.__name__ = "ForeignConfig"
ForeignConfig = Foreign


@pytest.fixture
def folder(tmp_path: Path, mla_config: MythosConfig) -> Path:
    """A folder with weights, and without a config."""
    weights = SeededWeights(mla_config, 0)
    (tmp_path / "m").mkdir()
    save_file({name: weights.read(name) for name in weights.names()}, tmp_path / "m" / "model.safetensors")
    return tmp_path / "m"


def write(path: Path, config: MythosConfig, **more: Any) -> Path:
    path.write_text(json.dumps(asdict(config) | more))
    return path


def resolve(checkpoint: Path | None = None, config: Path | None = None, scale: str | None = None) -> ModelChoice:
    return resolve_model(scale, config, checkpoint, None, 0)


class TestConfigBeside:
    def test_a_folder_of_the_hub(self, folder: Path, mla_config: MythosConfig) -> None:
        write(folder / "config.json", mla_config, **HUB)
        for checkpoint in (folder, folder / "model.safetensors"):
            choice = resolve(checkpoint)
            assert choice.config == mla_config and choice.notes == ()

    def test_it_may_be_named_too(self, folder: Path, mla_config: MythosConfig) -> None:
        file = write(folder / "config.json", mla_config, **HUB)
        assert resolve(folder, file).config == mla_config

    @pytest.mark.parametrize(
        ("field", "complaint"),
        [
            ({"window_size": 128}, "unknown config field 'window_size'"),
            ({"model_type": "llama"}, "model_type is 'llama', which is another model"),
            ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings is 'False'; open-mythos has True"),
            ({"quantization_config": {"bits": 4}}, "quantization_config is"),
            ({"dim": "64"}, "dim is '64'"),
        ],
    )
    def test_what_could_change_the_model_is_refused_by_name(
        self, folder: Path, mla_config: MythosConfig, field: dict[str, Any], complaint: str
    ) -> None:
        write(folder / "config.json", mla_config, **field)
        for checkpoint in (folder, folder / "model.safetensors"):
            with pytest.raises(RequestError, match=complaint.replace("(", ".")):
                resolve(checkpoint)

    def test_a_foreign_field_does_not_hide_another_theta(
        self, folder: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        write(folder / "config.json", mla_config, window_size=128)
        other = write(tmp_path / "other.json", replace(mla_config, rope_theta=777.0))
        with pytest.raises(RequestError, match=r"m/config\.json says rope_theta 500000\.0, not 777\.0"):
            resolve(folder, other)

    def test_a_named_config_outranks_one_that_cannot_be_read(
        self, folder: Path, tmp_path: Path, mla_config: MythosConfig
    ) -> None:
        write(folder / "config.json", mla_config, window_size=128)
        choice = resolve(folder, write(tmp_path / "mine.json", mla_config))
        assert choice.config == mla_config
        assert len(choice.notes) == 1 and "passed over:" in choice.notes[0] and "window_size" in choice.notes[0]

    def test_of_another_tool(self, folder: Path, tmp_path: Path, mla_config: MythosConfig) -> None:
        (folder / "config.json").write_text('{"learning_rate": 3}')
        with pytest.raises(RequestError, match="unknown config field 'learning_rate'"):
            resolve(folder)
        assert "learning_rate" in resolve(folder, write(tmp_path / "mine.json", mla_config)).notes[0]

    def test_it_contradicts_the_checkpoint(self, tmp_path: Path, mla_config: MythosConfig) -> None:
        weights = SeededWeights(mla_config, 0)
        saved = {"model": {name: weights.read(name) for name in weights.names()}, "cfg": asdict(mla_config)}
        torch.save(saved, tmp_path / "model.pt")
        write(tmp_path / "config.json", replace(mla_config, act_threshold=0.5))
        with pytest.raises(RequestError, match=r"config\.json says act_threshold 0\.5, not 0\.99"):
            resolve(tmp_path / "model.pt")

    def test_without_one_the_user_is_asked(self, folder: Path) -> None:
        with pytest.raises(RequestError, match="which model\\?"):
            resolve(folder)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_damaged(self, folder: Path, content: bytes) -> None:
        (folder / "config.json").write_bytes(content)
        with pytest.raises(RequestError, match=r"config\.json: .*; mend it, or name a config by --config FILE"):
            resolve(folder)


class TestPickledConfig:
    def save(self, path: Path, config: MythosConfig, cfg: Any) -> Path:
        weights = SeededWeights(config, 0)
        torch.save({"model": {name: weights.read(name) for name in weights.names()}, "cfg": cfg}, path)
        return path

    def test_memory_management_of_a_fork_changes_nothing(self, tmp_path: Path, mla_config: MythosConfig) -> None:
        cfg = Foreign(**asdict(mla_config), kv_page_size=64, kv_max_pages=0, gradient_checkpointing=True)
        assert resolve(self.save(tmp_path / "m.pt", mla_config, cfg)).config == mla_config

    @pytest.mark.parametrize("cfg", [Foreign(layers=3), Foreign(), {"layers": 3}, 7, "cfg"])
    def test_unreadable_it_yields_to_a_named_one(self, tmp_path: Path, mla_config: MythosConfig, cfg: Any) -> None:
        checkpoint = self.save(tmp_path / "m.pt", mla_config, cfg)
        with pytest.raises(RequestError, match=r"cfg is not a valid config.*name a config by --config FILE"):
            resolve(checkpoint)
        choice = resolve(checkpoint, write(tmp_path / "mine.json", mla_config))
        assert choice.config == mla_config and "cfg is not a valid config" in choice.notes[0]

    def test_readable_it_must_agree(self, tmp_path: Path, mla_config: MythosConfig) -> None:
        checkpoint = self.save(tmp_path / "m.pt", mla_config, asdict(mla_config))
        mine = write(tmp_path / "mine.json", replace(mla_config, rope_theta=777.0))
        with pytest.raises(RequestError, match=r"says rope_theta 500000\.0, not 777\.0; leave out --scale or --config"):
            resolve(checkpoint, mine)


class TestNames:
    @pytest.mark.parametrize(
        ("file", "name"),
        [
            ("模型.pt", "模型"),
            ("чекпоинт.pt", "чекпоинт"),
            ("e\u0301te\u0301.pt", "\u00e9t\u00e9"),
            ("🚀.pt", "model"),
            ("...pt", "model"),
            ("a b (1).pt", "a-b-1"),
        ],
    )
    def test_of_any_script(self, tmp_path: Path, mla_config: MythosConfig, file: str, name: str) -> None:
        TestPickledConfig().save(tmp_path / file, mla_config, asdict(mla_config))
        assert resolve(tmp_path / file).name == name

    def test_of_the_folder_one_stands_in(
        self, folder: Path, mla_config: MythosConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(folder / "config.json", mla_config)
        monkeypatch.chdir(folder)
        assert resolve(Path()).name == "m"

    def test_of_a_config(self, tmp_path: Path, mla_config: MythosConfig) -> None:
        assert resolve(None, write(tmp_path / "конфиг.json", mla_config)).name == "конфиг"


def test_an_empty_config_has_open_mythos_defaults_and_a_foreign_one_does_not() -> None:
    assert MythosConfig.from_dict({}) == MythosConfig()
    with pytest.raises(ConfigError, match="holds no field of open-mythos"):
        MythosConfig.from_dict({"architectures": []})
