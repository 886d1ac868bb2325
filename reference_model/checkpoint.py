"""The single way weights enter: a checkpoint file, or random weights from a seed.

`open_checkpoint` and `SeededWeights` give a `WeightSource`: one tensor at a time, mapped where the format
allows. The exporter streams from it; `load_model` makes the oracle of it without copying fp32 weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from reference_model.components.rope import rope_frequencies
from reference_model.config import MythosConfig
from reference_model.open_mythos.model import MythosModel
from reference_model.parameters import parameter_shapes
from reference_model.pickle_checkpoint import open_pickle, open_pickle_shards
from reference_model.safetensors_checkpoint import open_safetensors, open_safetensors_shards
from reference_model.seeded import SeededWeights
from reference_model.shard_index import INDEX_SUFFIX, read_index
from reference_model.tensor_names import nearly
from reference_model.weight_source import CheckpointError, WeightSource, reading

__all__ = [
    "CheckpointError",
    "SeededWeights",
    "WeightSource",
    "check_fit",
    "load_model",
    "open_checkpoint",
    "parameter_shapes",
]

_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
_ACCEPTED = "give a .safetensors file, a file written by torch.save, an index of shards, or a folder with one of them"
# What a folder may hold, the first that is there being taken; `*` stands for a name, of which there must be one.
_IN_FOLDER = (
    *("model.safetensors.index.json", "model.safetensors", "*.safetensors.index.json", "*.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin", "*.bin.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt"),
)
_CONVERT = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
_ROPE_ROWS = 64  # positions compared; a table may be longer or shorter than the config's max_seq_len
_ROPE_ERROR = 2e-3  # a table saved in half precision
_NAMED = 3  # tensor names that a message lists of each kind


def open_checkpoint(path: Path) -> WeightSource:
    """Open a checkpoint without reading its weights; the content decides the format, not the name.

    Raises:
        CheckpointError: it is missing, empty, damaged, malicious, or no checkpoint; one line.
    """
    path = Path(path)
    with reading(path):
        if path.is_dir():
            return _open_file(path, _weights_in(path))
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; {_ACCEPTED}")
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file; {_ACCEPTED}")
    return _open_file(path, path)


def _open_file(path: Path, file: Path) -> WeightSource:
    """A file of weights or an index; `path` is what the user named."""
    with reading(file), file.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise CheckpointError(f"{file}: the file is empty; copy or save it again")
    if file.name.endswith(INDEX_SUFFIX):
        shards = read_index(file)
        of_torch = any(not shard.name.endswith(".safetensors") for shard in shards.values())
        return open_pickle_shards(path, shards) if of_torch else open_safetensors_shards(path, shards)
    # Eight bytes of length, then a JSON header. Asked first: the length may begin with the byte of a pickle.
    if head[8:9] == b"{" or file.suffix == ".safetensors":
        return open_safetensors(file)
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return open_pickle(file)
    raise CheckpointError(f"{file}: not a checkpoint; {_ACCEPTED}")


def check_fit(source: WeightSource, config: MythosConfig) -> list[str]:
    """Whether the source holds exactly the tensors of this model, all of a floating type.

    Returns:
        What the user should know of what was passed over; a line each.

    Raises:
        CheckpointError: naming the missing, extra and misshapen tensors; one line.
    """
    expected, present = parameter_shapes(config), source.names()
    both = [name for name in expected if name in present]
    problems = [
        _listed("missing", (name for name in expected if name not in present)),
        _listed("extra", sorted(present - expected.keys())),
        _listed(
            "of another shape",
            (
                f"{name} {list(source.shape(name))} where {list(expected[name])} is needed"
                for name in both
                if source.shape(name) != expected[name]
            ),
        ),
        _listed(
            "not floating point",
            (f"{name} {source.dtype(name)}" for name in both if not source.dtype(name).is_floating_point),
        ),
    ]
    if any(problems):
        listing = "; ".join(filter(None, problems))
        raise CheckpointError(f"the weights do not fit the config: {listing}{_advice(source, config)}")
    return _check_rope(source, config)


def _check_rope(source: WeightSource, config: MythosConfig) -> list[str]:
    """Upstream rotates by the table it saved, whatever its config says; ours is made from the config."""
    table = source.rope_table(config.attn_type)
    if table is None:
        return []
    if not table.is_complex():  # a cast to a real type: the imaginary half is lost, and with it what could be compared
        kind = str(table.dtype).removeprefix("torch.")
        return [f"its rotary tables are stored as {kind}, not complex; computed from rope_theta {config.rope_theta:g}"]
    positions = torch.arange(min(len(table), _ROPE_ROWS)) if table.ndim == 2 else torch.arange(0)
    wanted = torch.polar(torch.ones(1), torch.outer(positions, rope_frequencies(config.rope_dim, config.rope_theta)))
    got = table[: len(positions)].to(torch.complex64)
    if got.shape != wanted.shape or not torch.allclose(got, wanted, atol=_ROPE_ERROR):
        raise CheckpointError(
            f"the checkpoint's rotary tables are not those of rope_theta {config.rope_theta:g} and "
            f"rope dim {config.rope_dim}; give the config it was trained with"
        )
    return []


def load_model(source: WeightSource, config: MythosConfig) -> MythosModel:
    """The fp32 model with the source's weights, for inference; tensors that are fp32 already stay mapped.

    Raises:
        CheckpointError: the weights do not fit the config, or cannot be read.
    """
    check_fit(source, config)
    with torch.device("meta"):
        model = MythosModel(config)
    state = {name: source.read(name).to(torch.float32) for name in parameter_shapes(config)}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _weights_in(folder: Path) -> Path:
    """The weights of a folder as the Hub or `save_pretrained` makes it.

    Raises:
        CheckpointError: it holds none, or several and nothing says which.
    """
    for pattern in _IN_FOLDER:
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:_NAMED])
            raise CheckpointError(f"{folder}: holds {len(files)} files of weights ({names}, ...); name one of them")
        if files:
            return files[0]
    if (folder / ".metadata").exists() or any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder}: a torch distributed checkpoint; convert it, `{_CONVERT} {folder} model.pt`, and pass model.pt"
        )
    raise CheckpointError(f"{folder}: a folder without weights; {_ACCEPTED}")


def _listed(what: str, names: Iterable[str]) -> str:
    """`2 missing (a, b)`, or nothing."""
    listed = list(names)
    if not listed:
        return ""
    more = ", ..." if len(listed) > _NAMED else ""
    return f"{len(listed)} {what} ({', '.join(name[:160] for name in listed[:_NAMED])}{more})"


def _advice(source: WeightSource, config: MythosConfig) -> str:
    """What may be behind names that do not fit."""
    names, expected = source.names(), parameter_shapes(config)
    removed = f" (after taking off {', '.join(source.wrappers)})" if source.wrappers else ""
    other = "gqa" if config.attn_type == "mla" else "mla"
    if names and names == parameter_shapes(config.with_attention(other)).keys():
        return f"; these weights have {other} attention"
    if (prefix := nearly(names, expected)) is not None:
        return f"; what lies under {prefix[:80]!r} would fit{removed}: save that module's state dict alone"
    if not names & expected.keys():
        return f"; this is not an OpenMythos checkpoint{removed}"
    return removed
