"""What a graph takes and gives, by its own word: names, types and sizes, as ONNX Runtime and so Triton sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

from engines.errors import EngineError, one_line
from engines.onnxruntime import import_onnxruntime
from mythos_export.bundle import Bundle, GraphFile

__all__ = ["Signature", "Tensor", "chosen_graph", "paired", "read_signature"]

_TYPES = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
}
_SILENT = 4


class Tensor(NamedTuple):
    """One input or output."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]  # None: decided by the call

    @property
    def shown(self) -> str:
        """As messages say it."""
        return f"{self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


class Signature(NamedTuple):
    """All inputs and outputs of a graph, in its order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def chosen_graph(bundle: Bundle) -> GraphFile:
    """The graph that answers the most: the one with the Loop, else the deepest."""
    return max(bundle.manifest.graphs, key=lambda graph: float("inf") if graph.loops == "dynamic" else graph.loops)


def read_signature(bundle: Bundle, graph: GraphFile) -> Signature:
    """What a graph says of itself, held against the manifest.

    An unrolled graph has its own depth where the manifest has a symbol; in all else they must agree.

    Raises:
        EngineError: it cannot be loaded, or is not what the manifest says.
    """
    path = bundle.file(graph.file)
    session = _session(str(path))
    found = Signature(_tensors(session.get_inputs()), _tensors(session.get_outputs()))
    for kind, specs, tensors in (
        ("input", bundle.manifest.inputs, found.inputs),
        ("output", bundle.manifest.outputs, found.outputs),
    ):
        for said, own in paired(kind, specs, tensors, str(path)):
            if own.dtype != said.dtype or not _same_sizes(said.shape, own.shape):
                raise EngineError(
                    f"{path}: {kind} {own.name} is {own.shown}, but the manifest says "
                    f"{said.dtype} {said.shape}; export the bundle again"
                )
    return found


def paired(kind: str, said: list[Any], tensors: tuple[Tensor, ...], where: str) -> list[tuple[Any, Tensor]]:
    """What is said of each tensor, and the tensor.

    Raises:
        EngineError: one is missing, named twice, or not the graph's.
    """
    by_name = {each.name: each for each in said}
    differing = by_name.keys() ^ {tensor.name for tensor in tensors}
    if differing or len(by_name) != len(said) or len(said) != len(tensors):
        names = ", ".join(sorted(differing)) or "what is named twice"
        raise EngineError(f"{where}: its {kind}s differ in {names[:300]}")
    return [(by_name[tensor.name], tensor) for tensor in tensors]


def _same_sizes(said: list[int | str], own: tuple[int | None, ...]) -> bool:
    return len(said) == len(own) and all(isinstance(wanted, str) or wanted == found for wanted, found in zip(said, own))


def _tensors(nodes: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(node.name, _TYPES.get(node.type, node.type), tuple(map(_size, node.shape))) for node in nodes)


def _size(size: Any) -> int | None:
    return size if isinstance(size, int) and size >= 0 else None


def _session(path: str) -> Any:
    """As cheap as one can be had: nothing is optimised, nothing packed."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error
