"""Bundles on ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.cache import BFLOAT16
from engines.engine import Engine
from engines.errors import EngineError, one_line
from engines.generation import Graph
from engines.linked_bundle import plain_folder
from engines.prompts import check_count
from mythos_export.bundle import Bundle, GraphFile

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MAX_THREADS = 1024
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_SILENT = 4  # errors arrive as exceptions; ONNX Runtime would print them as well

_SAVED_WEIGHTS = {"file_name": "weights", "min_size_in_bytes": "1024"}

# Session configuration a manifest may set: how to compute. Others name files and folders, and a
# bundle may come from anywhere.
_CONFIG = frozenset(
    {
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "session.disable_aot_function_inlining",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_quant_qdq_cleanup",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
    }
)


class OnnxRuntimeEngine(Engine):
    """A bundle's ONNX graphs in ONNX Runtime sessions, each created when first needed."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        providers: str | Sequence[str] = "cpu",
        threads: int | None = None,
        spinning: bool = True,
    ) -> None:
        """Prepare; no graph is loaded yet.

        Args:
            providers: execution providers, best first; "cpu" and "cuda" for short.
            threads: of one operator; ONNX Runtime's choice (one per core) if None.
            spinning: idle threads wait busily: quick when alone, harmful beside other sessions.

        Raises:
            EngineError: onnxruntime, or a provider, is not installed here.
        """
        super().__init__(bundle)
        self._ort = import_onnxruntime()
        _check_version(self._ort, bundle)
        self._providers = _checked_providers(self._ort, providers)
        self._threads = None if threads is None else check_count("threads", threads)
        if threads is not None and threads > _MAX_THREADS:
            raise EngineError(f"threads is {threads}; it must lie in 1..{_MAX_THREADS}")
        self._spinning = spinning

    def load_graph(self, file: GraphFile) -> Graph:
        """Create a session for one graph.

        Raises:
            EngineError: it cannot be loaded, or is not what the manifest says.
        """
        self.bundle.check_unchanged()  # the graph, and the weights that ONNX Runtime opens by itself
        path = self.bundle.file(file.file)
        session = self._session(str(path), path, self._session_options())
        self._check_signature(session, file)
        return _OrtGraph(self._ort, session, file)

    def load_model(self, content: bytes, file: GraphFile) -> Graph:
        """A graph made from this bundle's `file` (with more outputs, say) over the bundle's own weights.

        Raises:
            EngineError: it cannot be loaded.
        """
        options, disabled = self._session_options()
        with plain_folder(self.bundle) as folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            session = self._session(content, self.bundle.file(file.file), (options, disabled))
        return _OrtGraph(self._ort, session, file)

    def save_optimized(self, file: GraphFile, path: Path) -> None:
        """Write a graph as sessions run it: after ONNX Runtime's own optimisers, its weights in a file beside it.

        Raises:
            EngineError: it cannot be loaded.
        """
        options, disabled = self._session_options()
        options.optimized_model_filepath = str(path)
        for key, value in _SAVED_WEIGHTS.items():
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        source = self.bundle.file(file.file)
        self._session(str(source), source, (options, disabled))

    def _session(
        self, model: str | bytes, path: Path, options: tuple[onnxruntime.SessionOptions, list[str] | None]
    ) -> onnxruntime.InferenceSession:
        settings, disabled = options
        try:
            session = self._ort.InferenceSession(
                model, settings, providers=self._providers, disabled_optimizers=disabled
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base of their own
            raise EngineError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error
        if self._providers[0] not in session.get_providers():
            raise EngineError(f"{self._providers[0]} could not start on this machine (driver or libraries missing?)")
        return session

    def _session_options(self) -> tuple[onnxruntime.SessionOptions, list[str] | None]:
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        settings = dict(self.manifest.session)
        disabled = [name.strip() for name in settings.pop("disabled_optimizers", "").split(",") if name.strip()]
        if not self._spinning:
            settings["session.intra_op.allow_spinning"] = "0"
        for key, value in settings.items():
            if key not in _CONFIG:
                raise EngineError(
                    f"{self.bundle.path}: this release does not know session option {key!r}; upgrade mythos-export"
                )
            options.add_session_config_entry(key, value)
        return options, disabled or None

    def _check_signature(self, session: onnxruntime.InferenceSession, file: GraphFile) -> None:
        for kind, specs, nodes in (
            ("inputs", self.manifest.inputs, session.get_inputs()),
            ("outputs", self.manifest.outputs, session.get_outputs()),
        ):
            differing = {spec.name for spec in specs} ^ {node.name for node in nodes}
            if differing:
                names = ", ".join(sorted(differing))
                raise EngineError(f"{self.bundle.path / file.file}: its {kind} differ from the manifest's in {names}")


class _OrtGraph:
    """One session."""

    def __init__(self, ort: Any, session: onnxruntime.InferenceSession, file: GraphFile) -> None:
        self._ort, self._session, self._name = ort, session, file.file
        self._loops = file.loops
        nodes = (*session.get_inputs(), *session.get_outputs())
        self._bfloat16 = frozenset(node.name for node in nodes if node.type == "tensor(bfloat16)")

    @property
    def loops(self) -> int | Literal["dynamic"]:
        return self._loops

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        try:
            if self._bfloat16:
                return self._run_values(inputs, outputs)
            return self._session.run(outputs, inputs)
        except Exception as error:  # as above
            raise EngineError(f"{self._name}: ONNX Runtime failed: {one_line(error)}") from error

    def _run_values(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """As `run`, for tensors that numpy has no type for; they are passed by their bit patterns."""
        values = {name: self._wrap(name, array) for name, array in inputs.items()}
        results = self._session.run_with_ort_values(outputs, values)
        return [_bits(value) if name in self._bfloat16 else value.numpy() for name, value in zip(outputs, results)]

    def _wrap(self, name: str, array: NDArray[Any]) -> onnxruntime.OrtValue:
        if name in self._bfloat16:
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        return self._ort.OrtValue.ortvalue_from_numpy(array)


def _bits(value: onnxruntime.OrtValue) -> NDArray[np.uint16]:
    """A copy of a bfloat16 tensor in CPU memory, as bit patterns."""
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, BFLOAT16)
    memory = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.ctypeslib.as_array(memory).reshape(shape).copy()


def import_onnxruntime() -> Any:
    """The module; it is imported nowhere else.

    Raises:
        EngineError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # release 1.32 reports what it is used for to its maker
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            'this bundle needs onnxruntime: pip install "mythos-export[cpu]" (or "mythos-export[gpu]" for CUDA)'
        ) from error
    return onnxruntime


def _check_version(ort: Any, bundle: Bundle) -> None:
    """An older release would refuse the graph too, in words that help nobody."""
    needed = bundle.manifest.minimum_runtime
    if needed is not None and _numbers(ort.__version__) < _numbers(needed):
        raise EngineError(
            f"{bundle.path}: needs onnxruntime {needed} or later, and this is {ort.__version__}; "
            f'run: pip install "onnxruntime>={needed}", or export it with --minimum-runtime {ort.__version__}'
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _checked_providers(ort: Any, providers: str | Sequence[str]) -> list[str]:
    names = [providers] if isinstance(providers, str) else list(providers)
    names = [_PROVIDERS.get(name, name) for name in names]
    if _PROVIDERS["cpu"] not in names:
        names.append(_PROVIDERS["cpu"])  # for operators that the others lack
    available = ort.get_available_providers()
    for name in names:
        if name not in available:
            hint = '; pip install "mythos-export[gpu]"' if name == _PROVIDERS["cuda"] else ""
            raise EngineError(f"{name} is not in this onnxruntime (it has {', '.join(available)}){hint}")
    return names
