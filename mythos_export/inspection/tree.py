"""An inspection as a tree for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from mythos_export.bundle import TensorSpec, TextRecord
from mythos_export.commands.output import size
from mythos_export.inspection.inspect import Graph, Group, Inspection, Stage
from mythos_export.inspection.receipts import BuiltEngines

__all__ = ["tree"]

_MOST_OPERATORS = 6  # of a stage; the others are counted together
# What a reader looks for, before what there is most of.
_TELLING = (
    *("Loop", "com.microsoft.QMoE", "com.microsoft.MatMulNBits", "MatMul", "Gemm"),
    *("QuantizeLinear", "DequantizeLinear", "Softmax", "TopK"),
)
_STATE = "bold"
_BAD = "bold red"


def tree(found: Inspection) -> Tree:
    """What the inspection says, most asked for first."""
    root = Tree(_line(f"{found.name}: {found.target} {found.precision}, loops {found.loops}", style=_STATE))
    _weights(root, found)
    for graph in found.graphs:
        _graph(root, graph)
    _signature(root, found)
    _running(root, found)
    _origin(root, found)
    for engines in found.engines:
        _engines(root, engines)
    return root


def _line(text: str, style: str = "") -> Text:
    """One label; names come from files, and must neither break the line nor reach the terminal as escapes."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text), style=style)


def _weights(root: Tree, found: Inspection) -> None:
    title = (
        f"weights: {found.parameters:,} parameters, {size(found.weight_bytes)}, {found.file_bytes:,} bytes in the file"
    )
    branch = root.add(_line(title, style=_STATE))
    for stage in found.stages:
        _stage(branch, stage)


def _stage(branch: Tree, stage: Stage) -> None:
    named = "loop (one block, run at every depth)" if stage.stage == "loop" else stage.stage
    of_it = branch.add(_line(f"{named}: {_count(stage.parameters)}{size(stage.bytes)}"))
    for group in stage.groups:
        of_it.add(_line(f"{group.group}: {_count(group.parameters)}{size(group.bytes)}, {_dtypes(group)}"))


def _count(parameters: int | None) -> str:
    """Parameters, and nothing where none are of this kind (the head's weight is the embedding's)."""
    return f"{parameters:,} parameters, " if parameters else ""


def _dtypes(group: Group) -> str:
    """The types, and where scales stand beside them, how much each takes."""
    if len(group.dtypes) == 1:
        return next(iter(group.dtypes))
    return " + ".join(f"{dtype} {size(count)}" for dtype, count in group.dtypes.items())


def _graph(root: Tree, graph: Graph) -> None:
    kind = "a Loop, any depth" if graph.loops == "dynamic" else f"unrolled to {graph.loops} loops"
    opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in graph.opsets.items())
    branch = root.add(_line(f"{graph.file}: {kind}, {graph.nodes:,} nodes, {opsets}", style=_STATE))
    for stage, operators in graph.operators.items():
        branch.add(_line(f"{stage}: {sum(operators.values()):,} nodes: {_operators(operators)}"))


def _operators(counts: Mapping[str, int]) -> str:
    by_interest = sorted(counts.items(), key=lambda each: each[0] not in _TELLING)  # else in order of number
    most = by_interest[:_MOST_OPERATORS]
    rest = sum(counts.values()) - sum(count for _, count in most)
    shown = [f"{op} {count}" for op, count in most]
    return ", ".join([*shown, f"others {rest}"] if rest else shown)


def _signature(root: Tree, found: Inspection) -> None:
    branch = root.add(_line("signature", style=_STATE))
    for title, specs in (("inputs", found.inputs), ("outputs", found.outputs)):
        of_it = branch.add(_line(title))
        for spec in specs:
            of_it.add(_line(_spec(spec)))


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _running(root: Tree, found: Inspection) -> None:
    cache, limits = found.cache, found.limits
    fixed, looped = size(cache.bytes_per_token), size(cache.bytes_per_token_and_loop)
    branch = root.add(_line("running", style=_STATE))
    branch.add(_line(f"cache: {fixed} a token, and {looped} a token and loop"))
    branch.add(
        _line(
            f"limits: {limits.max_seq_len:,} tokens, vocabulary {limits.vocab_size:,}, "
            f"made for {limits.max_loop_iters} loops"
        )
    )
    branch.add(_line(f"spectral radius of the injection: {found.spectral_radius:.4f} (stable below 1)"))
    if found.text is not None:
        branch.add(_line(_text(found.text)))
    if found.session:
        _pairs(branch.add(_line("session options of ONNX Runtime")), found.session.items())
    if found.minimum_runtime is not None:
        branch.add(_line(f"needs ONNX Runtime {found.minimum_runtime} or later"))


def _text(record: TextRecord) -> str:
    def ids(tokens: list[int]) -> str:
        return ", ".join(map(str, tokens)) or "none"

    return (
        f"text: special tokens before a prompt {ids(record.prefix)}, behind it {ids(record.suffix)} "
        f"({record.special_tokens}); an answer ends at {ids(record.end)}"
    )


def _origin(root: Tree, found: Inspection) -> None:
    branch = root.add(_line("origin", style=_STATE))
    if found.command:
        branch.add(_line(f"command: {' '.join(found.command)}"))
    _pairs(branch.add(_line("source")), found.source.items())
    branch.add(_line(f"made {found.created} by " + ", ".join(f"{tool} {of}" for tool, of in found.tool.items())))
    _quantization(branch, found)
    parity = found.parity
    if parity is None:
        branch.add(_line("parity: not compared with PyTorch"))
    else:
        verdict = "equal to PyTorch" if parity.passed else "NOT equal to PyTorch"
        at = f"at {', '.join(map(str, parity.loops))} loops"
        worst = f"largest error {parity.max_error_over_range:.2e} of the range, {parity.tolerance:.0e} allowed"
        branch.add(_line(f"parity: {verdict} {at}; {worst}", style="" if parity.passed else _BAD))
    of_files = branch.add(_line(f"files: {size(found.total_bytes)}"))
    _pairs(of_files, ((name, size(count)) for name, count in found.files.items()))


def _quantization(branch: Tree, found: Inspection) -> None:
    record = found.quantization
    if record is None:
        return
    ranges = "weights only" if record.ranges is None else f"ranges {record.ranges}"
    of_it = branch.add(_line(f"quantised: {len(record.quantized)} layers, {ranges}"))
    _pairs(of_it.add(_line("kernels on a CPU")), record.kernels.items())
    by_reason: dict[str, list[str]] = {}
    for layer, reason in record.kept.items():
        by_reason.setdefault(reason, []).append(layer)
    _pairs(of_it.add(_line("kept in float")), ((", ".join(layers), reason) for reason, layers in by_reason.items()))


def _pairs(branch: Tree, values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        branch.add(_line(f"{name}: {value}"))


def _engines(root: Tree, engines: BuiltEngines) -> None:
    receipt = engines.receipt
    if receipt is None:
        root.add(_line(f"{engines.file}: {engines.problem}", style=_BAD))
        return
    made = f"{receipt.runtime} {receipt.runtime_version}, {receipt.precision}, {receipt.created}"
    branch = root.add(_line(f"{engines.file}: engines for compute capability {engines.sm}, {made}", style=_STATE))
    for engine in receipt.engines:
        kind = "a Loop" if engine.loops == "dynamic" else f"{engine.loops} loops"
        branch.add(_line(f"{engine.file}: {kind}, {size(engine.entry.size)}"))
    axes = ((name, getattr(receipt.profile, name)) for name in type(receipt.profile).model_fields)
    branch.add(_line("takes " + ", ".join(f"{name} {axis.min}:{axis.opt}:{axis.max}" for name, axis in axes)))
