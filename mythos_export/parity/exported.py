"""The exported side: a case fed to a graph by its bare contract, growing the past call by call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cache import storage_dtype
from engines.generation import Graph
from mythos_export.bundle import CachePart
from mythos_export.parity.cases import Case
from mythos_export.parity.probe import PROBES, ProbedGraph

__all__ = ["ExportedRun", "Inside", "run_graph"]


@dataclass(frozen=True)
class ExportedRun:
    """What a graph computes for a case."""

    logits: NDArray[np.float32]  # [b, s, vocab]
    halting_depth: NDArray[np.int64]  # [b, s]
    depths_cached: int  # depth of the recurrent rows it returned
    inside: Inside | None = None


@dataclass(frozen=True)
class Inside:
    """What the loop did, depth by depth."""

    hidden: NDArray[np.float32]  # [t, b, s, d]
    act_weight: NDArray[np.float32]  # [t, b, s]
    router_scores: NDArray[np.float32]  # [t, b, s, experts]
    experts: NDArray[np.int64]  # [t, b, s, k]

    def until(self, depth: int) -> Inside:
        """The first depths: a graph unrolled deeper runs more than a case asks for."""
        return Inside(
            hidden=self.hidden[:depth],
            act_weight=self.act_weight[:depth],
            router_scores=self.router_scores[:depth],
            experts=self.experts[:depth],
        )


def run_graph(graph: Graph, parts: list[CachePart], case: Case) -> ExportedRun:
    """Feed a case to a graph; a probed one also tells what its loop did.

    Raises:
        EngineError: the runtime failed.
    """
    run, seen = _feed(graph, parts, case)
    return replace(run, inside=_inside(seen, len(case.loops)) if seen and run.depths_cached else None)


def _inside(seen: list[dict[str, NDArray[Any]]], batch: int) -> Inside:
    by_token = ("router_scores", "experts")  # the router sees its tokens as one row each
    joined = {name: _join([call[name] for call in seen], batch, flat=name in by_token) for name in PROBES}
    return Inside(**joined | {"act_weight": joined["act_weight"].squeeze(-1)})


def _feed(graph: Graph, parts: list[CachePart], case: Case) -> tuple[ExportedRun, list[dict[str, NDArray[Any]]]]:
    batch = len(case.loops)
    depth = graph.loops if isinstance(graph.loops, int) else case.trips
    past = {
        part.name: np.zeros(
            (depth if part.depth == "loops" else part.depth, batch, 0, *part.row), storage_dtype(part.dtype)
        )
        for part in parts
    }
    positions = (case.mask.cumsum(axis=1) - 1).clip(min=0)
    outputs = ["logits", "halting.depth", *(f"new.{part.name}" for part in parts)]
    logits, halting, seen, done = [], [], [], 0
    for length in case.chunks:
        until = done + length
        inputs = {
            "input_ids": np.ascontiguousarray(case.ids[:, done:until]),
            "attention_mask": np.ascontiguousarray(case.mask[:, :until]),
            "position_ids": np.ascontiguousarray(positions[:, done:until]),
            "n_loops": np.array(case.loops, np.int64),
            "logits_to_keep": np.array(0, np.int64),
            **{f"past.{name}": rows for name, rows in past.items()},
        }
        step_logits, step_halting, *rows = graph.run(inputs, outputs)
        past = {
            name: np.concatenate((old, new), axis=2) for (name, old), new in zip(past.items(), rows) if _fits(old, new)
        }
        logits.append(step_logits)
        halting.append(step_halting)
        if isinstance(graph, ProbedGraph):
            seen.append(dict(graph.inside))
        done = until
        if len(past) < len(parts):
            break
    depths_cached = min((new.shape[0] for part, new in zip(parts, rows) if part.depth == "loops"), default=0)
    return ExportedRun(np.concatenate(logits, axis=1), np.concatenate(halting, axis=1), depths_cached), seen


def _fits(old: NDArray[Any], new: NDArray[Any]) -> bool:
    """Rows of another depth than the past's cannot be appended: the trip count is wrong."""
    return old.shape[0] == new.shape[0]


def _join(calls: list[NDArray[Any]], batch: int, *, flat: bool) -> NDArray[Any]:
    """[t, b, s, ...] over all calls; a flat quantity comes as [t, b * s, ...]."""
    if flat:
        calls = [call.reshape(call.shape[0], batch, -1, call.shape[-1]) for call in calls]
    return np.concatenate(calls, axis=2)
