"""The single way weights enter: a checkpoint file, or random weights from a seed.

`open_checkpoint` and `SeededWeights` give a `WeightSource`: one tensor at a time, mapped where the format
allows. The exporter streams from it; `load_model` makes the oracle of it without copying fp32 weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from reference_model.config import MythosConfig
from reference_model.layers import rope_frequencies
from reference_model.model import MythosModel
from reference_model.parameters import parameter_shapes
from reference_model.pickle_checkpoint import open_pickle
from reference_model.safetensors_checkpoint import INDEX_SUFFIX, open_safetensors, open_sharded
from reference_model.seeded import SeededWeights
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
_ACCEPTED = "give a .safetensors file, a *.safetensors.index.json or its directory, or a file written by torch.save"
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
            return open_sharded(path, _index_in(path))
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; {_ACCEPTED}")
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file; {_ACCEPTED}")
        with path.open("rb") as file:
            head = file.read(16)
    if not head:
        raise CheckpointError(f"{path}: the file is empty; copy or save it again")
    if path.name.endswith(INDEX_SUFFIX):
        return open_sharded(path, path)
    # Eight bytes of length, then a JSON header. Asked first: the length may begin with the byte of a pickle.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return open_safetensors(path)
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return open_pickle(path)
    raise CheckpointError(f"{path}: not a checkpoint; {_ACCEPTED}")


def check_fit(source: WeightSource, config: MythosConfig) -> None:
    """Whether the source holds exactly the tensors of this model, all of a floating type.

    Raises:
        CheckpointError: naming the missing, extra and misshapen tensors; one line.
    """
    expected, found = parameter_shapes(config), source.names()
    both = [name for name in expected if name in found]
    problems = [
        _listed("missing", (name for name in expected if name not in found)),
        _listed("extra", sorted(found - expected.keys())),
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
        raise CheckpointError(f"the weights do not fit the config: {listing}{_advice(found, config)}")
    _check_rope(source, config)


def _check_rope(source: WeightSource, config: MythosConfig) -> None:
    """Upstream rotates by the table it saved, whatever its config says; ours is made from the config."""
    table = source.rope_table(config.attn_type)
    if table is None:
        return
    positions = torch.arange(min(len(table), _ROPE_ROWS)) if table.ndim == 2 else torch.arange(0)
    wanted = torch.polar(torch.ones(1), torch.outer(positions, rope_frequencies(config.rope_dim, config.rope_theta)))
    got = table[: len(positions)].to(torch.complex64)
    if got.shape != wanted.shape or not torch.allclose(got, wanted, atol=_ROPE_ERROR):
        raise CheckpointError(
            f"the checkpoint's rotary tables are not those of rope_theta {config.rope_theta:g} and "
            f"rope dim {config.rope_dim}; give the config it was trained with"
        )


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


def _index_in(directory: Path) -> Path:
    indices = sorted(directory.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) != 1:
        raise CheckpointError(
            f"{directory}: a directory with {len(indices)} *{INDEX_SUFFIX} files, not one; name the file"
        )
    return indices[0]


def _listed(what: str, names: Iterable[str]) -> str:
    """`2 missing (a, b)`, or nothing."""
    listed = list(names)
    if not listed:
        return ""
    more = ", ..." if len(listed) > _NAMED else ""
    return f"{len(listed)} {what} ({', '.join(name[:160] for name in listed[:_NAMED])}{more})"


def _advice(found: frozenset[str], config: MythosConfig) -> str:
    other = "gqa" if config.attn_type == "mla" else "mla"
    if found and found == parameter_shapes(config.with_attention(other)).keys():
        return f"; these weights have {other} attention"
    if not found & parameter_shapes(config).keys():
        return "; this is not an OpenMythos checkpoint"
    return ""
