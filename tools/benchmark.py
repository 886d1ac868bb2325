"""How fast a model runs: open-mythos, the reference model under torch.compile, and bundles, on the same machine.

    python -m tools.benchmark --bundles mythos-1b-fp32 mythos-1b-int8 --past 128,3072 --loops 4,8,16 --json speed.json

All contestants have the same weights, the same prompts and the same past. Each lives in a process of its own; they take
turns, in rounds whose order rotates, and figures are medians over rounds; a ratio is taken within each round first.
Before anything is timed their logits are compared: in fp32 they must agree, quantised ones are reported. What the
machine can do at best is measured before and after. How fast it reads out of memory, which others may use too, changes
by the minute: it is measured at the beginning of each round of decoding, and held against that round.

What is timed:

- decode: a token after `past` others, in turns of `--steps` tokens (and one more that warms up). The past is random,
  and the same for all (`tools/benchmarking/context.py`); each contestant keeps its cache as its users would.
- prefill: a prompt, from ids to the logits of its last token.
- batch: sequences of mixed depths in one bundle at once, against each of them alone, and against one of the deepest.

Where the contestants do not fit into memory together (or by `--residence apart`) they are measured one after the
other, and the output says so: their rounds are then minutes apart, and a ratio has the machine's drift in it. Warnings
say what else speaks against the figures; look first at how much of the processor others took during the run.

The file of `--json` (milliseconds unless the name says otherwise):

- `machine`, `model`, `settings`, `warnings`: what was measured, where, how, and what to hold against it.
- `roofline`: `before`, `after` and `used` (the best of all): `read_bytes_per_s` out of memory, with the way of reading
  that was quickest; `resident_bytes_per_s` by working set; `gemm_flops` by arithmetic. `during`: the median of what
  was read at the beginning of rounds, in the `read_way` that was best before.
- `contestants`: `load_seconds` (PyTorch's include making the weights, a bundle's leave out hashing its files),
  `weight_bytes`, `looped_block_bytes` (what a loop reads of them), `idle_cpu_share` (of a core, while others had their
  turn), and `memory`, grown since before loading: when loaded, when decoding where it is farthest from weights and
  cache, that ratio, and the peak. Of it `anonymous` is what only this process has, and `file` what it has read of
  mapped files, which the system drops when it wants the room.
- `agreement`: logits of a prompt and some tokens after it, against the first contestant's.
- `decode`: `ms_per_token`; `interval_ms` (95 %, of the median; from six rounds on), `least_ms`, `most_ms`, `rounds_ms`;
  `outside_ms`, the part of a step outside the session; `bytes` that the step cannot avoid moving, `read_bytes_per_s`
  in these rounds, `roofline_ms` the bytes take at that rate and `roofline_share` reached; the same with the looped
  block read again from whichever cache it fits (`resident_…`); `error_over_range` of its logits against the first
  contestant's; `speedup_over` each other contestant.
- `prefill`: `ms` and its spread, `operations` of the linear layers, and the share reached of the rate of products.
- `batch`: `tokens_per_s` at once; `one_by_one_tokens_per_s`, the same sequences each alone at its own depth, and `gain`
  over that; `deepest_alone_tokens_per_s`, of one sequence of the deepest depth, and `gain_over_deepest`. Gains are
  ratios within rounds.
- `against_loops`: latency = `intercept_ms` + `ms_per_loop` * loops, and `r_squared`.
- `against_context`: what one more past token costs, and what its bytes of the cache would.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from mythos_export.bundle import Bundle, BundleError
from mythos_export.errors import RequestError
from reference_model.checkpoint import CheckpointError
from reference_model.config import ConfigError, MythosConfig
from tools.benchmarking import machine
from tools.benchmarking.contestants import Spec
from tools.benchmarking.files import as_json, write_whole
from tools.benchmarking.measure import Measurements, Plan, measure
from tools.benchmarking.memory import available_bytes
from tools.benchmarking.options import read_options
from tools.benchmarking.plot import draw
from tools.benchmarking.profiling import profile_step
from tools.benchmarking.pytorch import latent_gains, open_source
from tools.benchmarking.results import doubts, figures
from tools.benchmarking.subject import Model, read_model
from tools.benchmarking.tables import tables
from tools.benchmarking.traffic import Traffic, bundle_traffic, pytorch_traffic
from tools.benchmarking.worker import BenchmarkError

__all__ = ["benchmark", "latency_files", "main", "together"]

_RUNTIME_BYTES = 1 << 29  # of a process, beside weights and cache
_COPIES = {"open-mythos": 1.0, "compiled": 1.0, "bundle": 1.6}  # of the weights: ONNX Runtime packs most of them anew
_STOPPED = "stopped early"
_KEPT_FREE = 0.9  # of the memory that is available


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Measure; the result as `--json` writes it, complete but for cells that a failure cut off (`warnings` says).

    Raises:
        BenchmarkError: nothing could be measured.
        BundleError, EngineError, CheckpointError, ConfigError, RequestError: a bad bundle, checkpoint or model.
    """
    before = machine.busy_elsewhere(given.threads)
    bundles = [Bundle.open(path) for path in given.bundles]
    model = read_model(given, bundles)
    plan = _plan(given, model.config)
    specs = _specs(given, bundles, model)
    traffic = {spec.name: _traffic(spec, model.config) for spec in specs}
    fits = given.residence == "together" or (given.residence == "auto" and together(specs, traffic, plan))
    groups = [specs] if fits else [[spec] for spec in specs]
    gains = latent_gains(*open_source(specs[0]))

    first = machine.measure_roofline(given.threads)
    found, others = Measurements(), machine.Others()
    with machine.reading(given.threads, first.read_way) as read_rate:
        stopped = _measure_what_goes(groups, gains, plan, read_rate, found)
    elsewhere = others.share()
    last = machine.measure_roofline(given.threads)
    rates = [rate for of_cell in found.read_rates.values() for of_name in of_cell.values() for rate in of_name]
    used = machine.with_readings(machine.better(first, last), first.read_way, rates)
    result = figures(found, plan, model.config, traffic, used)
    if given.profile is not None:
        result["profile"] = [
            profile_step(spec.bundle, model.config, gains, plan.past[0], plan.loops[-1], given.threads)
            for spec in specs
            if spec.bundle is not None
        ]
    return {
        "format_version": 1,
        "measured": datetime.date.today().isoformat(),
        "machine": _machine(groups) | {"others_cpu_share": elsewhere},
        "model": {"config": asdict(model.config), "source": model.source},
        "settings": plan._asdict() | {"threads": given.threads},
        "roofline": {
            "before": first._asdict(),
            "during": {"read_way": first.read_way, "read_bytes_per_s": statistics.median(rates) if rates else None},
            "after": last._asdict(),
            "used": used._asdict(),
        },
        **result,
        "warnings": [warning for warning in (before, machine.disturbed(elsewhere), stopped) if warning]
        + doubts(result),
    }


def _measure_what_goes(
    groups: Sequence[Sequence[Spec]], gains: Any, plan: Plan, read_rate: Callable[[], float], found: Measurements
) -> str | None:
    """Measure; what ended it early, if something did once there were figures, for those may have taken hours."""
    try:
        measure(groups, gains, plan, read_rate, found)
    except (BenchmarkError, RuntimeError, KeyboardInterrupt) as error:
        if not found.turns:
            raise
        said = str(error) or "interrupted"
        print(said, file=sys.stderr)
        return f"{_STOPPED}: {said.splitlines()[-1]}"
    return None


def together(specs: Sequence[Spec], traffic: dict[str, Traffic], plan: Plan) -> bool:
    """Do all contestants fit into memory at once? Estimated."""
    available = available_bytes()
    slots = max(plan.past) + plan.steps + 1
    caches = {name: of_name.cache(slots, max(plan.loops)) for name, of_name in traffic.items()}
    needed = (plan.batch + len(plan.loops)) * max(caches.values())  # a batch, of one contestant at a time
    needed += _RUNTIME_BYTES + 2 * machine.buffer_bytes()  # what measures how fast this machine reads
    for spec in specs:  # PyTorch copies a cache to append to it
        needed += int(_RUNTIME_BYTES + _COPIES[spec.kind] * traffic[spec.name].stored + 2 * caches[spec.name])
    return available is None or needed <= _KEPT_FREE * available


def _specs(given: argparse.Namespace, bundles: Sequence[Bundle], model: Model) -> list[Spec]:
    shared = asdict(model.config), model.checkpoint, model.seed
    specs = [Spec(kind, kind, given.threads, *shared) for kind in given.contestants if kind != "bundles"]
    if "bundles" in given.contestants:
        names = [bundle.manifest.name for bundle in bundles]
        ordered = sorted(bundles, key=lambda bundle: bundle.manifest.precision != "fp32")  # the first is the yardstick
        specs += [Spec(_name(bundle, names), "bundle", given.threads, *shared, bundle.path) for bundle in ordered]
    if not specs:
        raise BenchmarkError("no contestants; name some by --contestants, and --bundles where bundles are among them")
    return specs


def _name(bundle: Bundle, names: Sequence[str]) -> str:
    """Its own, or its folder where another has the same."""
    own = bundle.manifest.name
    return own if names.count(own) == 1 else str(bundle.path)


def _traffic(spec: Spec, config: MythosConfig) -> Traffic:
    if spec.bundle is not None:
        return bundle_traffic(Bundle.open(spec.bundle, check_hashes=False), config)
    return pytorch_traffic(config, key_per_head=spec.kind == "open-mythos")


def _plan(given: argparse.Namespace, config: MythosConfig) -> Plan:
    longest = max([past + given.steps + 1 for past in given.past] + given.prefill)
    if longest > config.max_seq_len:
        raise BenchmarkError(
            f"a sequence would grow to {longest} tokens, more than max_seq_len {config.max_seq_len}; "
            "ask for a smaller --past, --steps or --prefill"
        )
    return Plan(given.past, given.loops, given.prefill, given.rounds, given.steps, given.batch, config.vocab_size)


def _machine(groups: Sequence[Sequence[Spec]]) -> dict[str, Any]:
    alone = len(groups) > 1
    return {
        "processor": machine.describe(),
        "last_level_cache": machine.last_level_cache(),
        "residence": "one contestant in memory at a time, rounds minutes apart"
        if alone
        else "all contestants in memory, taking turns",
    }


def latency_files(result: dict[str, Any], folder: Path) -> dict[Path, str]:
    """Decode times as a bundle's report shows them (`mythos-export report --latency`): a file for each bundle."""
    runtimes = {row["name"]: row for row in result["contestants"]}
    files = {}
    for name, row in runtimes.items():
        if not row["runtime"].startswith("onnxruntime"):
            continue
        shown = [each for each in result["decode"] if _in_report(each["contestant"], name, runtimes)]
        files[folder / f"{Path(name).name}.latency.json"] = as_json(
            {
                "format_version": 1,
                "precision": row["precision"],
                "machine": result["machine"]["processor"],
                "measured": result["measured"],
                "measurements": [_measured(each, runtimes, result["settings"]["threads"]) for each in shown],
            }
        )
    return files


def _in_report(contestant: str, bundle: str, runtimes: dict[str, Any]) -> bool:
    return contestant == bundle or not runtimes[contestant]["runtime"].startswith("onnxruntime")


def _measured(row: dict[str, Any], runtimes: dict[str, Any], threads: int) -> dict[str, Any]:
    low, high = row["interval_ms"] or (None, None)
    return {
        "runtime": runtimes[row["contestant"]]["runtime"],
        "loops": row["loops"],
        "past": row["past"],
        "ms_per_token": row["ms_per_token"],
        "low_ms": low,
        "high_ms": high,
        "threads": threads,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tables, and write the files asked for."""
    try:
        given = read_options(arguments, __doc__)
        result = benchmark(given)
    except (BenchmarkError, BundleError, EngineError, CheckpointError, ConfigError, RequestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables(result))
    files: dict[Path, str] = {} if given.latency is None else latency_files(result, given.latency)
    if given.profile is not None:
        files[given.profile] = as_json(result.pop("profile"))
    if given.json is not None:
        files[given.json] = as_json(result)
    if given.plot is not None and result["decode"]:
        files[given.plot] = draw(result["decode"])
    for path, text in files.items():
        write_whole(path, text)
    return 1 if any(warning.startswith(_STOPPED) for warning in result["warnings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
