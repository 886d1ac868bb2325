"""What the generator takes and gives, by the names that clients of TensorRT-LLM and Triton's OpenAI frontend send."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["GENERATOR_INPUTS", "GENERATOR_OUTPUTS", "SETTINGS", "Port", "load_metric"]


class Port(NamedTuple):
    """One input or output of a Triton model."""

    name: str
    dtype: str  # Triton's: TYPE_STRING, TYPE_INT32, ...
    dims: tuple[int, ...]
    optional: bool = True


# One of `text_input` and `input_ids` must be given.
GENERATOR_INPUTS = (
    Port("text_input", "TYPE_STRING", (1,)),
    Port("input_ids", "TYPE_INT64", (-1,)),
    Port("n_loops", "TYPE_INT64", (1,)),
    Port("max_tokens", "TYPE_INT32", (1,)),
    Port("stream", "TYPE_BOOL", (1,)),
    Port("temperature", "TYPE_FP32", (1,)),
    Port("top_k", "TYPE_INT32", (1,)),
    Port("top_p", "TYPE_FP32", (1,)),
    Port("seed", "TYPE_UINT64", (1,)),
    Port("stop_words", "TYPE_STRING", (-1,)),
    Port("end_id", "TYPE_INT32", (-1,)),
    Port("ignore_eos", "TYPE_BOOL", (1,)),
    Port("exclude_input_in_output", "TYPE_BOOL", (1,)),
    # sent by clients whether or not they mean anything; taken as long as they do not
    Port("bad_words", "TYPE_STRING", (-1,)),
    Port("pad_id", "TYPE_INT32", (1,)),
    Port("beam_width", "TYPE_INT32", (1,)),
    Port("frequency_penalty", "TYPE_FP32", (1,)),
    Port("presence_penalty", "TYPE_FP32", (1,)),
    Port("return_num_input_tokens", "TYPE_BOOL", (1,)),
    Port("return_num_output_tokens", "TYPE_BOOL", (1,)),
)

GENERATOR_OUTPUTS = (
    Port("text_output", "TYPE_STRING", (1,), optional=False),
    Port("output_ids", "TYPE_INT64", (-1,), optional=False),
    Port("finish_reason", "TYPE_STRING", (1,), optional=False),
    Port("halting_depth", "TYPE_INT64", (-1,), optional=False),
    Port("num_input_tokens", "TYPE_INT32", (1,)),
    Port("num_output_tokens", "TYPE_INT32", (1,)),
)

# `parameters` of the generator's config.pbtxt, each an integer; empty or absent: the default.
SETTINGS = {
    "max_batch": "sequences that decode together",
    "max_queue": "requests that wait; the next one is refused",
    "max_loops": "the deepest a request may ask for",
    "prefill_chunk": "prompt tokens in one call, so the longest that others wait",
    "cache_bytes": "memory for all caches",
    "threads": "of one operator",
}


def load_metric(model: str) -> str:
    """The name of a generator's load among the server's metrics.

    It names the model, because KServe adds up what has one name, whatever its labels.
    """
    return f"mythos_load_{re.sub('[^A-Za-z0-9]', '_', model)}"
