"""Plans in words, and what would fit where one does not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from mythos_export.commands.output import size, text_table
from mythos_export.planning.plan import Bound, Plan

__all__ = ["render", "render_comparison", "seconds"]

_LABEL = 12
_WIDTH, _INDENT = 80, "    "
_JOINED = "\N{NO-BREAK SPACE}"
_UNKNOWN = "unknown"
_MOST_PERCENT = 1000  # more than that is too much by whatever it is


def render(found: Plan, remedies: Sequence[str]) -> str:
    """One plan, 80 columns."""
    return "\n".join([*_title(found), *_memory(found), *_speed(found), *_limits(found), *_verdict(found, remedies)])


def render_comparison(plans: Sequence[Plan]) -> str:
    """Plans of one model side by side."""
    head = ("precision", "weights", "held", "cache", "total", "fits", "tokens", "loops", "a token", "prompt", "kernels")
    return "\n".join([*_title(plans[0], of_many=True), text_table(head, map(_row, plans))])


def seconds(value: float | None) -> str:
    """A time, readably: 24.2 ms."""
    if value is None:
        return _UNKNOWN
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _title(found: Plan, *, of_many: bool = False) -> Iterator[str]:
    what = found.target if of_many else f"{found.target} {found.precision}"
    name = "".join(letter if letter.isprintable() else "?" for letter in found.name)  # a file's
    yield f"{name}, {what}, {found.attention}: {found.context} tokens, {found.loops} loops, batch {found.batch}"
    if found.device is not None:
        yield f"on {found.device}"


def _memory(found: Plan) -> Iterator[str]:
    memory, token = found.memory, size(found.cache_bytes_per_token)
    looped = size(found.cache_bytes_per_token_and_loop)
    yield "memory"
    yield _entry("weights", size(memory.weights), f"{found.file_bytes:,} bytes in model.onnx.data")
    stages = (f"{stage} {size(count)}" for stage, count in found.weights_by_stage.items() if count)
    yield from _below(", ".join(stage.replace(" ", _JOINED) for stage in stages))
    yield from _held(found)
    yield _entry("cache", size(memory.cache), f"{token} a token, and {looped} a token and loop")
    yield _entry(
        "activations", f"{size(memory.activations):>9}  estimated; the prompt read {found.chunk} tokens a call"
    )
    if memory.capacity is not None:
        yield _entry("reserved", size(memory.reserved), "an allowance for system and runtime")
        yield _entry("total", size(memory.total), f"{_share(memory.total, memory.capacity)} of {size(memory.capacity)}")
    else:
        yield _entry("total", size(memory.total))


def _held(found: Plan) -> Iterator[str]:
    """Weights in memory, where they are not as they are stored."""
    memory = found.memory
    if memory.weights_held != memory.weights:
        which = "those outside the loop" if found.precision == "fp16" else "them"
        yield _entry("held", size(memory.weights_held), f"in memory: ONNX Runtime makes fp32 of {which} at load")
    if memory.packing:
        yield _entry("packing", size(memory.packing), "of these a second time, packed for the CPU's kernels")


def _share(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share <= _MOST_PERCENT else f">{_MOST_PERCENT} %"


def _speed(found: Plan) -> Iterator[str]:
    title = "a token" if found.batch == 1 else f"a token of each of {found.batch} sequences"
    yield from _bound(title, found.decode, per_second=True)
    yield from _below(_reading(found))
    calls = f", {found.prefill.calls} calls" if found.prefill.calls > 1 else ""
    yield from _bound(f"the prompt, {found.prefill.tokens} tokens{calls}", found.prefill)


def _bound(title: str, bound: Bound, *, per_second: bool = False) -> Iterator[str]:
    line = title
    if bound.seconds is not None:
        rate = f" ({_rate(bound.tokens / bound.seconds)} tokens/s at most)" if per_second else ""
        alone = "memory" if bound.memory_seconds is not None else "arithmetic"
        by = f"limited by {bound.limited_by}" if bound.limited_by is not None else f"by {alone} alone"
        line += f": {seconds(bound.seconds)} at least{rate}, {by}"
    yield line
    moved = bound.weight_bytes + bound.cache_read_bytes + bound.cache_written_bytes
    parts = f"weights {size(bound.weight_bytes)}, cache {size(bound.cache_read_bytes + bound.cache_written_bytes)}"
    yield _entry("memory", size(moved), f"{parts}{_time(bound, bound.memory_seconds)}")
    total = sum(bound.operations.values())
    by_kind = ", ".join(f"{kind} {_operations(count)}" for kind, count in bound.operations.items())
    yield _entry("arithmetic", _operations(total), f"{by_kind}{_time(bound, bound.compute_seconds)}")


def _time(bound: Bound, value: float | None) -> str:
    """How long it takes; nothing where no device is named."""
    if bound.seconds is None:
        return ""
    return f": {seconds(value)}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _operations(count: float) -> str:
    return f"{count / 1e15:,.1f} Pop" if count >= 1e15 else size(count).replace("B", "op")


def _reading(found: Plan) -> str:
    chosen = "chosen experts" if found.batch == 1 else "the experts that even choices need"
    unknown = ": no cache is known" if found.device is not None else ""
    experts = "all experts" if found.every_expert else chosen
    again = {
        None: f"the looped block at every loop{unknown}",
        False: "the looped block at every loop but what is cached",
        True: "the looped block once: the cache holds it",
    }[found.loop_stays_in_cache]
    return f"reads {experts}, and {again}"


def _limits(found: Plan) -> Iterator[str]:
    if found.fits is None:
        return
    context = f"{found.largest_context:,} tokens at {found.loops} loops" if found.largest_context else "not one token"
    depth = f"{found.largest_loops:,} loops at {found.context:,} tokens" if found.largest_loops else "not one loop"
    yield f"room for {context}, or {depth}"


def _verdict(found: Plan, remedies: Sequence[str]) -> Iterator[str]:
    if found.kernels is False:
        yield from _without_kernels(found)
    memory = found.memory
    if memory.capacity is None:
        return
    if found.fits:
        yield f"fits: {size(memory.capacity - memory.total)} to spare"
        return
    yield f"does not fit: {size(memory.total)} needed, {size(memory.capacity)} there"
    for remedy in remedies:
        yield from _below(f"{remedy} would fit")
    if not remedies:
        yield from _below("nor does anything smaller that is known here")


def _without_kernels(found: Plan) -> Iterator[str]:
    if found.target == "tensorrt":
        yield f"no kernels: TensorRT builds no {found.precision} engine for it, so this does not run there"
        return
    yield f"no kernels: ONNX Runtime does not multiply in {found.precision} there, but in fp32"
    if found.memory.weights_held == found.memory.weights:
        yield from _below("it would dequantise at every loop, slower than this, and may hold the weights in float too")


def _row(found: Plan) -> tuple[str, ...]:
    memory = found.memory
    return (
        found.precision,
        size(memory.weights),
        size(memory.weights_held + memory.packing),
        size(memory.cache),
        size(memory.total),
        {None: "-", True: "yes", False: "NO"}[found.fits],
        _most(found.largest_context),
        _most(found.largest_loops),
        "-" if found.device is None else seconds(found.decode.seconds),
        "-" if found.device is None else seconds(found.prefill.seconds),
        {None: "-", True: "yes", False: "NO"}[found.kernels],
    )


def _most(value: int | None) -> str:
    """What there is room for."""
    return "-" if value is None else f"{value:,}"


def _below(text: str) -> list[str]:
    """Words to the line above."""
    lines = textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return [line.replace(_JOINED, " ") for line in lines]


def _entry(label: str, amount: str, words: str = "") -> str:
    return f"  {label.ljust(_LABEL)}{amount:>9}  {words}".rstrip()
