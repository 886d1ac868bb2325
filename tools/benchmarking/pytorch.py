"""The contestants in PyTorch: open-mythos as it is, and the reference model under `torch.compile`."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_model.checkpoint import SeededWeights, WeightSource, load_model, open_checkpoint, parameter_shapes
from reference_model.config import MythosConfig
from reference_model.open_mythos.cache import Cache
from reference_model.open_mythos.model import MythosModel
from tools.benchmarking.contestants import Contestant, Logits, Running, Spec
from tools.benchmarking.context import STAGES, Context

__all__ = ["CompiledReference", "OpenMythos", "latent_gains", "open_source"]

# Of one function: for no past, one token or many, the first loop or a later one. PyTorch's own limit, 8, is reached.
_VARIANTS = 64


def open_source(spec: Spec) -> tuple[MythosConfig, WeightSource]:
    """The model's shape and its weights.

    Raises:
        CheckpointError: the checkpoint is no good.
    """
    config = MythosConfig.from_dict(dict(spec.config))
    return config, SeededWeights(config, spec.seed) if spec.checkpoint is None else open_checkpoint(spec.checkpoint)


def latent_gains(config: MythosConfig, source: WeightSource) -> dict[str, NDArray[np.float32]]:
    """Weights of each stage's `kv_norm`, [layers, kv_lora_rank]; none for GQA."""
    if config.attn_type != "mla":
        return {}
    blocks = {
        "prelude": [f"prelude.{layer}" for layer in range(config.prelude_layers)],
        "recurrent": ["recurrent.block"],
        "coda": [f"coda.{layer}" for layer in range(config.coda_layers)],
    }

    def gain(block: str) -> NDArray[np.float32]:
        return source.read(f"{block}.attn.kv_norm.weight").to(torch.float32).numpy()

    empty = np.zeros((0, config.kv_lora_rank), np.float32)
    return {stage: np.stack([gain(name) for name in names]) if names else empty for stage, names in blocks.items()}


class _PyTorch(Contestant):
    """What both share."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        torch.set_num_threads(spec.threads)

    def import_runtime(self) -> None:
        """Start its threads; torch is imported already."""
        torch.ones(8).sum()


class OpenMythos(_PyTorch):
    """open-mythos, eager."""

    def load(self, loops: Sequence[int]) -> None:
        """Build it with the weights of the bundles."""
        upstream = _import_upstream()
        config, source = open_source(self._spec)
        self._heads = config.n_heads
        theirs = upstream.MythosConfig(**self._spec.config)
        with torch.device("meta"):  # it would draw a billion random weights, to be overwritten
            model = upstream.OpenMythos(theirs)
        state = {name: source.read(name).to(torch.float32) for name in parameter_shapes(config)}
        state["head.weight"] = state["embed.weight"]
        for name, width in (("freqs_cis", config.head_dim), ("freqs_cis_mla", config.qk_rope_head_dim)):
            state[name] = upstream.precompute_rope_freqs(width, config.max_seq_len, config.rope_theta)
        model.load_state_dict(state, assign=True)
        self._model = model.requires_grad_(False).eval()

    def prefill(self, ids: Sequence[int], loops: int, room: int) -> tuple[Logits, Running]:
        """Read a prompt."""
        running = _OpenMythosSequence(self._model, {}, 0, loops)
        return running.feed(torch.tensor([list(ids)])), running

    def resume(self, context: Context, depths: Sequence[int], room: int) -> Running:
        """A sequence whose cache is filled, and nothing run."""
        (loops,) = depths  # it has no depth per sequence
        cache: dict[str, dict[str, Tensor]] = {}
        for stage in STAGES:
            key = "recurrent_loop_" if stage == "recurrent" else f"{stage}_"
            parts = self._rows(context, stage)
            depth = loops if stage == "recurrent" else len(next(iter(parts.values())))
            cache |= {
                f"{key}{index}": {name: rows[index][None].contiguous() for name, rows in parts.items()}
                for index in range(depth)
            }
        return _OpenMythosSequence(self._model, cache, context.past, loops)

    def describe(self) -> str:
        """Its version."""
        return f"open-mythos {version('open-mythos')} (PyTorch {torch.__version__}, eager, fp32)"

    def _rows(self, context: Context, stage: str) -> dict[str, Tensor]:
        """[depth, past, ...] under its names; it keeps a copy of MLA's rotated key for each head."""
        if not context.latents:
            return {"k": _tensor(context.rows[f"{stage}.key"]), "v": _tensor(context.rows[f"{stage}.value"])}
        rope = _tensor(context.rows[f"{stage}.rope"])
        rope = rope.unsqueeze(2).expand(-1, -1, self._heads, -1)
        return {"c_kv": _tensor(context.latents[f"{stage}.latent"]), "k_rope": rope}


class _OpenMythosSequence(Running):
    def __init__(self, model: Any, cache: dict[str, dict[str, Tensor]], past: int, loops: int) -> None:
        self._model, self._loops = model, loops
        self._given, self._past = cache, past
        self.rewind()

    def feed(self, ids: Tensor) -> Logits:
        """ids [1, s] -> logits of the last token, [1, vocab]."""
        with torch.inference_mode():
            logits = self._model(ids, n_loops=self._loops, kv_cache=self._cache, start_pos=self._length)
        self._length += ids.shape[1]
        return logits[:, -1].numpy()

    def step(self, tokens: NDArray[np.int64]) -> Logits:
        return self.feed(torch.from_numpy(tokens)[:, None])

    def rewind(self) -> None:
        self._length = self._past
        self._cache = {key: dict(parts) for key, parts in self._given.items()}  # it replaces tensors, never writes them

    @property
    def cache_bytes(self) -> int:
        return sum(rows.nbytes for parts in self._cache.values() for rows in parts.values())


class CompiledReference(_PyTorch):
    """The reference model, its blocks compiled.

    Compiled are the pieces that have a graph: a dense block, the looped step, the head. Which experts a token is sent
    to is data, and picks Python objects: that one function stays eager, or each expert would be compiled anew.
    """

    def load(self, loops: Sequence[int]) -> None:
        """Load it, and mark what is compiled; that happens when it first runs."""
        torch._dynamo.config.recompile_limit = _VARIANTS
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # and never eager in silence
        config, source = open_source(self._spec)
        self._model = load_model(source, config)
        feed_forward: Any = self._model.recurrent.block.ffn
        feed_forward.mix = torch.compiler.disable(feed_forward.mix)
        for block in (*self._model.prelude, *self._model.coda):
            block.compile(dynamic=True)
        for owner, name in ((self._model.recurrent, "step"), (self._model, "head")):
            setattr(owner, name, torch.compile(getattr(owner, name), dynamic=True))

    def prefill(self, ids: Sequence[int], loops: int, room: int) -> tuple[Logits, Running]:
        """Read a prompt."""
        running = _ReferenceSequence(self._model, None, loops)
        return running.feed(torch.tensor([list(ids)])), running

    def resume(self, context: Context, depths: Sequence[int], room: int) -> Running:
        """A sequence whose cache is filled, and nothing run."""
        (loops,) = depths
        parts = ("latent", "rope") if context.latents else ("key", "value")

        def stage(name: str) -> tuple[Tensor, Tensor]:
            first, second = (_tensor(context.rows[f"{name}.{part}"])[:, None] for part in parts)
            return (first[:loops], second[:loops]) if name == "recurrent" else (first, second)

        return _ReferenceSequence(self._model, Cache(*(stage(name) for name in STAGES)), loops)

    def describe(self) -> str:
        """Its version."""
        return f"reference model (PyTorch {torch.__version__}, torch.compile, fp32)"


class _ReferenceSequence(Running):
    def __init__(self, model: MythosModel, cache: Cache | None, loops: int) -> None:
        self._model, self._loops = model, loops
        self._given = self._cache = cache

    def feed(self, ids: Tensor) -> Logits:
        """ids [1, s] -> logits of the last token, [1, vocab]."""
        with torch.inference_mode():
            out = self._model(ids, self._loops, cache=self._cache, logits_to_keep=1)
            self._cache = self._cache.append(out.rows) if self._cache else out.rows
        return out.logits[:, -1].numpy()

    def step(self, tokens: NDArray[np.int64]) -> Logits:
        return self.feed(torch.from_numpy(tokens)[:, None])

    def rewind(self) -> None:
        self._cache = self._given

    @property
    def cache_bytes(self) -> int:
        cache = self._cache
        return 0 if cache is None else sum(part.nbytes for stage in STAGES for part in getattr(cache, stage))


def _tensor(rows: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows))


def _import_upstream() -> Any:
    """`open_mythos.main`; its package imports transformers for a tokenizer that nobody here uses."""
    if "transformers" not in sys.modules:
        stub = types.ModuleType("transformers")
        stub.AutoTokenizer = None  # type: ignore[attr-defined]
        sys.modules["transformers"] = stub
    return importlib.import_module("open_mythos.main")
