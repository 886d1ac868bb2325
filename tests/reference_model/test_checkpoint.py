"""Every way weights enter: what is saved is what is loaded, mapped, and computes what upstream computes."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from reference_model.checkpoint import (
    CheckpointError,
    SeededWeights,
    check_fit,
    load_model,
    open_checkpoint,
    parameter_shapes,
)
from reference_model.config import SCALES, MythosConfig
from reference_model.open_mythos.model import MythosModel

State = dict[str, torch.Tensor]


@pytest.fixture(params=["mla", "gqa"])
def config(request: pytest.FixtureRequest, mla_config: MythosConfig) -> MythosConfig:
    return mla_config.with_attention(request.param)


@pytest.fixture
def state(config: MythosConfig) -> State:
    weights = SeededWeights(config, 1)
    return {name: weights.read(name) for name in weights.names()}


def save_safetensors(directory: Path, state: State) -> Path:
    save_file(state, directory / "model.safetensors")
    return directory / "model.safetensors"


def save_sharded(directory: Path, state: State) -> Path:
    names = sorted(state)
    shards = {f"model-{part}.safetensors": names[part::3] for part in range(3)}
    for shard, held in shards.items():
        save_file({name: state[name] for name in held}, directory / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def save_sharded_directory(directory: Path, state: State) -> Path:
    return save_sharded(directory, state).parent


def save_torch(directory: Path, state: State) -> Path:
    torch.save(state, directory / "model.pt")
    return directory / "model.pt"


def save_legacy_torch(directory: Path, state: State) -> Path:
    torch.save(state, directory / "model.pt", _use_new_zipfile_serialization=False)
    return directory / "model.pt"


FORMATS = {
    save_safetensors: "safetensors",
    save_sharded: "safetensors-sharded",
    save_sharded_directory: "safetensors-sharded",
    save_torch: "torch",
    save_legacy_torch: "torch",
}
every_format = pytest.mark.parametrize("save", FORMATS, ids=lambda save: save.__name__)
Save = Callable[[Path, State], Path]


class TestFormats:
    @every_format
    def test_round_trip(self, save: Save, tmp_path: Path, config: MythosConfig, state: State) -> None:
        source = open_checkpoint(save(tmp_path, state))
        assert source.names() == state.keys()
        assert source.config is None
        loaded = load_model(source, config).state_dict()
        assert loaded.keys() == state.keys()
        for name, tensor in state.items():
            assert source.shape(name) == tuple(tensor.shape)
            assert torch.equal(loaded[name], tensor), name

    @every_format
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_float_types(
        self, save: Save, dtype: torch.dtype, tmp_path: Path, config: MythosConfig, state: State
    ) -> None:
        source = open_checkpoint(save(tmp_path, {name: tensor.to(dtype) for name, tensor in state.items()}))
        assert source.read("norm.weight").dtype == source.dtype("norm.weight") == dtype
        for name, tensor in load_model(source, config).state_dict().items():
            assert torch.equal(tensor, state[name].to(dtype).float()), name

    @every_format
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_wrapper_prefixes(self, save: Save, prefix: str, tmp_path: Path, state: State) -> None:
        assert open_checkpoint(save(tmp_path, {prefix + name: state[name] for name in state})).names() == state.keys()

    @every_format
    def test_many_gigabytes_are_mapped_piecewise(
        self, save: Save, tmp_path: Path, config: MythosConfig, state: State, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reference_model.weight_source._REMAP_BYTES", 1000)
        loaded = load_model(open_checkpoint(save(tmp_path, state)), config).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    def test_a_transposed_tensor_is_read_contiguous(self, tmp_path: Path, state: State) -> None:
        source = open_checkpoint(
            save_torch(tmp_path, {name: tensor.t().contiguous().t() for name, tensor in state.items()})
        )
        assert all(source.read(name).is_contiguous() and torch.equal(source.read(name), state[name]) for name in state)

    def test_unknown_tensor(self, tmp_path: Path, state: State) -> None:
        with pytest.raises(CheckpointError, match="holds no tensor 'nonesuch'"):
            open_checkpoint(save_safetensors(tmp_path, state)).read("nonesuch")


class TestUpstream:
    @pytest.fixture
    def theirs(self, upstream: ModuleType, config: MythosConfig) -> torch.nn.Module:
        model: torch.nn.Module = upstream.OpenMythos(upstream.MythosConfig(**asdict(config))).eval()
        weights = SeededWeights(config, 3)
        model.load_state_dict({name: weights.read(name) for name in weights.names()}, strict=False)
        return model

    def assert_same_logits(self, theirs: torch.nn.Module, path: Path, config: MythosConfig) -> None:
        ours = load_model(open_checkpoint(path), config)
        ids = torch.randint(0, config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wanted, got = theirs(ids, n_loops=7), ours(ids, 7).logits
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()

    def test_state_dict(self, theirs: torch.nn.Module, config: MythosConfig, tmp_path: Path) -> None:
        path = save_torch(tmp_path, theirs.state_dict())
        assert open_checkpoint(path).config is None
        self.assert_same_logits(theirs, path, config)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_training_dictionary(
        self, theirs: torch.nn.Module, config: MythosConfig, tmp_path: Path, zipped: bool
    ) -> None:
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=False)
        theirs(torch.tensor([[1, 2, 3]]), n_loops=2).sum().backward()
        optimizer.step()
        saved = {
            "step": 1000,
            "model": theirs.state_dict(),
            "optimizer": optimizer.state_dict(),
            "cfg": theirs.cfg,
            "vocab_size": config.vocab_size,
        }
        path = tmp_path / "step_1000.pt"
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        assert open_checkpoint(path).config == config
        self.assert_same_logits(theirs, path, config)

    def test_a_plain_dictionary_is_a_config_too(self, config: MythosConfig, state: State, tmp_path: Path) -> None:
        torch.save({"model": state, "cfg": asdict(config)}, tmp_path / "model.pt")
        assert open_checkpoint(tmp_path / "model.pt").config == config

    def test_vocabulary_must_agree(self, config: MythosConfig, state: State, tmp_path: Path) -> None:
        torch.save({"model": state, "cfg": asdict(config), "vocab_size": 98}, tmp_path / "model.pt")
        assert "vocab_size is 98 but cfg says 97" in str(open_checkpoint(tmp_path / "model.pt").config_problem)

    def test_config_values_are_checked(self, config: MythosConfig, state: State, tmp_path: Path) -> None:
        torch.save({"model": state, "cfg": asdict(config) | {"n_heads": 5}}, tmp_path / "model.pt")
        problem = str(open_checkpoint(tmp_path / "model.pt").config_problem)
        assert "cfg is not a valid config: dim 64 is not a multiple of n_heads 5" in problem


class TestConfig:
    def test_in_metadata(self, config: MythosConfig, state: State, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(state, path, metadata={"config": config.to_json()})
        assert open_checkpoint(path).config == config

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"dim": -1}', '{"architectures": []}', "[" * 100_000])
    def test_of_another_library(self, text: str, state: State, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        save_file(state, path, metadata={"config": text})
        assert open_checkpoint(path).config is None


class TestTiedHead:
    @every_format
    def test_an_equal_head_is_dropped(self, save: Save, tmp_path: Path, state: State) -> None:
        path = save(tmp_path, state | {"head.weight": state["embed.weight"].clone()})
        assert open_checkpoint(path).names() == state.keys()

    @every_format
    def test_a_head_of_its_own_is_another_model(self, save: Save, tmp_path: Path, state: State) -> None:
        head = state["embed.weight"].clone()
        head[-1, -1] += 1
        with pytest.raises(CheckpointError, match=r"head.weight differs from embed.weight"):
            open_checkpoint(save(tmp_path, state | {"head.weight": head}))

    def test_a_shared_head_may_hold_anything(self, tmp_path: Path, state: State) -> None:
        state["embed.weight"][0, 0] = float("nan")  # which equals nothing, itself included
        assert open_checkpoint(save_torch(tmp_path, state | {"head.weight": state["embed.weight"]})).names()

    @every_format
    def test_a_lone_head_is_the_embedding(self, save: Save, tmp_path: Path, config: MythosConfig, state: State) -> None:
        renamed = {name.replace("embed.", "head."): tensor for name, tensor in state.items()}
        model = load_model(open_checkpoint(save(tmp_path, renamed)), config)
        assert torch.equal(model.embed.weight, state["embed.weight"])


class TestFit:
    def refusal(self, directory: Path, state: State, config: MythosConfig) -> str:
        with pytest.raises(CheckpointError) as refused:
            load_model(open_checkpoint(save_safetensors(directory, state)), config)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def test_names_what_is_wrong(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        del state["norm.weight"]
        for layer in range(5):
            state[f"new.{layer}"] = torch.zeros(1)
        state["recurrent.lora.B"] = torch.zeros(3, 64)
        assert self.refusal(tmp_path, state, config) == (
            "the weights do not fit the config: 1 missing (norm.weight); 5 extra (new.0, new.1, new.2, ...); "
            "1 of another shape (recurrent.lora.B [3, 64] where [4, 64] is needed)"
        )

    def test_integers_are_no_weights(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        state["norm.weight"] = torch.ones(64, dtype=torch.int8)
        assert self.refusal(tmp_path, state, config).endswith("1 not floating point (norm.weight torch.int8)")

    def test_the_other_attention(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        other = "gqa" if config.attn_type == "mla" else "mla"
        advice = f"these weights have {config.attn_type} attention"
        assert self.refusal(tmp_path, state, config.with_attention(other)).endswith(advice)

    def test_another_architecture(self, tmp_path: Path, config: MythosConfig) -> None:
        state = {"transformer.wte.weight": torch.zeros(4, 4)}
        assert self.refusal(tmp_path, state, config).endswith("this is not an OpenMythos checkpoint")

    def test_a_hostile_name_stays_on_its_line(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        assert "\x1b" not in self.refusal(tmp_path, state | {"a\nb\x1b[31m": torch.zeros(1)}, config)

    def test_seeded_weights_fit(self, config: MythosConfig) -> None:
        check_fit(SeededWeights(config, 0), config)


class TestShapes:
    def test_of_the_built_model(self, config: MythosConfig) -> None:
        for variant in (config, replace(config, prelude_layers=0, coda_layers=0, n_shared_experts=0)):
            built = MythosModel(variant).state_dict()
            assert parameter_shapes(variant) == {name: tuple(tensor.shape) for name, tensor in built.items()}

    @pytest.mark.parametrize("attention", ["mla", "gqa"])
    def test_at_1b(self, attention: str) -> None:
        config = SCALES["1b"].with_attention(attention)
        with torch.device("meta"):
            built = MythosModel(config).state_dict()
        assert parameter_shapes(config) == {name: tuple(tensor.shape) for name, tensor in built.items()}

    def test_at_1t_at_once(self) -> None:
        start = time.process_time()
        assert len(parameter_shapes(SCALES["1t"])) > 1500
        assert time.process_time() - start < 0.1


class TestMapping:
    @pytest.mark.parametrize("save", [save_safetensors, save_sharded, save_torch], ids=lambda save: save.__name__)
    def test_fp32_weights_stay_in_their_file(
        self, save: Save, tmp_path: Path, config: MythosConfig, state: State
    ) -> None:
        model = load_model(open_checkpoint(save(tmp_path, state)), config)
        mapped = [
            tuple(int(end, 16) for end in line.split()[0].split("-"))
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(tmp_path) in line
        ]
        for name, tensor in model.state_dict().items():
            assert any(start <= tensor.data_ptr() < end for start, end in mapped), name

    def test_writing_to_a_model_leaves_the_file_alone(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        path = save_safetensors(tmp_path, state)
        before = path.read_bytes()
        load_model(open_checkpoint(path), config).embed.weight.zero_()
        assert path.read_bytes() == before

    def test_the_model_is_for_inference(self, tmp_path: Path, config: MythosConfig, state: State) -> None:
        model = load_model(open_checkpoint(save_safetensors(tmp_path, state)), config)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in copy.deepcopy(model).parameters())


class TestDescription:
    @every_format
    def test_one_file_or_many(self, save: Save, tmp_path: Path, state: State) -> None:
        path = save(tmp_path, state)
        described = open_checkpoint(path).describe()
        files = sorted(tmp_path.glob("*.safetensors")) or [path]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        if len(files) > 1:
            lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests))
            digests = [hashlib.sha256(lines.encode()).hexdigest()]
        assert described == {
            "kind": "checkpoint",
            "path": str(path),
            "sha256": digests[0],
            "format": FORMATS[save],
        }

    def test_a_seed(self, config: MythosConfig) -> None:
        assert SeededWeights(config, 5).describe() == {"kind": "seed", "seed": 5}


@pytest.mark.parametrize("attn", ["mla", "gqa"])
def test_rotary_tables_of_another_theta_are_refused(
    upstream: ModuleType, mla_config: MythosConfig, tmp_path: Path, attn: str
) -> None:
    """Upstream rotates by the table in its state dict, whatever theta its config names."""
    config = replace(mla_config, attn_type=attn)
    theirs = upstream.OpenMythos(upstream.MythosConfig(**asdict(replace(config, rope_theta=1234.0))))
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    source = open_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="rotary tables are not those of rope_theta 500000"):
        check_fit(source, config)
    check_fit(source, replace(config, rope_theta=1234.0, max_seq_len=7))
