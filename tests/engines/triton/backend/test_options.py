"""Requests as clients send them, and as nobody should."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError
from engines.triton.backend.options import Options, read_options

TEXT = {"text_input": np.array([[b"hello"]], np.object_)}


def read(parameters: dict[str, Any] | None = None, **tensors: np.ndarray) -> Options:
    given = tensors if "input_ids" in tensors or "text_input" in tensors else TEXT | tensors
    return read_options(given, json.dumps(parameters or {}))


def test_defaults_are_greedy_and_the_models_own() -> None:
    options = read()
    assert (options.text, options.ids, options.loops, options.max_new_tokens) == ("hello", None, None, None)
    assert (options.stream, options.stop_words, options.end_ids, options.echo) == (False, (), None, False)
    assert options.sampling.temperature == 0
    assert not options.count_input and not options.count_output


def test_the_openai_frontends_request() -> None:
    """Tensors as Triton's frontend makes them from a chat completion with its defaults."""
    options = read(
        text_input=np.array([[b"hi"]], np.object_),
        stream=np.bool_([[True]]),
        max_tokens=np.int32([[16]]),
        stop_words=np.array([[b"\n", b"end"]], np.object_),
        top_p=np.float32([[0.9]]),
        frequency_penalty=np.float32([[0]]),
        presence_penalty=np.float32([[0]]),
        seed=np.uint64([[2**63]]),
        temperature=np.float32([[0.7]]),
        return_num_input_tokens=np.bool_([[True]]),
        return_num_output_tokens=np.bool_([[True]]),
    )
    assert options.stream and options.max_new_tokens == 16 and options.stop_words == ("\n", "end")
    assert options.sampling.top_p == 0.9 and options.sampling.temperature == 0.7  # not 0.699999988
    assert options.sampling.seed == 2**63
    assert options.count_input and options.count_output


def test_the_curl_line_of_tensorrt_llm() -> None:
    options = read(
        {"pad_id": 2, "end_id": 2, "max_tokens": 20, "bad_words": "", "stop_words": ""},
        text_input=np.array([[b"hi"]], np.object_),
    )
    assert (options.end_ids, options.max_new_tokens, options.stop_words) == ((2,), 20, ())


def test_options_may_come_as_parameters() -> None:
    options = read({"n_loops": 8, "temperature": 1, "stop_words": "x", "stream": True})
    assert (options.loops, options.sampling.temperature, options.stop_words, options.stream) == (8, 1, ("x",), True)


def test_ids() -> None:
    assert read(input_ids=np.int64([[1, 2, 3]])).ids == [1, 2, 3]
    assert read(input_ids=np.zeros((1, 0), np.int64)).ids == []  # refused when it is submitted


@pytest.mark.parametrize(
    ("parameters", "tensors", "message"),
    [
        ({"n_loop": 8}, {}, "parameter 'n_loop' is unknown; this model takes text_input, input_ids, n_loops"),
        ({"input_ids": 8}, {}, "parameter 'input_ids' is unknown"),
        ({"n_loops": 8}, {"n_loops": np.int64([[8]])}, "n_loops is given twice"),
        ({"n_loops": "8"}, {}, "n_loops is '8'; it must be an integer"),
        ({"n_loops": True}, {}, "n_loops is True; it must be an integer"),
        ({"temperature": "hot"}, {}, "temperature is 'hot'; it must be a number"),
        ({"stream": 1}, {}, "stream is 1; it must be true or false"),
        ({"text_input": "again"}, {}, "text_input is given twice"),
        ({}, {"input_ids": np.int64([[1]]), **TEXT}, "give either text_input or input_ids"),
        ({}, {"max_tokens": np.int32([[1, 2]])}, "max_tokens has 2 values; give one"),
        ({}, {"max_tokens": np.zeros((1, 0), np.int32)}, "max_tokens has 0 values; give one"),
        ({}, {"text_input": np.array([[b"\xff"]], np.object_)}, "text_input is not valid UTF-8"),
        ({}, {"temperature": np.float32([[math.nan]])}, "temperature is nan"),
        ({}, {"temperature": np.float32([[-1]])}, r"temperature is -1\.0"),
        ({}, {"top_p": np.float32([[0]])}, r"top_p is 0\.0"),
        ({}, {"top_k": np.int32([[-5]])}, "top_k is -5"),
        ({}, {"presence_penalty": np.float32([[0.5]])}, "presence_penalty is not supported; leave it out"),
        ({"bad_words": "x"}, {}, "bad_words is not supported"),
        ({}, {"stop_words": np.array([[b"x"] * 65], np.object_)}, "65 stop_words; give at most 64"),
        ({"stop_words": "x" * 2000}, {}, "a stop word has more than 1024 characters"),
    ],
)
def test_what_is_wrong_is_said(parameters: dict[str, Any], tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read(parameters, **tensors)


def test_no_prompt() -> None:
    with pytest.raises(EngineError, match="give either text_input or input_ids"):
        read_options({"n_loops": np.int64([[1]])}, "")
    with pytest.raises(EngineError, match="give either text_input or input_ids"):
        read_options({"text_input": None}, "{}")


def test_several_end_ids() -> None:
    assert read(end_id=np.array([[2, 0]], np.int32)).end_ids == (2, 0)
    assert read(end_id=np.array([[2, 0]], np.int32), ignore_eos=np.array([[True]])).end_ids == (2, 0)
    assert read(ignore_eos=np.array([[True]])).end_ids == ()


def test_what_tensorrt_llms_own_client_always_sends() -> None:
    sent = {"beam_width": np.array([[1]], np.int32), "exclude_input_in_output": np.array([[True]])}
    assert read(**sent).echo is False
    assert read(exclude_input_in_output=np.array([[False]])).echo is True
    with pytest.raises(EngineError, match="beam_width is 4; there is no beam search"):
        read(beam_width=np.array([[4]], np.int32))
