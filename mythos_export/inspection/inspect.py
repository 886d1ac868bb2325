"""Everything a bundle says of itself, as one object."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from mythos_export.bundle import (
    Bundle,
    BundleError,
    CachePart,
    Limits,
    ParitySummary,
    QuantizationRecord,
    TensorSpec,
    TextRecord,
)
from mythos_export.described import architecture_of, has_config
from mythos_export.inspection.contents import Contents, data_bytes, read_contents
from mythos_export.inspection.receipts import BuiltEngines, built_engines
from mythos_export.planning.cache import cache_size
from mythos_export.weights.tensors import BITS, OTHER, Place, StoredTensor
from reference_model.architecture import Architecture

__all__ = ["Cache", "Graph", "Group", "Inspection", "Stage", "inspect"]


class Group(BaseModel):
    """Tensors of one kind in a stage."""

    group: str
    tensors: int
    parameters: int | None  # numbers of the checkpoint; None where the bundle has no config
    bytes: int
    dtypes: dict[str, int]  # type -> bytes stored in it


class Stage(BaseModel):
    """One part of the model."""

    stage: str  # embedding, prelude, loop, coda, head; other
    parameters: int | None
    bytes: int
    groups: list[Group]


class Graph(BaseModel):
    """One ONNX file."""

    file: str
    loops: int | Literal["dynamic"]
    nodes: int
    operators: dict[str, dict[str, int]]  # stage -> operator -> nodes; those of a Loop's body are in `loop`
    opsets: dict[str, int]


class Cache(BaseModel):
    """What a token's rows take."""

    parts: list[CachePart]
    bytes_per_token: int  # at no depth: prelude and coda
    bytes_per_token_and_loop: int


class Inspection(BaseModel):
    """A bundle."""

    name: str
    target: str
    precision: str
    loops: str
    parameters: int
    total_bytes: int  # of all files
    weight_bytes: int  # of all tensors in data files
    file_bytes: int  # of these files: the tensors, and what is left empty between them
    files: dict[str, int]
    stages: list[Stage]
    graphs: list[Graph]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    cache: Cache
    limits: Limits
    session: dict[str, str]
    minimum_runtime: str | None
    text: TextRecord | None
    spectral_radius: float
    source: dict[str, Any]
    tool: dict[str, str]
    created: str
    command: list[str]
    quantization: QuantizationRecord | None
    parity: ParitySummary | None
    engines: list[BuiltEngines]


def inspect(bundle: Bundle) -> Inspection:
    """Look into an opened bundle.

    Raises:
        BundleError: a graph, the config or the cache of the manifest is damaged.
    """
    manifest, model = bundle.manifest, architecture_of(bundle) if has_config(bundle) else None
    contents = read_contents(bundle, model)
    stages = _stages(contents.tensors, model)
    return Inspection(
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        loops=manifest.loops,
        parameters=manifest.parameters,
        total_bytes=bundle.total_bytes,
        weight_bytes=sum(stage.bytes for stage in stages),
        file_bytes=data_bytes(bundle),
        files={name: entry.size for name, entry in sorted(manifest.files.items())},
        stages=stages,
        graphs=_graphs(bundle, contents),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        cache=_cache(bundle),
        limits=manifest.limits,
        session=manifest.session,
        minimum_runtime=manifest.minimum_runtime,
        text=manifest.text,
        spectral_radius=manifest.spectral_radius,
        source=manifest.source,
        tool=manifest.tool,
        created=manifest.created,
        command=manifest.command,
        quantization=manifest.quantization,
        parity=manifest.parity,
        engines=built_engines(bundle),
    )


def _parameters(model: Architecture | None) -> dict[Place, int] | None:
    """Numbers of the checkpoint, by place."""
    if model is None:
        return None
    counts = defaultdict[Place, int](int)
    for parameter in model.parameters:
        counts[Place(parameter.stage, parameter.part)] += parameter.size
    return dict(counts)


def _stages(tensors: Iterable[StoredTensor], model: Architecture | None) -> list[Stage]:
    by_stage: dict[str, dict[str, list[StoredTensor]]] = {}
    for tensor in tensors:
        by_stage.setdefault(tensor.place.stage, {}).setdefault(tensor.place.part, []).append(tensor)
    found, parameters = [], _parameters(model)
    for stage in (*(() if model is None else model.stages), OTHER.stage):
        groups = [_group(stage, name, members, parameters) for name, members in by_stage.get(stage, {}).items()]
        if groups:
            known = [group.parameters for group in groups if group.parameters is not None]
            total = sum(known) if parameters is not None else None
            size = sum(group.bytes for group in groups)
            largest_first = sorted(groups, key=lambda group: -group.bytes)
            found.append(Stage(stage=stage, parameters=total, bytes=size, groups=largest_first))
    return found


def _group(stage: str, name: str, members: list[StoredTensor], parameters: Mapping[Place, int] | None) -> Group:
    dtypes = Counter[str]()
    for tensor in members:
        dtypes[tensor.dtype] += tensor.nbytes
    return Group(
        group=name,
        tensors=len(members),
        parameters=None if parameters is None else parameters.get(Place(stage, name), 0),
        bytes=dtypes.total(),
        dtypes=dict(dtypes.most_common()),
    )


def _graphs(bundle: Bundle, contents: Contents) -> list[Graph]:
    found = []
    for graph in bundle.manifest.graphs:
        operators = contents.operators[graph.file]
        found.append(
            Graph(
                file=graph.file,
                loops=graph.loops,
                nodes=sum(counts.total() for counts in operators.values()),
                operators={stage: dict(counts.most_common()) for stage, counts in operators.items()},
                opsets=contents.opsets[graph.file],
            )
        )
    return found


def _cache(bundle: Bundle) -> Cache:
    parts = bundle.manifest.cache
    for part in parts:
        if part.dtype not in BITS:
            raise BundleError(
                f"{bundle.path}: a cache of {part.dtype[:40]!r} is unknown to this release; upgrade mythos-export"
            )
    size = cache_size(parts)
    return Cache(parts=parts, bytes_per_token=size.per_token, bytes_per_token_and_loop=size.per_token_and_loop)
