"""Where a decode step of a bundle spends its time: ONNX Runtime's own profile, body nodes of the loop included.

The profiler reports a Loop or an If with the time of its body in it. Here every node has its own time only, and says
where it stands, so that the shares add up to the step.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle
from reference_model.open_mythos.config import MythosConfig
from tools.benchmarking.contestants import resumed
from tools.benchmarking.context import make_context

__all__ = ["NodeTime", "own_times", "profile_step"]

_WARM_UP, _STEPS = 2, 8
_NODE = "_kernel_time"
_WITH_BODIES = ("Loop", "If", "Scan")


class NodeTime(NamedTuple):
    """One run of one node, in microseconds, without the nodes of its bodies."""

    name: str
    op: str
    place: str  # ops it stands in, outermost first: "", "Loop", "Loop/If"
    shapes: str  # of its inputs
    own_us: float


class _ProfiledEngine(OnnxRuntimeEngine):
    """Its sessions write a profile when they end."""

    prefix = ""

    def _session_options(self) -> tuple[onnxruntime.SessionOptions, list[str] | None]:
        options, disabled = super()._session_options()
        options.enable_profiling = True
        options.profile_file_prefix = self.prefix
        return options, disabled

    def _session(self, *arguments: Any) -> onnxruntime.InferenceSession:
        self.session = super()._session(*arguments)
        return self.session


def profile_step(
    bundle: Path, config: MythosConfig, gains: Mapping[str, Any], past: int, loops: int, threads: int
) -> dict[str, Any]:
    """The aggregated profile of one decode step, the quickest of several. Being profiled costs every node some time.

    Returns:
        `step_us` (in the session), and `ops` and `nodes` (the same node in all loops is one row), each sorted by time.
    """
    opened = Bundle.open(bundle, check_hashes=False)
    with tempfile.TemporaryDirectory() as folder:
        engine = _ProfiledEngine(opened, threads=threads)
        engine.prefix = str(Path(folder) / "profile")
        depths = np.array([loops])
        running = resumed(
            engine.graph(depths),
            opened.manifest,
            make_context(config, gains, past, loops),
            depths,
            past + _WARM_UP + _STEPS,
        )
        for token in range(_WARM_UP + _STEPS):
            running.step(np.array([token % config.vocab_size]))
        events = json.loads(Path(engine.session.end_profiling()).read_text(encoding="utf-8"))
    runs = [(event["ts"], event["dur"]) for event in events if event.get("name") == "model_run"]
    start, duration = min(sorted(runs)[-_STEPS:], key=lambda run: run[1])  # the one that others disturbed the least
    times = own_times([event for event in events if _is_node(event) and start <= event["ts"] <= start + duration])
    return {
        "bundle": opened.manifest.name,
        "past": past,
        "loops": loops,
        "step_us": duration,
        "ops": _totals(times, ("place", "op")),
        "nodes": _totals(times, ("place", "op", "name", "shapes")),
    }


def own_times(events: Sequence[Mapping[str, Any]]) -> list[NodeTime]:
    """Time of each node without what runs inside it.

    Args:
        events: of the profile, one per node run; one lies inside another where it belongs to its body.
    """
    times: list[NodeTime] = []
    open_nodes: list[tuple[float, int, str]] = []  # end, index into `times`, place of what is inside
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        start, duration = event["ts"], event["dur"]
        while open_nodes and open_nodes[-1][0] <= start:
            open_nodes.pop()
        place = ""
        if open_nodes:
            _, outer, place = open_nodes[-1]
            times[outer] = times[outer]._replace(own_us=times[outer].own_us - duration)
        arguments = event.get("args", {})
        op = arguments.get("op_name", "?")
        times.append(NodeTime(event["name"].removesuffix(_NODE), op, place, _shapes(arguments), float(duration)))
        if op in _WITH_BODIES:  # times are whole microseconds: a neighbour may seem to lie in a short node
            open_nodes.append((start + duration, len(times) - 1, f"{place}/{op}".lstrip("/")))
    return times


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith(_NODE)


def _shapes(arguments: Mapping[str, Any]) -> str:
    """[{"float": [1, 128]}, ...] -> "1x128 ..."."""
    inputs = arguments.get("input_type_shape", [])
    return " ".join("x".join(map(str, shape)) or "scalar" for given in inputs for shape in given.values())


def _totals(times: Iterable[NodeTime], keys: Sequence[str]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for node in times:
        key = tuple(getattr(node, name) for name in keys)
        counts[key] += 1
        sums[key] += node.own_us
    total = sum(sums.values()) or 1.0
    rows = [dict(zip(keys, key)) | {"count": counts[key], "us": sums[key], "share": sums[key] / total} for key in sums]
    return sorted(rows, key=lambda row: -row["us"])
