"""Checkpoints as training scripts, wrappers and the Hub really save them."""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import pickle
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import nn

from reference_model.checkpoint import CheckpointError, SeededWeights, check_fit, open_checkpoint
from reference_model.open_mythos.config import MythosConfig
from reference_model.restricted_pickle import PickleRefused, read_pickle

CONFIG = MythosConfig(
    vocab_size=29,
    dim=16,
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
    expert_dim=8,
    lora_rank=2,
)
STATE = {name: SeededWeights(CONFIG, 0).read(name) for name in sorted(SeededWeights(CONFIG, 0).names())}
Rename = Callable[[str], str]


def assert_whole(path: Path) -> None:
    source = open_checkpoint(path)
    check_fit(source, CONFIG)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in STATE.items())


def upstream_model(upstream: ModuleType) -> nn.Module:
    model: nn.Module = upstream.OpenMythos(upstream.MythosConfig(**asdict(CONFIG)))
    model.load_state_dict(STATE, strict=False)
    return model


PREFIXES: dict[str, Rename] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace("prelude.0.", "prelude.0._orig_mod."),
    "compiled recurrent block": lambda name: name.replace("recurrent.", "recurrent._orig_mod."),
    "distributed": lambda name: f"module.{name}",
    "distributed and compiled": lambda name: f"module._orig_mod.{name}",
    "compiled and distributed": lambda name: f"_orig_mod.module.{name}",
    "a distributed part": lambda name: name.replace("recurrent.", "recurrent.module."),
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name}",
    "fsdp layers": lambda name: name.replace("coda.0.", "coda.0._fsdp_wrapped_module."),
    "recomputed layers": lambda name: name.replace("coda.0.", "coda.0._checkpoint_wrapped_module."),
    "lightning": lambda name: f"model.{name}",
    "lightning compiled": lambda name: f"model._orig_mod.{name}",
    "fabric": lambda name: f"_forward_module.{name}",
    "twice": lambda name: f"model.model.{name}",
}


@pytest.mark.parametrize("rename", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("container", [None, "model", "state_dict", "model_state_dict", "module"])
def test_every_prefix_in_every_container(tmp_path: Path, rename: Rename, container: str | None) -> None:
    state = {rename(name): tensor for name, tensor in STATE.items()}
    saved = state if container is None else {container: state, "epoch": 3, "optimizer_states": [{"state": {}}]}
    torch.save(saved, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize("rename", PREFIXES.values(), ids=PREFIXES)
def test_every_prefix_in_safetensors(tmp_path: Path, rename: Rename) -> None:
    save_file({rename(name): tensor for name, tensor in STATE.items()}, tmp_path / "model.safetensors")
    assert_whole(tmp_path / "model.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path: Path, upstream: ModuleType, protocol: int, zipped: bool) -> None:
    saved = {"model": STATE, "cfg": upstream.MythosConfig(**asdict(CONFIG)), "vocab_size": CONFIG.vocab_size}
    path = tmp_path / "model.pt"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_whole(path)
    assert open_checkpoint(path).config == CONFIG


class TestRealWrappers:
    def test_an_averaged_model(self, tmp_path: Path, upstream: ModuleType) -> None:
        averaged = torch.optim.swa_utils.AveragedModel(upstream_model(upstream))
        assert "n_averaged" in averaged.state_dict()
        torch.save(averaged.state_dict(), tmp_path / "ema.pt")
        assert_whole(tmp_path / "ema.pt")

    def test_compiled(self, tmp_path: Path, upstream: ModuleType) -> None:
        model: Any = upstream_model(upstream)
        model.recurrent = torch.compile(model.recurrent)
        model.prelude[0] = torch.compile(model.prelude[0])
        torch.save(torch.compile(model).state_dict(), tmp_path / "model.pt")
        assert_whole(tmp_path / "model.pt")

    def test_parameters_kept_as_parameters(self, tmp_path: Path, upstream: ModuleType) -> None:
        torch.save(
            dict(upstream_model(upstream).named_parameters())
            | {"recurrent.block.ffn.router_bias": STATE["recurrent.block.ffn.router_bias"]},
            tmp_path / "model.pt",
        )
        assert_whole(tmp_path / "model.pt")

    def test_what_scripts_save_beside(self, tmp_path: Path) -> None:
        """States of random generators, versions, arguments, paths."""
        saved = {
            "model": STATE,
            "rng": {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
            "torch_version": torch.__version__,
            "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("runs")),
            "loss": np.float64(3.5),
            "scaler": None,
        }
        torch.save(saved, tmp_path / "step_10.pt")
        assert_whole(tmp_path / "step_10.pt")


def _fsdp_rank(rank: int, ranks: int, port: int, path: str) -> None:
    """The recipe of open-mythos' training script: full state dict, mixed precision, the optimizer beside."""
    sys.modules.setdefault("transformers", ModuleType("transformers"))  # for a tokenizer that nothing here uses
    sys.modules["transformers"].AutoTokenizer = None  # type: ignore[attr-defined]
    from open_mythos.main import MythosConfig as Theirs
    from open_mythos.main import OpenMythos, RecurrentBlock, TransformerBlock
    from torch.distributed.fsdp import FullStateDictConfig, MixedPrecision, ShardingStrategy, StateDictType
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    cfg = Theirs(**asdict(CONFIG))
    model = OpenMythos(cfg)
    model.load_state_dict(STATE, strict=False)
    half = torch.bfloat16
    model = FSDP(
        model,
        sharding_strategy=ShardingStrategy.FULL_SHARD,
        mixed_precision=MixedPrecision(param_dtype=half, reduce_dtype=half, buffer_dtype=half),
        auto_wrap_policy=ModuleWrapPolicy({TransformerBlock, RecurrentBlock}),
        device_id=torch.device("cpu"),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    # Shards that are on a CPU already are freed by an offload to it.
    full = FullStateDictConfig(offload_to_cpu=ranks == 1, rank0_only=True)
    with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, full):
        state, moments = model.state_dict(), FSDP.optim_state_dict(model, optimizer)
    if rank == 0:
        saved = {"step": 3, "model": state, "optimizer": moments, "cfg": cfg, "vocab_size": cfg.vocab_size}
        torch.save(saved, path)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_the_training_script_saves_under_torchrun(tmp_path: Path, upstream: ModuleType, ranks: int) -> None:
    path = tmp_path / "step_0000003.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_fsdp_rank, (ranks, port, str(path)), nprocs=ranks)
    assert b"_rebuild_from_type_v2" in path.read_bytes()
    source = open_checkpoint(path)
    check_fit(source, CONFIG)
    assert source.config == CONFIG
    for name, tensor in STATE.items():
        rounded = tensor.bfloat16().float() if name.endswith("router_bias") else tensor  # a buffer: of mixed precision
        assert torch.equal(source.read(name), rounded), name


class Marked:
    """A tensor as FSDP pickles it, with a state of one's choice."""

    def __init__(self, state: object, kind: Any = torch.Tensor) -> None:
        self.state, self.kind = state, kind

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = torch.zeros(2).__reduce_ex__(2)  # type: ignore[misc]
        return torch._tensor._rebuild_from_type_v2, (rebuild, self.kind, arguments, self.state)


class TestMarks:
    @pytest.mark.parametrize("state", [{"_has_been_cloned": True}, {}, None])
    def test_those_of_fsdp_are_taken(self, tmp_path: Path, state: object) -> None:
        torch.save({"norm.weight": Marked(state)}, tmp_path / "model.pt")
        assert open_checkpoint(tmp_path / "model.pt").read("norm.weight").tolist() == [0, 0]

    @pytest.mark.parametrize(
        "state",
        [
            {"data": torch.ones(2)},
            {"_has_been_cloned": 1},
            {"_has_been_cloned": True, "shape": (3,)},
            {"requires_grad": True},
            {"__class__": dict},
            ({}, {"data": torch.ones(2)}),
            [1],
            "data",
        ],
    )
    def test_others_are_refused(self, tmp_path: Path, state: object) -> None:
        torch.save({"norm.weight": Marked(state)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"attributes other than those that FSDP sets|its pickle carries"):
            open_checkpoint(tmp_path / "model.pt")

    def test_a_class_of_ones_own_is_refused(self, tmp_path: Path) -> None:
        torch.save({"norm.weight": Marked({}, kind=torch.dtype)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"its pickle carries torch\.dtype"):
            open_checkpoint(tmp_path / "model.pt")


class TestNothingOfAPickleRuns:
    def test_stand_ins_cannot_be_changed(self, tmp_path: Path) -> None:
        """BUILD sets attributes on whatever lies on the stack, a function or class too."""
        for name in (b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict", b"torch\nTensor"):
            with pytest.raises((PickleRefused, AttributeError, TypeError, pickle.UnpicklingError)):
                read_pickle(io.BytesIO(b"\x80\x02c" + name + b"\nN}X\x05\x00\x00\x00_calls\x86b."))
        torch.save(STATE, tmp_path / "model.pt")
        assert_whole(tmp_path / "model.pt")

    def test_no_memory_is_reserved_for_objects_that_there_are_not(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
        with pytest.raises(CheckpointError, match="numbers objects that it does not have"):
            open_checkpoint(tmp_path / "model.pt")


class TestWhichModel:
    def test_two_are_refused_by_name(self, tmp_path: Path) -> None:
        torch.save({"model": STATE, "state_dict": STATE}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="holds a model under each of model, state_dict"):
            open_checkpoint(tmp_path / "model.pt")

    def test_an_unknown_container_is_named(self, tmp_path: Path) -> None:
        torch.save({"ema_weights": STATE, "step": 1}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="tensors lie under 'ema_weights', but a model is looked for under"):
            open_checkpoint(tmp_path / "model.pt")

    def test_a_prefix_that_is_no_wrapper_is_named(self, tmp_path: Path) -> None:
        torch.save({f"student.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="what lies under 'student' would fit"):
            check_fit(open_checkpoint(tmp_path / "model.pt"), CONFIG)

    def test_the_rule_that_nearly_fitted_is_named(self, tmp_path: Path) -> None:
        state = {f"model.{name}": tensor for name, tensor in STATE.items() if name != "norm.weight"}
        torch.save(state, tmp_path / "model.pt")
        rule = r"1 missing \(norm.weight\).*after taking off model \(Lightning or Hugging Face\)"
        with pytest.raises(CheckpointError, match=rule):
            check_fit(open_checkpoint(tmp_path / "model.pt"), CONFIG)

    def test_weights_beside_the_model(self, tmp_path: Path) -> None:
        state = {f"model.{name}": tensor for name, tensor in STATE.items()} | {"criterion.weight": torch.zeros(3)}
        torch.save({"state_dict": state}, tmp_path / "model.ckpt")
        with pytest.raises(CheckpointError, match="what lies under 'model' would fit"):
            check_fit(open_checkpoint(tmp_path / "model.ckpt"), CONFIG)

    def test_two_tensors_that_become_one(self, tmp_path: Path) -> None:
        torch.save(STATE | {"_orig_mod.norm.weight": STATE["norm.weight"]}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"are both norm\.weight"):
            open_checkpoint(tmp_path / "model.pt")


class TestFolders:
    def test_one_safetensors_file(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "model.safetensors")
        (tmp_path / "tokenizer.json").write_text("{}")
        assert_whole(tmp_path)

    def test_safetensors_go_before_pickles(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "model.safetensors")
        (tmp_path / "pytorch_model.bin").write_bytes(b"another copy")
        assert_whole(tmp_path)

    def test_one_pickle(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "pytorch_model.bin")
        (tmp_path / "training_args.bin.txt").write_text("")
        assert_whole(tmp_path)

    def test_pickles_under_an_index(self, tmp_path: Path) -> None:
        names = list(STATE)
        shards = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(names)}
        for shard in set(shards.values()):
            torch.save({name: STATE[name] for name in names if shards[name] == shard}, tmp_path / shard)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
        assert_whole(tmp_path)
        (tmp_path / "pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": {**shards, "x": shards[names[0]]}})
        )
        with pytest.raises(CheckpointError, match="lacks 'x', which the index promises"):
            open_checkpoint(tmp_path)

    @pytest.mark.filterwarnings("ignore")
    def test_a_distributed_checkpoint_says_how_to_convert_it(self, tmp_path: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

        dcp.save({"model": dict(STATE)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
        with pytest.raises(CheckpointError, match=r"format_utils dcp_to_torch .*dcp model\.pt"):
            open_checkpoint(tmp_path / "dcp")
        dcp_to_torch_save(tmp_path / "dcp", tmp_path / "model.pt")
        assert_whole(tmp_path / "model.pt")


class TestRotaryTables:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.filterwarnings("ignore:Casting complex")
    def test_cast_to_a_real_type_they_are_computed_anew(
        self, tmp_path: Path, upstream: ModuleType, dtype: torch.dtype
    ) -> None:
        torch.save(upstream_model(upstream).to(dtype).state_dict(), tmp_path / "model.pt")
        notes = check_fit(open_checkpoint(tmp_path / "model.pt"), CONFIG)
        assert len(notes) == 1 and f"rotary tables are stored as {str(dtype).removeprefix('torch.')}" in notes[0]

    def test_complex_ones_are_compared(self, tmp_path: Path, upstream: ModuleType) -> None:
        torch.save(upstream_model(upstream).state_dict(), tmp_path / "model.pt")
        assert check_fit(open_checkpoint(tmp_path / "model.pt"), CONFIG) == []


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_a_lack_of_memory_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    torch.save(STATE, tmp_path / "model.pt")
    source = open_checkpoint(tmp_path / "model.pt")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.UntypedStorage, "from_file", fail)
    with pytest.raises(CheckpointError, match="not enough memory to read it"):
        source.read("norm.weight")
