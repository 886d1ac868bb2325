"""The graph itself as Triton's Python backend serves it: every input and output by its name, the cache in and out.

For clients that keep their caches themselves. Where Triton has its ONNX Runtime backend, the same model is served by
that; this one is for servers that have only Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.generation import Graph
from engines.onnxruntime import OnnxRuntimeEngine
from engines.triton.backend.dlpack import BFloat16Tensor, read_bfloat16
from engines.triton.backend.tensor_checks import check_tensors
from engines.triton.repository.signature import chosen_graph
from engines.triton.settings import read_settings
from mythos_export.bundle import Bundle

__all__ = ["TritonPythonModel"]

_TIMES_DEPTH = 4  # a request may ask for this many times the model's own loops, unless max_loops says otherwise


class TritonPythonModel:
    """Answers each request by one call of the graph; the class name and its methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside `model.py`.

        Raises:
            EngineError, BundleError: it cannot be served here; Triton reports the message.
        """
        settings = read_settings(json.loads(args["model_config"]))
        bundle = Bundle.open(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self._manifest = bundle.manifest
        self._max_loops = settings.get("max_loops", _TIMES_DEPTH * self._manifest.limits.max_loop_iters)
        engine = OnnxRuntimeEngine(bundle, threads=settings.get("threads"), spinning=False)
        self._graph: Graph = engine.load_graph(chosen_graph(bundle))
        self._bfloat16 = {
            spec.name for spec in (*self._manifest.inputs, *self._manifest.outputs) if spec.dtype == "bfloat16"
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; what is wrong with one is that one's error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            given = {spec.name: self._read(request, spec.name) for spec in self._manifest.inputs}
            inputs = check_tensors(given, self._manifest, graph_loops=self._graph.loops, max_loops=self._max_loops)
        except EngineError as error:
            return _error(error, pb_utils.TritonError.INVALID_ARG)
        wanted = request.requested_output_names()
        outputs = [spec.name for spec in self._manifest.outputs if spec.name in wanted]
        try:
            results = self._graph.run(inputs, outputs)
        except EngineError as error:
            return _error(error, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([self._tensor(*pair) for pair in zip(outputs, results)])

    def _read(self, request: Any, name: str) -> NDArray[Any] | None:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        return read_bfloat16(tensor.to_dlpack()) if name in self._bfloat16 else tensor.as_numpy()

    def _tensor(self, name: str, array: NDArray[Any]) -> Any:
        if name in self._bfloat16:
            return pb_utils.Tensor.from_dlpack(name, BFloat16Tensor(array))
        return pb_utils.Tensor(name, array)


def _error(error: EngineError, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
