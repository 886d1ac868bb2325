"""One call of the graph, where whatever goes wrong is the error of that call and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, one_line
from engines.generation import Graph

__all__ = ["Answer", "call"]


class Answer(NamedTuple):
    """What a call gives for the last token of each sequence, and the rows of all its tokens."""

    logits: NDArray[np.float32]  # [batch, vocab]
    halting_depth: NDArray[np.int64]  # [batch]
    rows: list[NDArray[Any]]  # one [depth, batch, seq, *row] per part of the cache


def call(graph: Graph, inputs: Mapping[str, NDArray[Any]], rows: Sequence[str], vocab: int) -> Answer:
    """Run once, for the logits of the last position.

    Args:
        rows: names of the cache rows that come out.

    Raises:
        EngineError: the runtime failed, or gave what the manifest does not say.
    """
    given = {**inputs, "logits_to_keep": np.array(1, np.int64)}
    try:
        logits, halting, *new = graph.run(given, ["logits", "halting.depth", *rows])
    except EngineError:
        raise
    except Exception as error:  # a runtime's own exceptions have no base in common
        raise EngineError(f"the engine failed: {one_line(error)}") from error
    shape = inputs["input_ids"].shape
    if logits.shape != (shape[0], 1, vocab) or halting.shape != shape or halting.dtype != np.int64:
        raise EngineError(
            f"the graph returned logits of shape {logits.shape} and halting.depth of shape {halting.shape}: "
            "not what its manifest says"
        )
    return Answer(logits[:, -1], halting[:, -1], new)
