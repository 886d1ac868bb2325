"""How long a mixture of experts takes in ONNX Runtime, by formulation and number of tokens.

What the targets' choice of one rests on:

    python -m tools.moe_formulations --dim 1024 --expert-dim 1024 --experts 64 --tokens 1,8,128

Each formulation is the body of a Loop, as in an exported graph: where a weight lies decides whether ONNX Runtime packs
it. Experts are drawn anew for each iteration. Formulations take turns in rounds whose order rotates; figures are
medians of milliseconds an iteration. Weights are random, and the same for all of a precision, whose answers must agree
before anything is timed.

- dense: every expert takes every token (`LowerMoEDense`).
- gather: the weights of each token's experts are gathered, and multiplied as a batch. Left out where it would copy
  more than 2 GiB an iteration.
- branch: an `If` for each expert, which runs on its own tokens if it has any. Two levels below its weights, which ONNX
  Runtime then does not pack.
- grouped: tokens sorted by expert and split; each expert runs on its own, be they none (`LowerMoEGrouped`). In int8 and
  int4 its products are `MatMulNBits`; int8-qdq has Q/DQ and calibrated ranges, as in the target `portable`.
- moe: `com.microsoft::MoE`, ONNX Runtime's own kernel in float.
- fused: `com.microsoft::QMoE` (`LowerMoEFused`).

All formulations are in memory together; where that is too much, name fewer by `--formulations`.

The file of `--json`: `machine`, `settings`, and a row for each formulation and number of tokens: `ms` an iteration,
`least_ms`, `most_ms`, `rounds_ms` (all null where it was left out), and `active_bytes`, the weights of the experts that
had a token, scales included, as a mean over iterations.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.onnxruntime import import_onnxruntime
from mythos_export import passes
from mythos_export.minimum_runtime import FUSED_EXPERTS_SINCE
from mythos_export.quantization import QUANTIZED, Choices, blockwise
from mythos_export.targets import TARGETS
from tools.benchmarking import machine
from tools.benchmarking.files import as_json, write_whole
from tools.benchmarking.measure import agreement
from tools.benchmarking.memory import available_bytes
from tools.benchmarking.options import at_least, new_file, numbers
from tools.benchmarking.pairing import order_of_round
from tools.benchmarking.worker import BenchmarkError
from tools.moe_graphs import LowerMoEBranched, LowerMoEGathered, LowerMoEKernel, Sizes, looped_mixture
from tools.moe_weights import expert_bytes, with_random_weights

__all__ = ["FORMULATIONS", "Formulation", "Mixture", "draw_inputs", "main", "measure", "table"]

_TRIPS = 4  # iterations of a run
_RUNS = 3  # of a turn that count; one more warms up
_MOST_GATHERED = 1 << 31  # bytes of weights that `gather` may copy at an iteration
_SILENT = 4  # errors arrive as exceptions
_COPIES = 1.3  # of the weights: ONNX Runtime packs them anew, int4 with a sum for each block
_TARGET = TARGETS["onnxruntime"]
_INTEGER = TARGETS["portable"].session["int8"]
# Of the range. In fp32 sums are added up in another order; quantised, an activation may round the other way too.
_AGREE = {"fp32": 1e-5, "int8-qdq": 1e-2, "int8": 1e-2, "int4": 1e-2}

Passes = list[ir.passes.InPlacePass]
Inputs = dict[str, NDArray[Any]]
Row = dict[str, Any]


class Formulation(NamedTuple):
    """One way to compute the mixture."""

    name: str
    precision: str
    lowerings: Callable[[Sizes], Passes]


class _AnyRange(dict[str, Sequence[float]]):
    """Speed does not depend on ranges."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Sequence[float]:
        return [4.0]


_CHOICES = Choices(limits=_AnyRange(), keep=frozenset({"embed"}))


def _dense(sizes: Sizes) -> Passes:
    return [passes.LowerMoEDense(experts=sizes.experts, dim=sizes.dim, expert_dim=sizes.expert_dim)]


def _gathered(sizes: Sizes) -> Passes:
    return [LowerMoEGathered(sizes)]


def _branched(sizes: Sizes) -> Passes:
    return [LowerMoEBranched(**sizes._asdict())]


def _grouped(sizes: Sizes) -> Passes:
    return [passes.LowerMoEGrouped(**sizes._asdict())]


def _grouped_qdq(sizes: Sizes) -> Passes:
    return [*_grouped(sizes), passes.Quantize(QUANTIZED["int8"], _CHOICES)]


def _grouped_blocks(precision: str) -> Callable[[Sizes], Passes]:
    return lambda sizes: [*_grouped(sizes), passes.QuantizeNBits(blockwise(sizes, precision), _CHOICES)]


def _kernel(sizes: Sizes) -> Passes:
    return [LowerMoEKernel(sizes)]


def _fused(precision: str) -> Callable[[Sizes], Passes]:
    return lambda sizes: [passes.LowerMoEFused(blockwise(sizes, precision), **sizes._asdict())]


FORMULATIONS = [
    Formulation("dense", "fp32", _dense),
    Formulation("gather", "fp32", _gathered),
    Formulation("branch", "fp32", _branched),
    Formulation("grouped", "fp32", _grouped),
    Formulation("moe", "fp32", _kernel),
    Formulation("grouped", "int8-qdq", _grouped_qdq),
    Formulation("grouped", "int8", _grouped_blocks("int8")),
    Formulation("fused", "int8", _fused("int8")),
    Formulation("grouped", "int4", _grouped_blocks("int4")),
    Formulation("fused", "int4", _fused("int4")),
]


class Mixture:
    """A formulation as a session, its weights in a folder."""

    def __init__(self, formulation: Formulation, sizes: Sizes, threads: int, folder: Path) -> None:
        """Write the graph and load it.

        Raises:
            BenchmarkError: the formulation does not take these sizes, or does not run here.
        """
        self.formulation, self.sizes = formulation, sizes
        self.title = f"{formulation.name} {formulation.precision}"
        model = looped_mixture(sizes)
        try:
            for rewrite in [*formulation.lowerings(sizes), passes.Tidy()]:
                rewrite(model)
        except ValueError as error:
            raise BenchmarkError(f"{self.title}: {error}; choose other sizes, or --formulations without it") from error
        file = folder / f"{self.title}.onnx"
        with_random_weights(model, sizes, file)
        self.expert_bytes = expert_bytes(model, sizes)
        self._session = _session(file, formulation.precision, threads)

    def takes(self, tokens: int) -> bool:
        """Is it worth a try with so many tokens?"""
        return self.formulation.name != "gather" or self.sizes.top_k * tokens * self.expert_bytes <= _MOST_GATHERED

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """The sum over iterations, [n, d]."""
        return self._session.run(None, inputs)[0]

    def turn(self, inputs: Inputs) -> float:
        """Seconds of an iteration."""
        seconds = []
        for _ in range(_RUNS + 1):
            start = time.perf_counter()
            self._session.run(None, inputs)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:]) / len(inputs["chosen"])


def _session(file: Path, precision: str, threads: int) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, _SILENT
    # threads that wait busily for the next run would take the processor from the session whose turn it is
    settings = {"session.force_spinning_stop": "1", **(_INTEGER if precision == "int8-qdq" else {})}
    disabled = settings.pop("disabled_optimizers", "").split(",")
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers, disabled_optimizers=disabled)


def draw_inputs(sizes: Sizes, tokens: int, trips: int = _TRIPS) -> Inputs:
    """Tokens, and for each iteration distinct experts and the weights to mix them by, which sum to 1."""
    draw = np.random.default_rng(tokens)
    weights = draw.uniform(0.1, 1.0, (trips, tokens, sizes.top_k)).astype(np.float32)
    return {
        "trips": np.array(trips),
        "tokens": draw.standard_normal((tokens, sizes.dim), np.float32),
        "chosen": draw.random((trips, tokens, sizes.experts)).argsort(axis=-1)[..., : sizes.top_k],
        "weights": weights / weights.sum(axis=-1, keepdims=True),
    }


def measure(mixtures: Sequence[Mixture], tokens: int, rounds: int) -> list[Row]:
    """A row for each formulation.

    Raises:
        RuntimeError: two of one precision compute something else.
    """
    inputs = draw_inputs(mixtures[0].sizes, tokens)
    takers = {mixture.title: mixture for mixture in mixtures if mixture.takes(tokens)}
    _require_agreement(list(takers.values()), inputs)
    seconds: dict[str, list[float]] = {title: [] for title in takers}
    for index in range(rounds):
        for title in order_of_round(list(takers), index):
            seconds[title].append(takers[title].turn(inputs))
    active = float(np.mean([len(np.unique(chosen)) for chosen in inputs["chosen"]]))
    return [_row(mixture, tokens, seconds.get(mixture.title), active) for mixture in mixtures]


def _require_agreement(mixtures: Sequence[Mixture], inputs: Inputs) -> None:
    """Of those of one precision, which have the same weights."""
    reference: dict[str, tuple[str, NDArray[np.float32]]] = {}
    for mixture in mixtures:
        precision, found = mixture.formulation.precision, mixture.run(inputs)
        title, wanted = reference.setdefault(precision, (mixture.title, found))
        error = agreement(found, wanted).error_over_range
        if not error <= _AGREE[precision]:  # NaN is no agreement either
            raise RuntimeError(f"{mixture.title} differs from {title} by {error:.1e} of the range")


def _row(mixture: Mixture, tokens: int, seconds: Sequence[float] | None, active: float) -> Row:
    rounds = None if seconds is None else [1e3 * each for each in seconds]
    return {
        "formulation": mixture.formulation.name,
        "precision": mixture.formulation.precision,
        "tokens": tokens,
        "ms": None if rounds is None else statistics.median(rounds),
        "least_ms": None if rounds is None else min(rounds),
        "most_ms": None if rounds is None else max(rounds),
        "rounds_ms": rounds,
        "active_bytes": round(active * mixture.expert_bytes),
    }


def table(rows: Sequence[Row]) -> str:
    """In Markdown: a column for each number of tokens, the best of each precision in bold, and what they read."""
    tokens = list(dict.fromkeys(row["tokens"] for row in rows))
    precisions = dict.fromkeys(row["precision"] for row in rows)
    best = {(precision, count): _least(_cells(rows, precision, count)) for precision in precisions for count in tokens}
    lines = ["| ms an iteration | " + " | ".join(map(_counted, tokens)) + " |", "|---" * (len(tokens) + 1) + "|"]
    for name, precision in dict.fromkeys((row["formulation"], row["precision"]) for row in rows):
        mine = [row for row in rows if (row["formulation"], row["precision"]) == (name, precision)]
        cells = [_cell(row["ms"], best[precision, row["tokens"]]) for row in mine]
        lines.append(f"| {name} {precision} | " + " | ".join(cells) + " |")
    lines += ["", lines[0].replace("ms an iteration", "MB of active weights"), lines[1]]
    for precision in precisions:
        active = (_cells(rows, precision, count)[0]["active_bytes"] for count in tokens)
        lines.append(f"| {precision} | " + " | ".join(f"{each / 1e6:.1f}" for each in active) + " |")
    return "\n".join(lines)


def _cells(rows: Sequence[Row], precision: str, tokens: int) -> list[Row]:
    return [row for row in rows if (row["precision"], row["tokens"]) == (precision, tokens)]


def _least(rows: Sequence[Row]) -> float | None:
    return min((row["ms"] for row in rows if row["ms"] is not None), default=None)


def _counted(tokens: int) -> str:
    return f"{tokens} token{'s' if tokens > 1 else ''}"


def _cell(milliseconds: float | None, best: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"**{milliseconds:.2f}**" if milliseconds == best else f"{milliseconds:.2f}"


def _names(text: str) -> list[str]:
    known = list(dict.fromkeys(each.name for each in FORMULATIONS))
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"unknown formulation {name!r}; known: {', '.join(known)}")
    return names


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.moe_formulations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experts", type=at_least(1), default=64, metavar="N")
    parser.add_argument("--top-k", type=at_least(1), default=4, metavar="N", help="experts of a token")
    parser.add_argument("--dim", type=at_least(1), default=1024, metavar="N")
    parser.add_argument("--expert-dim", type=at_least(1), default=1024, metavar="N")
    parser.add_argument("--tokens", type=numbers, default=[1, 8, 128], metavar="N,...")
    parser.add_argument("--formulations", type=_names, metavar="NAME,...", help="all of them, if not given")
    parser.add_argument("--threads", type=at_least(1), default=2, metavar="N")
    parser.add_argument("--rounds", type=at_least(1), default=7, metavar="N", help="turns of each formulation")
    parser.add_argument("--json", type=new_file(), metavar="FILE")
    given = parser.parse_args(arguments)
    if given.top_k > given.experts:
        parser.error(f"--top-k {given.top_k} is more than --experts {given.experts}")
    return given


def _asked_for(names: Sequence[str] | None) -> list[Formulation]:
    """Those of the names; if there are none, all that run here.

    Raises:
        BenchmarkError: one that is named needs a newer ONNX Runtime.
    """
    version = import_onnxruntime().__version__
    chosen = []
    for each in FORMULATIONS:
        needed = ".".join(map(str, FUSED_EXPERTS_SINCE)) if each.precision in QUANTIZED else "0"
        runs = _parts(version) >= _parts(needed)
        if runs and (names is None or each.name in names):
            chosen.append(each)
        elif not runs and names is not None and each.name in names:
            raise BenchmarkError(f"{each.name} {each.precision} needs onnxruntime {needed}, and this is {version}")
    return chosen


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2] if part.isdigit()]


def _require_memory(formulations: Sequence[Formulation], sizes: Sizes) -> None:
    """Estimated, before gigabytes are written.

    Raises:
        BenchmarkError: they do not fit into memory together.
    """
    numbers_each = {"fp32": 4.0, "int8-qdq": 1.0, "int8": 1.1, "int4": 0.7}  # bytes, with their scales
    weights = 3 * sizes.experts * sizes.dim * sizes.expert_dim
    needed = _COPIES * weights * sum(numbers_each[each.precision] for each in formulations)
    available = available_bytes()
    if available is not None and needed > available:
        raise BenchmarkError(
            f"{len(formulations)} formulations at once would take about {needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} are free; name fewer by --formulations"
        )


def _measured(given: argparse.Namespace) -> Row:
    """All of it, as `--json` writes it."""
    sizes = Sizes(given.experts, given.top_k, given.dim, given.expert_dim)
    formulations = _asked_for(given.formulations)
    _require_memory(formulations, sizes)
    others = machine.Others()
    with tempfile.TemporaryDirectory() as folder:
        mixtures = [Mixture(each, sizes, given.threads, Path(folder)) for each in formulations]
        rows = [row for tokens in given.tokens for row in measure(mixtures, tokens, given.rounds)]
        del mixtures  # before the files they have mapped
    return {
        "format_version": 1,
        "measured": datetime.date.today().isoformat(),
        "machine": {
            "processor": machine.describe(),
            "last_level_cache": machine.last_level_cache(),
            "others_cpu_share": others.share(),
            "runtime": f"onnxruntime {import_onnxruntime().__version__}",
        },
        "settings": sizes._asdict() | {"threads": given.threads, "rounds": given.rounds, "trips": _TRIPS},
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and write the file asked for."""
    given = _read_options(arguments)
    try:
        result = _measured(given)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{result['machine']['processor']}, {given.threads} threads, {result['machine']['runtime']}\n")
    print(table(result["rows"]))
    warning = machine.disturbed(result["machine"]["others_cpu_share"])
    if warning is not None:
        print(f"\nwarning: {warning}")
    if given.json is not None:
        write_whole(given.json, as_json(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
