"""Ranges against those of another calibrator: ONNX Runtime's own, on the same graph unrolled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

from calibration.calibrate import calibrate
from calibration.data import Samples
from calibration.statistics import Point, add_extremes, find_points
from engines.generation import Graph
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, GraphFile
from mythos_export.number_formats import FORMATS
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture

LOOPS = 4  # as in conftest.py

MakeModel = Callable[[], ir.Model]
Arrays = dict[str, NDArray[Any]]
Ranges = dict[str, NDArray[np.float32]]  # by point: least and greatest, [depths or 1, 2]


class Calls(CalibrationDataReader):
    """The inputs of recorded calls, one after another."""

    def __init__(self, calls: list[Arrays]) -> None:
        self._calls = iter(calls)

    def get_next(self) -> Arrays | None:  # type: ignore[override]
        return next(self._calls, None)


class Theirs(MinMaxCalibrater):
    """ONNX Runtime's calibrator, made to look at chosen values; how it looks, and what it makes of it, is its own."""

    def __init__(self, model: Path, names: set[str]) -> None:
        super().__init__(model, augmented_model_path=str(model.with_suffix(".augmented.onnx")))
        self.names = names
        self.augment_graph()
        self.create_inference_session()

    def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
        candidates, infos = super().select_tensors_to_calibrate(model)
        assert self.names <= candidates, self.names - candidates
        return self.names, infos


@pytest.fixture(scope="module")
def unrolled(config: MythosConfig, make_bundle: Callable[..., Bundle]) -> Path:
    return make_bundle(config, loops="1,2,4").path


@pytest.fixture(scope="module")
def their_ranges(unrolled: Path, make_model: MakeModel, config: MythosConfig) -> Callable[[list[Arrays]], Ranges]:
    """By ONNX Runtime, from any calls: an unrolled graph has a value per depth, and it a range for each."""
    points = find_points(make_model(), architecture(config))

    def ranges(calls: list[Arrays]) -> Ranges:
        by_depth = defaultdict(list)
        for call in calls:
            by_depth[int(call["n_loops"][0])].append(call)
        found: Ranges = {
            point.name: np.array([[np.inf, -np.inf]] * (LOOPS if point.in_loop else 1)) for point in points
        }
        for loops, group in by_depth.items():
            copies = {copy for point in points for depth in range(loops) for copy in values_of(point, depth)}
            calibrator = Theirs(unrolled / f"model.loops{loops}.onnx", copies)
            calibrator.collect_data(Calls(group))
            seen = calibrator.compute_data()
            for point in points:
                for depth in range(loops if point.in_loop else 1):
                    for copy in values_of(point, depth):  # an expert that got no token has no range to speak of
                        low, high = found[point.name][depth]
                        low, high = min(low, seen[copy].lowest.item()), max(high, seen[copy].highest.item())
                        found[point.name][depth] = low, high
        return found

    return ranges


def values_of(point: Point, depth: int) -> list[str]:
    """Names in an unrolled graph."""
    return [f"loop{depth}.{value.name}" if point.in_loop else str(value.name) for value in point.values]


def test_extremes_are_theirs(
    their_ranges: Callable[[list[Arrays]], Ranges],
    make_model: MakeModel,
    observe: Any,
    recorded: Any,
    config: MythosConfig,
) -> None:
    theirs = their_ranges(recorded.fed)
    model = make_model()
    outputs = add_extremes(model, architecture(config))
    calls = observe(model, [name for pair in outputs.values() for name in pair])
    assert outputs.keys() == theirs.keys()
    for point, (low, high) in outputs.items():
        least = np.min([np.atleast_1d(call[low]) for call in calls], axis=0)
        greatest = np.max([np.atleast_1d(call[high]) for call in calls], axis=0)
        np.testing.assert_allclose(np.stack((least, greatest), axis=-1), theirs[point], rtol=1e-6, err_msg=point)


class RecordingEngine(OnnxRuntimeEngine):
    """Remembers what the graphs that calibration makes are fed."""

    def __init__(self, bundle: Bundle, recorder: Callable[[Graph], Any]) -> None:
        super().__init__(bundle, threads=1, spinning=False)
        self.recorder, self.recorders = recorder, []

    def load_model(self, content: bytes, file: GraphFile) -> Graph:
        self.recorders.append(self.recorder(super().load_model(content, file)))
        return self.recorders[-1]


def test_so_is_a_whole_calibration(
    their_ranges: Callable[[list[Arrays]], Ranges],
    bundle: Bundle,
    make_model: MakeModel,
    config: MythosConfig,
    recorded: Any,
) -> None:
    """Prefill and decode, at all loops and at fewer."""
    engine = RecordingEngine(bundle, type(recorded))
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (3, 14))
    recipe = calibrate(
        engine,
        make_model,
        config,
        Samples(tuple(ids), "random tokens"),
        depths=LOOPS,
        method="minmax",
        number_format=FORMATS["int8"],
        progress=lambda done: None,
    )
    (recorder,) = engine.recorders
    assert {(int(call["n_loops"][0]), call["input_ids"].shape[1]) for call in recorder.fed} == {
        (loops, tokens) for loops in (1, 2, 4) for tokens in (7, 1)
    }
    theirs = their_ranges(recorder.fed)
    assert recipe.activations.keys() == theirs.keys()
    for name, found in recipe.activations.items():
        np.testing.assert_allclose(np.stack((found.low, found.high), axis=-1), theirs[name], rtol=1e-6, err_msg=name)
        assert found.limit == pytest.approx(np.abs(theirs[name]).max(axis=1).tolist(), rel=1e-6)
        assert found.shared_limit == pytest.approx(np.abs(theirs[name]).max(), rel=1e-6)
