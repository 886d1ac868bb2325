"""What a request to the generator asks for, from its tensors and parameters; all of it hostile."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.sampling import Sampling
from engines.triton.contract import GENERATOR_INPUTS, Port

__all__ = ["Options", "read_options"]

_PORTS = {port.name: port for port in GENERATOR_INPUTS}
_MOST = {"stop_words": 64, "bad_words": 64, "end_id": 64}
_LONGEST_STOP_WORD = 1024  # characters
_UNSUPPORTED = ("bad_words", "frequency_penalty", "presence_penalty")
_MEANINGLESS = (*_UNSUPPORTED, "pad_id", "beam_width")


@dataclass(frozen=True)
class Options:
    """A request as its sender wrote it; ids and depth are checked when it is submitted."""

    text: str | None
    ids: list[int] | None
    loops: int | None
    max_new_tokens: int | None
    stream: bool
    sampling: Sampling
    stop_words: tuple[str, ...]
    end_ids: tuple[int, ...] | None  # in place of the bundle's own; None: those
    echo: bool  # is the prompt part of the answer?
    count_input: bool
    count_output: bool


def read_options(tensors: Mapping[str, NDArray[Any] | None], parameters: str) -> Options:
    """Read a request.

    Args:
        tensors: input tensors that came, with their batch dimension of 1.
        parameters: the request's parameters as JSON; they may hold any option but `input_ids`. `/generate` puts
            whatever is no input of the model there, a misspelt name too.

    Raises:
        EngineError: an option is unknown, given twice, of another type or size, or out of range.
    """
    values = {name: _value(_PORTS[name], tensor) for name, tensor in tensors.items() if tensor is not None}
    for name, given in _parameters(parameters).items():
        if name in values:
            raise EngineError(f"{name} is given twice, as an input and as a parameter; give it once")
        values[name] = given
    _check_prompt(values)
    for name in _UNSUPPORTED:
        if values.get(name):
            raise EngineError(f"{name} is not supported; leave it out")
    if values.get("beam_width", 1) != 1:
        raise EngineError(f"beam_width is {values['beam_width']}; there is no beam search, so give 1 or leave it out")
    return Options(
        text=values.get("text_input"),
        ids=values.get("input_ids"),
        loops=values.get("n_loops"),
        max_new_tokens=values.get("max_tokens"),
        stream=values.get("stream", False),
        sampling=_sampling(values),
        stop_words=_stop_words(values.get("stop_words", ())),
        end_ids=_end_ids(values),
        echo=not values.get("exclude_input_in_output", True),
        count_input=values.get("return_num_input_tokens", False),
        count_output=values.get("return_num_output_tokens", False),
    )


def _check_prompt(values: Mapping[str, Any]) -> None:
    if ("text_input" in values) == ("input_ids" in values):
        raise EngineError("give either text_input or input_ids")


def _end_ids(values: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = tuple(values.get("end_id", ()))
    if values.get("ignore_eos", False):
        return ids
    return ids or None


def _sampling(values: Mapping[str, Any]) -> Sampling:
    return Sampling(
        temperature=values.get("temperature", 0.0),
        top_k=values.get("top_k", 0),
        top_p=values.get("top_p", 1.0),
        seed=values.get("seed"),
    )


def _value(port: Port, tensor: NDArray[Any]) -> Any:
    """A plain Python value: one, or a list where the port has a dynamic dimension."""
    several = port.dims == (-1,)
    if not several and tensor.size != 1:
        raise EngineError(f"{port.name} has {tensor.size} values; give one")
    if tensor.size > _MOST.get(port.name, tensor.size):  # before each becomes an object of Python
        raise EngineError(f"{tensor.size} {port.name}; give at most {_MOST[port.name]}")
    items = [_item(port, item) for item in tensor.reshape(-1).tolist()]
    return [item for item in items if item != ""] if several else items[0]  # clients send "" for no stop word


def _item(port: Port, item: Any) -> Any:
    if port.dtype == "TYPE_STRING":
        return _text(port.name, item)
    if port.dtype == "TYPE_FP32":
        return _as_written(item)
    return item


def _text(name: str, item: Any) -> str:
    try:
        return item.decode() if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise EngineError(f"{name} is not valid UTF-8") from error


def _as_written(item: float) -> float:
    """0.9 for what became 0.899999976 in single precision, so that it samples as 0.9 does elsewhere."""
    return float(str(np.float32(item))) if math.isfinite(item) else item


def _parameters(text: str) -> dict[str, Any]:
    values = json.loads(text) if text else {}
    return {name: _parameter(name, value) for name, value in values.items()}


def _parameter(name: str, value: Any) -> Any:
    port = _PORTS.get(name)
    if port is None or name == "input_ids":
        known = ", ".join(name for name in _PORTS if name not in _MEANINGLESS)
        raise EngineError(f"parameter {name[:100]!r} is unknown; this model takes {known}")
    if not _fits(port, value):
        raise EngineError(f"{name} is {value!r:.100}; it must be {_KINDS[port.dtype][1]}")
    if port.dims == (-1,):
        return [value] if value != "" else []
    return value


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "TYPE_STRING": ((str,), "text"),
    "TYPE_BOOL": ((bool,), "true or false"),
    "TYPE_FP32": ((int, float), "a number"),
    "TYPE_INT32": ((int,), "an integer"),
    "TYPE_INT64": ((int,), "an integer"),
    "TYPE_UINT64": ((int,), "an integer of at least 0"),
}


def _fits(port: Port, value: Any) -> bool:
    types, _ = _KINDS[port.dtype]
    return isinstance(value, types) and (port.dtype == "TYPE_BOOL" or not isinstance(value, bool))


def _stop_words(words: Sequence[str]) -> tuple[str, ...]:
    if any(len(word) > _LONGEST_STOP_WORD for word in words):
        raise EngineError(f"a stop word has more than {_LONGEST_STOP_WORD} characters")
    return tuple(words)
