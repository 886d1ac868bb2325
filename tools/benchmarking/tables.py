"""A result on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mythos_export.commands.output import text_table

__all__ = ["tables"]

_GB, _MB = 1e9, 1e6

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


def tables(result: Mapping[str, Any]) -> str:
    """All tables, one after the other."""
    contestants = result["contestants"]
    # What a reader asks about is how a bundle does against PyTorch; all pairs are in the file.
    yardsticks = [row["name"] for row in contestants if "PyTorch" in row["runtime"]]
    yardsticks = yardsticks or [row["name"] for row in contestants[:1]]
    faster: Columns = {"faster than": lambda row: _faster(row, yardsticks)}
    others = [row for row in result["agreement"] if row["contestant"] != row["with"]]
    parts = [
        _machine(result),
        _table("contestants", contestants, _CONTESTANTS, (0, 1)),
        _table("agreement with the first before the run", others, _AGREEMENT),
        _table("decode, one sequence: ms a token, medians of rounds", result["decode"], {**_DECODE, **faster}),
        _table("prefill, one prompt: ms", result["prefill"], {**_PREFILL, **faster}),
        _table("decode, a batch of mixed depths", result["batch"], _BATCH),
        _table("latency = a + b * loops", result["against_loops"], _FITS),
        _table("what a past token costs: us", result["against_context"], _CONTEXT),
        "\n".join(f"warning: {warning}" for warning in result["warnings"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine(result: Mapping[str, Any]) -> str:
    machine, roofline = result["machine"], result["roofline"]
    cache = machine["last_level_cache"]
    during = roofline["during_bytes_per_s"]
    return (
        f"{machine['processor']}, {result['settings']['threads']} threads each"
        f"{f', last-level cache {cache / 2**20:.0f} MiB' if cache else ''}; {machine['residence']}\n"
        f"read from memory {roofline['read_bytes_per_s'] / _GB:.1f} GB/s at best"
        + ("" if during is None else f", {during / _GB:.1f} in rounds of decoding (median)")
    )


def _field(name: str, form: str = "", scale: float = 1.0) -> Callable[[Row], str]:
    """A column: the field of a row, and nothing where there is none."""

    def text(row: Row) -> str:
        value = row.get(name)
        return "" if value is None else format(value * scale if form else value, form)

    return text


def _memory(name: str, form: str, scale: float = 1.0) -> Callable[[Row], str]:
    field = _field(name, form, scale)
    return lambda row: field(row["memory"] or {})


def _interval(row: Row) -> str:
    return "" if row["interval_ms"] is None else "{:.3f}..{:.3f}".format(*row["interval_ms"])


def _spread(row: Row) -> str:
    return f"{row['least_ms']:.3f}..{row['most_ms']:.3f}"


def _faster(row: Row, yardsticks: Sequence[str]) -> str:
    return ", ".join(f"{other} x{times:.2f}" for other, times in row["speedup_over"].items() if other in yardsticks)


def _table(title: str, rows: Sequence[Row], columns: Columns, left: Sequence[int] = (0,)) -> str:
    """Nothing where there are no rows."""
    if not rows:
        return ""
    return f"{title}\n" + text_table(
        list(columns), ([cell(row) for cell in columns.values()] for row in rows), left=left
    )


_WHO: Columns = {"": _field("contestant")}
_ROUNDS: Columns = {"95 % interval": _interval, "least..most": _spread}
_CONTESTANTS: Columns = {
    "": _field("name"),
    "runtime": _field("runtime"),
    "load s": _field("load_seconds", ".1f"),
    "weights MB": _field("weight_bytes", ".1f", 1 / _MB),
    "a loop MB": _field("looped_block_bytes", ".1f", 1 / _MB),
    "idle CPU": _field("idle_cpu_share", ".1%"),
    "decoding MB": _memory("decoding_bytes", ".1f", 1 / _MB),
    "anonymous": _memory("decoding_anonymous_bytes", ".1f", 1 / _MB),
    "/ (weights + cache)": _memory("times_weights_and_cache", ".2f"),
    "peak MB": _memory("peak_bytes", ".1f", 1 / _MB),
}
_AGREEMENT: Columns = {
    **_WHO,
    "loops": _field("loops"),
    "max error / range": _field("error_over_range", ".1e"),
    "top-1": _field("top1", ".1%"),
}
_DECODE: Columns = {
    **_WHO,
    "past": _field("past"),
    "loops": _field("loops"),
    "ms": _field("ms_per_token", ".3f"),
    **_ROUNDS,
    "outside": _field("outside_ms", ".3f"),
    "roofline ms": _field("roofline_ms", ".3f"),
    "reached": _field("roofline_share", ".1%"),
}
_PREFILL: Columns = {
    **_WHO,
    "tokens": _field("tokens"),
    "loops": _field("loops"),
    "ms": _field("ms", ".2f"),
    **_ROUNDS,
}
_BATCH: Columns = {
    **_WHO,
    "past": _field("past"),
    "depths": lambda row: ",".join(map(str, row["depths"])),
    "tokens/s": _field("tokens_per_s", ".1f"),
    "one by one": _field("one_by_one_tokens_per_s", ".1f"),
    "gain": _field("gain", ".2f"),
    "deepest alone": _field("deepest_alone_tokens_per_s", ".1f"),
    "gain over it": _field("gain_over_deepest", ".2f"),
    "ms a step": _field("ms_per_step", ".3f"),
    **_ROUNDS,
}
_FITS: Columns = {
    **_WHO,
    "what": lambda row: f"{row['past']} past" if "past" in row else f"prefill of {row['tokens']}",
    "a ms": _field("intercept_ms", ".3f"),
    "b ms": _field("ms_per_loop", ".3f"),
    "R^2": _field("r_squared", ".5f"),
}
_CONTEXT: Columns = {
    **_WHO,
    "loops": _field("loops"),
    "measured": _field("us_per_past_token", ".3f"),
    "its bytes alone": _field("roofline_us_per_past_token", ".3f"),
}
