"""Descriptions of models that are not OpenMythos, with the sizes their makers published."""

from __future__ import annotations

from collections.abc import Iterator

from reference_model.architecture import (
    EMBEDDING,
    HEAD,
    LOOP,
    WHOLE,
    Architecture,
    CachePart,
    Control,
    Decision,
    Head,
    Layer,
    Loop,
    Parameter,
    Shape,
    Stage,
    State,
    View,
    Work,
)

__all__ = ["huginn", "nanbeige", "ouro", "plain"]


def linear(module: str, stage: str, part: str, shape: tuple[int, int], *layers: Layer) -> Parameter:
    return Parameter(f"{module}.weight", shape, "linear", stage, part, layers or (Layer(module, shape[1]),))


def norm(name: str, stage: str, shape: Shape) -> Parameter:
    return Parameter(name, shape, "vector", stage, "norms")


def llama_layers(
    stage: str, count: int, dim: int, heads: int, kv_heads: int, head: int, hidden: int, *norms: str
) -> Iterator[Parameter]:
    """Layers as Llama names them."""
    for layer in range(count):
        block = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm", *norms):
            yield norm(f"{block}.{name}.weight", stage, (dim,))
        for name, rows in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            yield linear(f"{block}.self_attn.{name}", stage, "attention", (rows * head, dim))
        yield linear(f"{block}.self_attn.o_proj", stage, "attention", (dim, heads * head))
        for name in ("gate_proj", "up_proj"):
            yield linear(f"{block}.mlp.{name}", stage, "feed-forward", (hidden, dim))
        yield linear(f"{block}.mlp.down_proj", stage, "feed-forward", (dim, hidden))


def untied_ends(vocab: int, dim: int) -> list[Parameter]:
    lookup = Layer("model.embed_tokens", dim, WHOLE, lookup=True)
    return [
        Parameter("model.embed_tokens.weight", (vocab, dim), "table", EMBEDDING, "table", (lookup,)),
        linear("lm_head", HEAD, "output", (vocab, dim)),
    ]


def rows(stage: str, name: str, layers: int, shape: Shape, *, per_loop: bool) -> tuple[CachePart, ...]:
    return tuple(CachePart(f"{name}.{part}", stage, shape, layers, per_loop) for part in ("key", "value"))


def plain() -> Architecture:
    """A small decoder without a loop: grouped-query attention, SwiGLU, an untied head."""
    dim, hidden, layers = 48, 80, 3
    return Architecture(
        family="plain",
        vocab_size=97,
        dim=dim,
        max_positions=64,
        before=(Stage("layers", "dense", layers),),
        loop=None,
        after=(),
        head=Head(tied=False, norm=True),
        cache=rows("layers", "layers", layers, (2, 12), per_loop=False),
        parameters=(
            *untied_ends(97, dim),
            *llama_layers("layers", layers, dim, 4, 2, 12, hidden),
            norm("model.norm.weight", HEAD, (dim,)),
        ),
        work=Work(4, 12, 4 * 2 * 12, hidden),
    )


def nanbeige(layers: int = 22) -> Architecture:
    """Nanbeige4.2-3B: 22 layers looped twice, the final norm inside the loop, heads wider than dim / heads."""
    dim, hidden, vocab = 3072, 10752, 166144
    return Architecture(
        family="nanbeige",
        vocab_size=vocab,
        dim=dim,
        max_positions=262144,
        before=(),
        loop=Loop(Stage(LOOP, "pre-norm", layers), (State("hidden", "encoded", dim),), "last", 2, 2, may_exceed=False),
        after=(),
        head=Head(tied=False, norm=False),
        cache=rows(LOOP, "recurrent", layers, (8, 128), per_loop=True),
        parameters=(
            *untied_ends(vocab, dim),
            *llama_layers(LOOP, layers, dim, 48, 8, 128, hidden),
            norm("model.norm.weight", LOOP, (dim,)),
        ),
        work=Work(48, 128, 48 * 2 * 128, hidden),
    )


def ouro(layers: int = 24) -> Architecture:
    """Ouro-1.4B, or 2.6B with 48 layers: norms before and after each branch, an exit gate that never leaves float."""
    dim, hidden, vocab = 2048, 5632, 49152
    gate = Control("model.early_exit_gate.*", "exit gate")
    states = (State("hidden", "encoded", dim), State("chosen", "zeros", dim), State("stay", "ones", 1))
    return Architecture(
        family="ouro",
        vocab_size=vocab,
        dim=dim,
        max_positions=65536,
        before=(),
        loop=Loop(Stage(LOOP, "branch-norm", layers), states, "selected", 4, 4, may_exceed=False),
        after=(),
        head=Head(tied=False, norm=False),
        cache=rows(LOOP, "recurrent", layers, (16, 128), per_loop=True),
        parameters=(
            *untied_ends(vocab, dim),
            *llama_layers(LOOP, layers, dim, 16, 16, 128, hidden, "input_layernorm_2", "post_attention_layernorm_2"),
            norm("model.norm.weight", LOOP, (dim,)),
            Parameter(
                "model.early_exit_gate.weight",
                (1, dim),
                "control",
                LOOP,
                "exit gate",
                (Layer("model.early_exit_gate", dim),),
                gate,
            ),
            Parameter("model.early_exit_gate.bias", (1,), "control", LOOP, "exit gate", (), gate),
        ),
        work=Work(16, 128, 16 * 2 * 128, hidden),
        decisions=(Decision("exit gate", "of the cumulative probability, from the threshold"),),
    )


def huginn(looped: int = 4) -> Architecture:
    """Huginn-0125: 2 / 4 / 2 layers, an adapter of state and input, fused projections, query and key biases."""
    dim, heads, head, hidden, vocab = 5280, 55, 96, 17920, 65536

    def blocks(stage: str, name: str, count: int) -> Iterator[Parameter]:
        for layer in range(count):
            block = f"transformer.{name}.{layer}"
            for index in (1, 2, 3, 4):
                yield norm(f"{block}.norm_{index}.weight", stage, (dim,))
            yield Parameter(f"{block}.attn.qk_bias", (2, 1, heads, head), "vector", stage, "attention")
            thirds = (
                View(f".{part}", transposed=True, start=at * dim, stop=(at + 1) * dim)
                for at, part in enumerate(("query", "key", "value"))
            )
            projections = (Layer(f"{block}.attn{view.suffix}", dim, view) for view in thirds)
            yield linear(f"{block}.attn.Wqkv", stage, "attention", (3 * dim, dim), *projections)
            yield linear(f"{block}.attn.proj", stage, "attention", (dim, dim))
            halves = (
                Layer(f"{block}.mlp.{part}", dim, View(f".{part}", transposed=True, start=low, stop=low + hidden))
                for part, low in (("gate", 0), ("up", hidden))
            )
            yield linear(f"{block}.mlp.fc", stage, "feed-forward", (2 * hidden, dim), *halves)
            yield linear(f"{block}.mlp.proj", stage, "feed-forward", (dim, hidden))

    uses = (Layer("head", dim), Layer("transformer.wte", dim, WHOLE, lookup=True))
    state = (State("state", "input", dim),)
    return Architecture(
        family="huginn",
        vocab_size=vocab,
        dim=dim,
        max_positions=4096,
        before=(Stage("prelude", "sum-norm", 2),),
        loop=Loop(Stage(LOOP, "sum-norm", looped), state, "last", 32, 32, may_exceed=True),
        after=(Stage("coda", "sum-norm", 2),),
        head=Head(tied=True, norm=True),
        cache=(
            *rows("prelude", "prelude", 2, (heads, head), per_loop=False),
            *rows(LOOP, "recurrent", looped, (heads, head), per_loop=True),
            *rows("coda", "coda", 2, (heads, head), per_loop=False),
        ),
        parameters=(
            Parameter("transformer.wte.weight", (vocab, dim), "table", EMBEDDING, "table", uses),
            *blocks("prelude", "prelude", 2),
            linear("transformer.adapter", LOOP, "adapter", (dim, 2 * dim)),
            *blocks(LOOP, "core_block", looped),
            *blocks("coda", "coda", 2),
            norm("transformer.ln_f.weight", HEAD, (dim,)),
        ),
        work=Work(heads, head, heads * 2 * head, hidden),
    )
