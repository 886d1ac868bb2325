"""The inputs of one call of a graph that a client sent, checked before it runs: all of it hostile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.cache import storage_dtype
from engines.errors import EngineError
from mythos_export.bundle import Limits, Manifest, TensorSpec

__all__ = ["check_tensors"]


def check_tensors(
    given: Mapping[str, NDArray[Any] | None],
    manifest: Manifest,
    *,
    graph_loops: int | Literal["dynamic"],
    max_loops: int,
) -> dict[str, NDArray[Any]]:
    """Check the inputs of a call of the graph; see README's table of the graph for what they mean.

    Args:
        given: by name; None where one is missing. `logits_to_keep` may be [] or [1].
        graph_loops: the depth the graph is unrolled to, or "dynamic".
        max_loops: the deepest a sequence may ask for.

    Returns:
        What the graph takes.

    Raises:
        EngineError: what is wrong with which input.
    """
    inputs = {spec.name: _present(spec, given.get(spec.name)) for spec in manifest.inputs}
    sizes = _check_sizes(inputs, manifest.inputs)
    past = next((sizes[f"past.{part.name}"][2] for part in manifest.cache), 0)
    _check_calls(inputs, past, manifest.limits)
    deepest = max_loops if graph_loops == "dynamic" else min(max_loops, graph_loops)
    _check_values("n_loops", inputs["n_loops"], 1, deepest)
    held = int(inputs["n_loops"].max()) if graph_loops == "dynamic" else graph_loops
    for part in manifest.cache:
        depth = sizes[f"past.{part.name}"][0]
        if part.depth == "loops" and depth < held:
            raise EngineError(
                f"past.{part.name} holds {depth} depths and the loop runs {held} times; give it {held}, also when it "
                "holds no tokens. A sequence keeps its depth for life"
            )
    return inputs


def _present(spec: TensorSpec, array: NDArray[Any] | None) -> NDArray[Any]:
    if array is None:
        raise EngineError(f"{spec.name} is missing; this model takes every input of the graph")
    if not spec.shape and array.shape == (1,):
        array = array.reshape(())
    wanted = np.dtype(np.int64) if spec.dtype == "int64" else storage_dtype(spec.dtype)
    if array.dtype != wanted:
        raise EngineError(f"{spec.name} is {array.dtype}; it must be {spec.dtype}")
    if array.ndim != len(spec.shape):
        raise EngineError(f"{spec.name} has shape {list(array.shape)}; it must be {_shape(spec)}")
    return array


def _check_sizes(inputs: Mapping[str, NDArray[Any]], specs: list[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """One size for each symbol, whichever input has it; the shapes."""
    sizes: dict[str, tuple[int, str]] = {}  # symbol -> its size, and the input that gave it
    for spec in specs:
        for symbol, found in zip(spec.shape, inputs[spec.name].shape):
            if isinstance(symbol, int):
                wanted, source = symbol, "the model"
            else:
                wanted, source = sizes.setdefault(symbol, (found, spec.name))
            if found != wanted:
                raise EngineError(
                    f"{spec.name} has shape {list(inputs[spec.name].shape)}; it must be {_shape(spec)}, and "
                    f"{source} has {symbol if source == 'the model' else f'{symbol} {wanted}'}"
                )
    return {name: array.shape for name, array in inputs.items()}


def _check_calls(inputs: Mapping[str, NDArray[Any]], past: int, limits: Limits) -> None:
    """Tokens, mask and positions of a call of [batch, seq] tokens after `past` slots."""
    batch, seq = inputs["input_ids"].shape
    if not batch or not seq:
        raise EngineError(f"input_ids has shape [{batch}, {seq}]; give at least one token of one sequence")
    if seq > limits.max_seq_len:
        raise EngineError(f"input_ids has {seq} tokens a sequence, more than max_seq_len {limits.max_seq_len}")
    width = inputs["attention_mask"].shape[1]
    if width != past + seq:
        raise EngineError(
            f"attention_mask is {width} wide; it must be {past + seq}: {past} slots of the past and {seq} new tokens"
        )
    _check_values("input_ids", inputs["input_ids"], 0, limits.vocab_size - 1)
    _check_values("attention_mask", inputs["attention_mask"], 0, 1)
    _check_values("position_ids", inputs["position_ids"], 0, limits.max_seq_len - 1)
    _check_values("logits_to_keep", inputs["logits_to_keep"], 0, seq)


def _check_values(name: str, array: NDArray[np.int64], low: int, high: int) -> None:
    wrong = array[(array < low) | (array > high)]
    if wrong.size:
        raise EngineError(f"{name} holds {int(wrong[0])}; it must lie in {low}..{high}")


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
