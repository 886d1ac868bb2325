"""From sample sequences to a recipe: the exported graph runs them, and says what it saw at each depth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.data import Samples
from calibration.errors import CalibrationError
from calibration.methods import MINIMUM_TOKENS, limit_of
from calibration.recipe import LARGEST_LIMIT, ActivationRange, Recipe
from calibration.statistics import BINS, add_extremes, add_histograms, find_points
from engines.generation import Graph, RunningBatch
from engines.onnxruntime import OnnxRuntimeEngine
from engines.prompts import read_prompts
from mythos_export.bundle import GraphFile
from mythos_export.number_formats import NumberFormat
from reference_model.architecture import Architecture
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

__all__ = ["ObservedGraph", "calibrate", "check_samples", "feed", "model_id"]

_DECODED = 8  # tokens of a sequence, at most, that are fed one at a time

Array = NDArray[Any]
MakeModel = Callable[[], ir.Model]  # the Loop graph of the bundle, its weights still on disk


def model_id(config: MythosConfig) -> str:
    """What a recipe is made for: a model of this very shape."""
    return hashlib.sha256(config.to_json().encode()).hexdigest()


def check_samples(samples: Samples, method: str) -> None:
    """Make sure that there is enough data for a method.

    Raises:
        CalibrationError: there is not.
    """
    needed = MINIMUM_TOKENS[method]
    if samples.tokens < needed:
        raise CalibrationError(
            f"{samples.origin}: {samples.tokens} tokens are too few for method {method}, which needs {needed}; "
            "give more data, or another --calibration-method"
        )


def calibrate(
    engine: OnnxRuntimeEngine,
    make_model: MakeModel,
    config: MythosConfig,
    samples: Samples,
    *,
    depths: int,
    method: Literal["minmax", "percentile", "entropy", "mse"],
    number_format: NumberFormat,
    progress: Callable[[int], None],
) -> Recipe:
    """Find the range of every activation at every depth, over prefill and decode.

    Args:
        engine: of the float bundle.
        depths: loops to run.
        progress: called with tokens just fed; each is fed once, and twice for methods that need histograms.

    Raises:
        CalibrationError: too little data, or activations that are not finite.
    """
    check_samples(samples, method)
    model, described = make_model(), architecture(config)
    feeds = {point.name: list(point.feeds) for point in find_points(model, described)}
    low, high = _extremes(_Observer(engine, model, described, depths), samples, progress)
    tops = {name: np.maximum(np.abs(low[name]), np.abs(high[name])) for name in feeds}
    _check_reach(tops)
    limits = tops
    if method != "minmax":
        model = make_model()
        counts = _histograms(_Observer(engine, model, described, depths), tops, samples, progress)
        limits = {name: _limits(counts[name], top, method, number_format) for name, top in tops.items()}
    return Recipe(
        model=model_id(config),
        precision=number_format.name,  # type: ignore[arg-type]  # only formats with activations come here
        method=method,
        depths=depths,
        samples=len(samples.sequences),
        tokens=samples.tokens,
        data=samples.origin,
        activations={
            name: ActivationRange(
                feeds=feeds[name],
                low=low[name].tolist(),
                high=high[name].tolist(),
                limit=_usable(limits[name]).tolist(),
            )
            for name in feeds
        },
    )


class ObservedGraph:
    """A graph with statistics, runnable like the engine's own (`engines.generation.Graph`)."""

    def __init__(self, graph: Graph, names: Sequence[str], saw: Callable[[dict[str, Array]], None]) -> None:
        self._graph, self._names, self._saw = graph, list(names), saw
        self.loops: int | Literal["dynamic"] = "dynamic"

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run once, handing on what the statistics are."""
        results = self._graph.run(inputs, [*outputs, *self._names])
        self._saw(dict(zip(self._names, results[len(outputs) :])))
        return results[: len(outputs)]


class _Observer:
    """Feeds samples to a model with statistics in it.

    Each sequence runs to the full depth, and once more to a shallower one, in turn: what comes out of
    fewer loops is what the coda must be ready for, and it need not look like what comes out of all.
    """

    def __init__(self, engine: OnnxRuntimeEngine, model: ir.Model, described: Architecture, depths: int) -> None:
        self.engine, self.model, self.described, self.depths = engine, model, described, depths

    def run(
        self,
        names: Sequence[str],
        samples: Samples,
        saw: Callable[[dict[str, Array]], None],
        progress: Callable[[int], None],
    ) -> None:
        file = GraphFile(file=self.engine.manifest.graphs[0].file, loops="dynamic")
        graph = self.engine.load_model(ir.to_proto(self.model).SerializeToString(), file)
        observed = ObservedGraph(graph, names, saw)
        shallow = [1 << power for power in range(self.depths.bit_length()) if 1 << power < self.depths]
        for index, sequence in enumerate(samples.sequences):
            feed(observed, self.engine, sequence, self.depths)
            if shallow:
                feed(observed, self.engine, sequence, shallow[index % len(shallow)])
            progress(len(sequence))


def feed(graph: Graph, engine: OnnxRuntimeEngine, sequence: NDArray[np.int64], depths: int) -> NDArray[np.float32]:
    """A prefill, then the last tokens one at a time onto its cache; returns the last logits, [vocab].

    Raises:
        CalibrationError: they are not finite.
    """
    decoded = min(_DECODED, len(sequence) // 2)
    prompts = read_prompts(sequence[: len(sequence) - decoded], None, engine.manifest.limits)
    running = RunningBatch(graph, engine.manifest, np.array([depths]), capacity=len(sequence))
    running.extend(prompts)
    for token in sequence[len(sequence) - decoded :]:
        running.step([int(token)])
    if not np.isfinite(running.logits).all():
        raise CalibrationError(
            "the model's own logits are not finite (NaN) on the calibration data; check the checkpoint"
        )
    return running.logits[0]


def _extremes(
    observer: _Observer, samples: Samples, progress: Callable[[int], None]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Least and greatest value of each activation, by depth."""
    outputs = add_extremes(observer.model, observer.described)
    low: dict[str, NDArray[np.float32]] = {}
    high: dict[str, NDArray[np.float32]] = {}

    def saw(found: dict[str, Array]) -> None:
        finite = {name: np.isfinite(found[a]) & np.isfinite(found[b]) for name, (a, b) in outputs.items()}
        _check_finite(finite, observer.described)
        for name, (least, greatest) in outputs.items():
            bottom, top = np.array(found[least], ndmin=1), np.array(found[greatest], ndmin=1)
            # the first run is as deep as any
            np.minimum(low.setdefault(name, bottom)[: len(bottom)], bottom, out=low[name][: len(bottom)])
            np.maximum(high.setdefault(name, top)[: len(top)], top, out=high[name][: len(top)])

    observer.run([name for pair in outputs.values() for name in pair], samples, saw, progress)
    return low, high


def _check_finite(finite: Mapping[str, Array], described: Architecture) -> None:
    """Name the first activation that is not finite, by depth and then in graph order; bool [] or [depths] of each."""
    stages = {name: described.stages.index(described.stage_of[name.removesuffix(".input")]) for name in finite}
    bad = [(stages[name], int(np.argmin(values)), name) for name, values in finite.items() if not np.all(values)]
    if bad:
        _, depth, name = min(bad, key=lambda place: place[:2])
        raise CalibrationError(
            f"activation {name} is not finite (NaN or infinite) at depth {depth + 1} "
            "on the calibration data; check the checkpoint"
        )


def _check_reach(tops: Mapping[str, Array]) -> None:
    for name, top in tops.items():
        if (top > LARGEST_LIMIT).any():
            raise CalibrationError(
                f"activation {name} reaches {float(top.max()):.3g}, beyond what a scale can stand for, "
                "on the calibration data; check the checkpoint"
            )


def _histograms(
    observer: _Observer, tops: dict[str, NDArray[np.float32]], samples: Samples, progress: Callable[[int], None]
) -> dict[str, NDArray[np.int64]]:
    """Counts of |x| up to its top, [depths, BINS]."""
    outputs = add_histograms(observer.model, observer.described, {name: _usable(top) for name, top in tops.items()})
    counts = {name: np.zeros((len(top), BINS), np.int64) for name, top in tops.items()}

    def saw(found: dict[str, Array]) -> None:
        for name, output in outputs.items():
            seen = np.atleast_2d(found[output])
            counts[name][: len(seen)] += seen

    observer.run(list(outputs.values()), samples, saw, progress)
    return counts


def _limits(
    counts: NDArray[np.int64], tops: NDArray[np.float32], method: str, number_format: NumberFormat
) -> NDArray[np.float32]:
    return np.array(
        [limit_of(row, float(top), method, number_format) for row, top in zip(counts, _usable(tops))], np.float32
    )


def _usable(limits: NDArray[np.float32]) -> NDArray[np.float32]:
    """An activation that is always zero may have any range; one that is nearly so needs a scale fp32 can invert."""
    return np.where(limits == 0, np.float32(1), limits.clip(1e-20)).astype(np.float32)
