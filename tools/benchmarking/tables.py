"""A result on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["tables"]

_GB, _MB = 1e9, 1e6

Rows = Sequence[Mapping[str, Any]]


def tables(result: Mapping[str, Any]) -> str:
    """All tables, one after the other."""
    names = [row["name"] for row in result["contestants"]]
    first = names[0] if names else ""
    # What a reader asks about is how a bundle does against PyTorch; all pairs are in the file.
    yardsticks = [row["name"] for row in result["contestants"] if "PyTorch" in row["runtime"]] or names[:1]
    parts = [
        _machine(result),
        _table("contestants", _contestants(result["contestants"])),
        _table(f"agreement with {first} before the run", _agreement(result["agreement"])),
        _table("decode, one sequence: ms a token, medians of rounds", _decode(result["decode"], yardsticks)),
        _table("prefill, one prompt: ms", _prefill(result["prefill"], yardsticks)),
        _table("decode, a batch of mixed depths", _batch(result["batch"])),
        _table("latency = a + b * loops", _fits(result["against_loops"])),
        _table("what a past token costs: us", _context(result["against_context"])),
        "\n".join(f"warning: {warning}" for warning in result["warnings"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _machine(result: Mapping[str, Any]) -> str:
    machine, roofline = result["machine"], result["roofline"]["used"]
    resident = ", ".join(
        f"{int(size) >> 20} MiB {rate / _GB:.1f}" for size, rate in roofline["resident_bytes_per_s"].items()
    )
    products = ", ".join(f"{kind} {rate / _GB:.0f}" for kind, rate in roofline["gemm_flops"].items())
    cache = machine["last_level_cache"]
    rate = result["roofline"]["during"]["read_bytes_per_s"]
    during = "" if rate is None else f", {rate / _GB:.1f} in rounds of decoding (median)"
    return (
        f"{machine['processor']}, {result['settings']['threads']} threads each"
        f"{f', last-level cache {cache / 2**20:.0f} MiB' if cache else ''}; {machine['residence']}\n"
        f"read from memory {roofline['read_bytes_per_s'] / _GB:.1f} GB/s at best ({roofline['read_way']}){during}; "
        f"working set again and again, GB/s: {resident}; products, Gop/s: {products}"
    )


def _contestants(rows: Rows) -> list[list[str]]:
    body = [
        [
            "",
            "runtime",
            "load s",
            "weights MB",
            "a loop MB",
            "idle CPU",
            "decoding MB",
            "anonymous",
            "file",
            "/ (weights + cache)",
            "anonymous / them",
            "peak MB",
        ]
    ]
    for row in rows:
        memory = row["memory"] or {}
        body.append(
            [
                row["name"],
                row["runtime"],
                f"{row['load_seconds']:.1f}",
                f"{row['weight_bytes'] / _MB:.1f}",
                f"{row['looped_block_bytes'] / _MB:.1f}",
                _share(row["idle_cpu_share"]),
                _number(memory.get("decoding_bytes"), 1 / _MB, 1),
                _number(memory.get("decoding_anonymous_bytes"), 1 / _MB, 1),
                _number(memory.get("decoding_file_bytes"), 1 / _MB, 1),
                _number(memory.get("times_weights_and_cache"), 1, 2),
                _number(memory.get("anonymous_times_weights_and_cache"), 1, 2),
                _number(memory.get("peak_bytes"), 1 / _MB, 1),
            ]
        )
    return body


def _agreement(rows: Rows) -> list[list[str]]:
    body = [["", "loops", "max error / range", "top-1"]]
    return body + [
        [row["contestant"], str(row["loops"]), f"{row['error_over_range']:.1e}", _share(row["top1"])]
        for row in rows
        if row["contestant"] != row["with"]
    ]


def _decode(rows: Rows, yardsticks: Collection[str]) -> list[list[str]]:
    body = [
        ["", "past", "loops", "ms", "95 % interval", "least..most", "outside", "roofline ms", "reached", "faster than"]
    ]
    return body + [
        [
            row["contestant"],
            str(row["past"]),
            str(row["loops"]),
            f"{row['ms_per_token']:.3f}",
            *_spread(row),
            _number(row["outside_ms"], 1, 3),
            f"{row['roofline_ms']:.3f}",
            _share(row["roofline_share"]),
            _faster(row, yardsticks),
        ]
        for row in rows
    ]


def _prefill(rows: Rows, yardsticks: Collection[str]) -> list[list[str]]:
    body = [["", "tokens", "loops", "ms", "95 % interval", "least..most", "roofline ms", "reached", "faster than"]]
    return body + [
        [
            row["contestant"],
            str(row["tokens"]),
            str(row["loops"]),
            f"{row['ms']:.2f}",
            *_spread(row),
            f"{row['roofline_ms']:.2f}",
            _share(row["roofline_share"]),
            _faster(row, yardsticks),
        ]
        for row in rows
    ]


def _batch(rows: Rows) -> list[list[str]]:
    body = [
        [
            "",
            "past",
            "depths",
            "tokens/s",
            "one by one",
            "gain",
            "deepest alone",
            "gain over it",
            "ms a step",
            "95 % interval",
            "least..most",
        ]
    ]
    return body + [
        [
            row["contestant"],
            str(row["past"]),
            ",".join(map(str, row["depths"])),
            f"{row['tokens_per_s']:.1f}",
            f"{row['one_by_one_tokens_per_s']:.1f}",
            f"{row['gain']:.2f}",
            f"{row['deepest_alone_tokens_per_s']:.1f}",
            f"{row['gain_over_deepest']:.2f}",
            f"{row['ms_per_step']:.3f}",
            *_spread(row),
        ]
        for row in rows
    ]


def _fits(rows: Rows) -> list[list[str]]:
    body = [["", "what", "a ms", "b ms", "R^2"]]
    return body + [
        [
            row["contestant"],
            f"{row['past']} past" if "past" in row else f"prefill of {row['tokens']}",
            f"{row['intercept_ms']:.3f}",
            f"{row['ms_per_loop']:.3f}",
            f"{row['r_squared']:.5f}",
        ]
        for row in rows
    ]


def _context(rows: Rows) -> list[list[str]]:
    body = [["", "loops", "measured", "its bytes alone"]]
    return body + [
        [
            row["contestant"],
            str(row["loops"]),
            f"{row['us_per_past_token']:.3f}",
            f"{row['roofline_us_per_past_token']:.3f}",
        ]
        for row in rows
    ]


def _spread(row: Mapping[str, Any]) -> tuple[str, str]:
    interval = row["interval_ms"]
    between = "" if interval is None else f"{interval[0]:.3f}..{interval[1]:.3f}"
    return between, f"{row['least_ms']:.3f}..{row['most_ms']:.3f}"


def _faster(row: Mapping[str, Any], yardsticks: Collection[str]) -> str:
    return ", ".join(f"{other} x{times:.2f}" for other, times in row["speedup_over"].items() if other in yardsticks)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value * unit:.{digits}f}"


def _table(title: str, body: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need; nothing where there is only a header."""
    lines = list(body)
    if len(lines) < 2:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    return "\n".join((title, *text))
