"""The weights and operators of an opened bundle, each with the stage it belongs to."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from mythos_export.bundle import Bundle, BundleError, GraphFile
from mythos_export.inspection.onnx_file import Initializer, Node, OnnxFile, read_onnx
from mythos_export.weights.names import place_of
from mythos_export.weights.tensors import BITS, OTHER, StoredTensor
from reference_model.architecture import EMBEDDING, HEAD, LOOP, Architecture

__all__ = ["Contents", "data_bytes", "read_contents"]

_DATA = ".data"  # how the name of a file of weights ends
_NODE_STAGES = {
    "embed": EMBEDDING,
    "recurrent": LOOP,
    "loop": LOOP,
    "step": LOOP,
    "unrolled": LOOP,
    "head": HEAD,
}
_CAST = ".in_"  # behind the name of a weight, in that of the node that casts it
_NUMBERED = re.compile(r"^(loop)[0-9]+$")  # a copy of the body in an unrolled graph


class Contents(NamedTuple):
    """What a bundle's graphs hold."""

    tensors: list[StoredTensor]  # in data files; graphs share them, so each is here once
    operators: dict[str, dict[str, Counter[str]]]  # graph file -> stage -> operator -> nodes
    opsets: dict[str, dict[str, int]]  # graph file -> domain -> version


def read_contents(bundle: Bundle, model: Architecture | None = None) -> Contents:
    """Read every graph of a bundle.

    Args:
        model: what the bundle is made of; where that is not known, only bodies of loops have a stage.

    Raises:
        BundleError: a graph is damaged, or its weights do not lie where it says.
    """
    found = Contents([], {}, {})
    tensors: dict[str, StoredTensor] = {}
    for graph in bundle.manifest.graphs:
        file = _read(bundle, graph)
        for initializer in file.initializers:
            if initializer.external is not None:
                tensors.setdefault(initializer.name, _stored(bundle, graph, initializer, model))
        found.operators[graph.file] = _by_stage(file.nodes, model)
        found.opsets[graph.file] = file.opsets
    found.tensors.extend(tensors.values())
    return found


def data_bytes(bundle: Bundle) -> int:
    """Size of what holds the weights: their bytes, and what is left empty between them."""
    return sum(entry.size for name, entry in bundle.manifest.files.items() if name.endswith(_DATA))


def _read(bundle: Bundle, graph: GraphFile) -> OnnxFile:
    path = bundle.file(graph.file)
    try:
        return read_onnx(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise BundleError(f"{path}: not an ONNX graph ({error}); export it again") from error


def _stored(bundle: Bundle, graph: GraphFile, initializer: Initializer, model: Architecture | None) -> StoredTensor:
    """An initializer in a data file, checked against the file's size."""
    path, name = bundle.path / graph.file, initializer.name[:120]
    if initializer.dtype not in BITS:
        raise BundleError(f"{path}: {name}: {initializer.dtype} is unknown to this release; upgrade mythos-export")
    place = OTHER if model is None else place_of(initializer.name, model)
    tensor = StoredTensor(initializer.name, initializer.shape, initializer.dtype, place)
    lies = initializer.external or {}
    entry = bundle.manifest.files.get(lies.get("location", ""))
    offset, length = (_number(lies.get(key, "0")) for key in ("offset", "length"))
    if entry is None or offset < 0 or length != tensor.nbytes or offset + length > entry.size:
        raise BundleError(f"{path}: {name}: its data does not lie where the graph says; export the bundle again")
    return tensor


def _number(text: str) -> int:
    """-1 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1


def _by_stage(nodes: list[Node], model: Architecture | None) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(_stage_of_node(node, model), Counter())[node.op_type] += 1
    stages = (LOOP,) if model is None else model.stages
    return {stage: counts[stage] for stage in (*stages, OTHER.stage) if stage in counts}


def _stage_of_node(node: Node, model: Architecture | None) -> str:
    if node.depth:
        return LOOP
    if model is None:
        return OTHER.stage
    first, _, rest = node.name.partition(".")
    if first in ("past", "new"):  # a cast of the cache of a stage
        first = rest.partition(".")[0]
    if first in model.stages:
        return first
    stage = _NODE_STAGES.get(_NUMBERED.sub(r"\1", first))
    return stage or place_of(node.name.rpartition(_CAST)[0], model).stage
