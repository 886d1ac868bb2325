"""From turns to figures: what `--json` writes. `tools/benchmark.py` says what each field means."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reference_model.open_mythos.config import MythosConfig
from tools.benchmarking.machine import Roofline
from tools.benchmarking.measure import Agreement, Cell, Measurements, Plan, agreement, mixed_depths
from tools.benchmarking.memory import Memory
from tools.benchmarking.pairing import fit_line, interval_of_median, ratio
from tools.benchmarking.traffic import Traffic, prefill_flops
from tools.benchmarking.worker import Turn

__all__ = ["doubts", "figures"]

_MILLI = 1e3
_IDLE = 0.02  # share of a core that a waiting contestant may take before it disturbs the others
_TOLD_APART = 1e-3  # of the logits' range, at a given context: more than rounding in fp32

Row = dict[str, Any]


def figures(
    found: Measurements, plan: Plan, config: MythosConfig, traffic: Mapping[str, Traffic], roofline: Roofline
) -> dict[str, Any]:
    """The parts of the result that are computed from turns."""
    decode = [row for cell in _of("decode", found) for row in _decode_rows(cell, found, traffic, roofline)]
    prefill = [row for cell in _of("prefill", found) for row in _prefill_rows(cell, found, config, roofline)]
    return {
        "contestants": [_contestant(name, found, traffic[name]) for name in found.loading],
        "agreement": _agreements(found),
        "decode": decode,
        "prefill": prefill,
        "batch": [row for cell in _of("batch", found) for row in _batch_rows(cell, found, plan)],
        "against_loops": _fits(decode, "past") + _fits(prefill, "tokens"),
        "against_context": _growth(decode, traffic),
    }


def doubts(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know before he believes them."""
    found = [
        f"{row['name']} took {row['idle_cpu_share']:.0%} of a core while others had their turn"
        for row in result["contestants"]
        if row["idle_cpu_share"] is not None and row["idle_cpu_share"] > _IDLE
    ]
    precisions = {row["name"]: row["precision"] for row in result["contestants"]}
    first = next(iter(precisions.values()), None)
    found += [
        f"{row['contestant']} differs in fp32 by {row['error_over_range']:.1e} of the logits' range at {row['past']} "
        f"past tokens and {row['loops']} loops: its tokens may have gone to other experts"
        for row in result["decode"]
        if {precisions[row["contestant"]], first} == {"fp32"} and not row["error_over_range"] <= _TOLD_APART
    ]
    return found + _too_low(result["decode"])


def _too_low(decode: Sequence[Row]) -> list[str]:
    """Nobody reads faster than the machine can."""
    best = max(decode, key=lambda row: row["resident_roofline_share"], default=None)
    if best is None or best["resident_roofline_share"] <= 1:
        return []
    return [
        f"{best['contestant']} reached {best['resident_roofline_share']:.0%} of the roofline: it is too low, for this "
        "machine reads faster than was found"
    ]


def _of(kind: str, found: Measurements) -> list[Cell]:
    return [cell for cell in found.turns if cell.kind == kind]


def _medians(turns: Sequence[Turn]) -> list[float]:
    """Seconds a step, one for each round."""
    return [statistics.median(turn.seconds) for turn in turns]


def _timing(rounds: Sequence[float], name: str = "ms") -> Row:
    interval = interval_of_median(rounds)
    return {
        name: _MILLI * statistics.median(rounds),
        "interval_ms": None if interval is None else [_MILLI * bound for bound in interval],
        "least_ms": _MILLI * min(rounds),
        "most_ms": _MILLI * max(rounds),
        "rounds_ms": [_MILLI * seconds for seconds in rounds],
    }


def _speedup(name: str, rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {other: ratio(rounds[other], rounds[name]) for other in rounds if other != name}


def _decode_rows(cell: Cell, found: Measurements, traffic: Mapping[str, Traffic], roofline: Roofline) -> list[Row]:
    turns = found.turns[cell]
    rounds = {name: _medians(of_name) for name, of_name in turns.items()}
    first = next(iter(found.loading))
    rows = []
    for name, of_name in turns.items():
        timing = _timing(rounds[name], "ms_per_token")
        error = agreement(of_name[-1].logits, turns[first][-1].logits)
        rows.append(
            {"contestant": name, "past": cell.tokens, "loops": cell.loops}
            | timing
            | {"outside_ms": _outside(of_name), "error_over_range": error.error_over_range}
            | _against_roofline(rounds[name], found.read_rates[cell][name], cell, traffic[name], roofline)
            | {"speedup_over": _speedup(name, rounds)}
        )
    return rows


def _outside(turns: Sequence[Turn]) -> float | None:
    steps = [seconds for turn in turns for seconds in turn.outside or ()]
    return _MILLI * statistics.median(steps) if steps else None


def _against_roofline(
    rounds: Sequence[float], rates: Sequence[float], cell: Cell, traffic: Traffic, roofline: Roofline
) -> Row:
    """Milliseconds that the bytes alone would take: all out of memory, and with the looped block staying in a cache.

    A memory that others use too reads now faster, now slower: a round is held against the rate of that very round.

    Args:
        rounds: seconds a step.
        rates: bytes a second out of memory.
    """
    moved = traffic.step(cell.tokens, cell.loops)
    again = (cell.loops - 1) * traffic.per_loop
    cached = roofline.at(traffic.per_loop)
    from_memory = [moved / rate for rate in rates]
    resident = [(moved - again) / rate + again / max(cached, rate) for rate in rates]
    return {
        "bytes": int(moved),
        "read_bytes_per_s": statistics.median(rates),
        "roofline_ms": _MILLI * statistics.median(from_memory),
        "roofline_share": ratio(from_memory, rounds),
        "resident_roofline_ms": _MILLI * statistics.median(resident),
        "resident_roofline_share": ratio(resident, rounds),
    }


def _prefill_rows(cell: Cell, found: Measurements, config: MythosConfig, roofline: Roofline) -> list[Row]:
    rounds = {name: _medians(turns) for name, turns in found.turns[cell].items()}
    operations = prefill_flops(config, cell.tokens, cell.loops)
    rows = []
    for name in rounds:
        kind = "int8" if found.loading[name]["precision"] in ("int8", "int4") else "fp32"  # int4 multiplies int8 too
        timing = _timing(rounds[name])
        least = _MILLI * operations / roofline.gemm_flops[kind]
        rows.append(
            {"contestant": name, "tokens": cell.tokens, "loops": cell.loops}
            | timing
            | {"operations": operations, "roofline_ms": least, "roofline_share": least / timing["ms"]}
            | {"speedup_over": _speedup(name, rounds)}
        )
    return rows


def _batch_rows(cell: Cell, found: Measurements, plan: Plan) -> list[Row]:
    depths = mixed_depths(plan.loops, plan.batch)
    rows = []
    for name, turns in found.turns[cell].items():
        together = _medians(turns)
        alone = {loops: _medians(found.turns[Cell("alone", cell.tokens, loops)][name]) for loops in set(depths)}
        one_by_one = [sum(alone[loops][index] for loops in depths) for index in range(len(together))]
        deepest = alone[max(depths)]
        rows.append(
            {
                "contestant": name,
                "past": cell.tokens,
                "depths": depths,
                "tokens_per_s": len(depths) / statistics.median(together),
                "one_by_one_tokens_per_s": len(depths) / statistics.median(one_by_one),
                "gain": ratio(one_by_one, together),
                "deepest_alone_tokens_per_s": 1 / statistics.median(deepest),
                "gain_over_deepest": len(depths) * ratio(deepest, together),
            }
            | _timing(together, "ms_per_step")
        )
    return rows


def _fits(rows: Sequence[Row], context: str) -> list[Row]:
    """Latency against loops, for each contestant and context."""
    fits = []
    for name, tokens in dict.fromkeys((row["contestant"], row[context]) for row in rows):
        mine = [row for row in rows if (row["contestant"], row[context]) == (name, tokens)]
        key = "ms_per_token" if context == "past" else "ms"
        line = fit_line([row["loops"] for row in mine], [row[key] for row in mine])
        if line is not None:
            fits.append(
                {
                    "contestant": name,
                    context: tokens,
                    "intercept_ms": line.intercept,
                    "ms_per_loop": line.slope,
                    "r_squared": line.r_squared,
                }
            )
    return fits


def _growth(rows: Sequence[Row], traffic: Mapping[str, Traffic]) -> list[Row]:
    """What one more past token costs, between the shortest and the longest context, and what its bytes would."""
    grown = []
    for name, loops in dict.fromkeys((row["contestant"], row["loops"]) for row in rows):
        mine = sorted((row for row in rows if (row["contestant"], row["loops"]) == (name, loops)), key=_past)
        low, high = mine[0], mine[-1]
        if low["past"] < high["past"]:
            least = 1e6 * traffic[name].cache(1, loops) / high["read_bytes_per_s"]
            measured = _MILLI * (high["ms_per_token"] - low["ms_per_token"]) / (high["past"] - low["past"])
            grown.append(
                {"contestant": name, "loops": loops, "us_per_past_token": measured, "roofline_us_per_past_token": least}
            )
    return grown


def _past(row: Row) -> int:
    return int(row["past"])


def _agreements(found: Measurements) -> list[Row]:
    rows = []
    for loops, logits in found.checked.items():
        reference = next(iter(logits))
        for name, of_name in logits.items():
            compared: Agreement = agreement(of_name, logits[reference])
            rows.append({"contestant": name, "with": reference, "loops": loops} | compared._asdict())
    return rows


def _contestant(name: str, found: Measurements, traffic: Traffic) -> Row:
    loading = found.loading[name]
    return {
        "name": name,
        "runtime": loading["runtime"],
        "precision": loading["precision"],
        "load_seconds": loading["seconds"],
        "weight_bytes": traffic.stored,
        "looped_block_bytes": int(traffic.per_loop),
        "idle_cpu_share": found.idle.get(name),
        "memory": _memory(name, found, traffic),
    }


def _memory(name: str, found: Measurements, traffic: Traffic) -> Row | None:
    """Growth since before the model was loaded, at the cell where it exceeds weights and cache the most."""
    before: Memory | None = found.loading[name]["before"]
    if before is None or name not in found.memory:
        return None
    loaded: Memory = found.loading[name]["after"]
    shares = {
        cell: (memory.resident - before.resident) / (traffic.stored + cache)
        for cell, (cache, memory) in found.memory[name].items()
    }
    worst = max(shares, key=lambda cell: shares[cell])
    cache, memory = found.memory[name][worst]
    peak = found.peak.get(name)
    return {
        "runtime_bytes": before.resident,
        "loaded_bytes": loaded.resident - before.resident,
        "loaded_anonymous_bytes": loaded.anonymous - before.anonymous,
        "loaded_file_bytes": loaded.file - before.file,
        "decoding_bytes": memory.resident - before.resident,
        "decoding_anonymous_bytes": memory.anonymous - before.anonymous,
        "decoding_file_bytes": memory.file - before.file,
        "cache_bytes": cache,
        "at": {"past": worst.tokens, "loops": worst.loops},
        "times_weights_and_cache": shares[worst],
        "anonymous_times_weights_and_cache": (memory.anonymous - before.anonymous) / (traffic.stored + cache),
        "peak_bytes": None if peak is None else peak.peak - before.resident,
    }
