"""Will it fit, and how fast can it possibly be: the answer for one model, precision and device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel

from mythos_export.planning.devices import Device, kernels, rate_of
from mythos_export.planning.models import Stored, model_of
from mythos_export.planning.work import Call, Model, Work, weight_reads, work_of
from reference_model.architecture import Architecture, Loop

__all__ = ["Bound", "Memory", "Plan", "Question", "fits", "largest", "memory_of", "plan"]

_MOST_LOOPS = 1 << 20
_FLOAT = 4  # bytes
_SCORES = 4  # tensors of attention scores at once: of the latent and of rope, joined, and after softmax
_ARENA = 2


@dataclass(frozen=True)
class Question:
    """What is to run, and how."""

    context: int  # tokens in a sequence: the prompt that is read, and where the token is generated
    loops: int
    batch: int
    chunk: int  # tokens of the prompt in one call
    device: Device | None = None


class Memory(BaseModel):
    """Bytes of memory."""

    weights: int  # all tensors in `model.onnx.data`
    weights_held: int  # what the runtime makes of them: it may hold in fp32 what is stored in less
    packing: int  # of those, what is there twice while it is packed for a CPU's kernels
    cache: int  # as the engine allocates it, its mask included
    activations: int  # an estimate: the largest call's live tensors
    reserved: int  # an allowance for the system and the runtime; the device's
    total: int
    capacity: int | None  # of the device


class Bound(BaseModel):
    """The least that must be done, and the least time it takes."""

    tokens: int
    calls: int
    weight_bytes: int
    cache_read_bytes: int
    cache_written_bytes: int
    operations: dict[str, int]  # by arithmetic; a multiply-add is two
    memory_seconds: float | None  # None: the bandwidth is not known
    compute_seconds: float | None  # None: a rate is not known
    seconds: float | None  # the larger one that is known
    limited_by: str | None  # "memory" or "compute"; None where not both are known


class Plan(BaseModel):
    """One answer."""

    name: str
    target: str
    precision: str
    attention: str
    context: int
    loops: int
    batch: int
    chunk: int
    device: str | None
    file_bytes: int  # of `model.onnx.data`: the tensors, and what is left empty between them
    weights_by_stage: dict[str, int]  # as they are stored
    cache_bytes_per_token: int
    cache_bytes_per_token_and_loop: int
    memory: Memory
    decode: Bound  # one token of every sequence, at the full context
    prefill: Bound  # the whole context of every sequence
    loop_stays_in_cache: bool | None  # is the looped block read once a token? None: the cache is not known
    every_expert: bool  # the weights of all experts are read for every token
    kernels: bool | None  # does the device multiply in this precision?
    fits: bool | None
    largest_context: int | None  # at this depth and batch, within the model's own limit; 0: not even one token
    largest_loops: int | None  # at this context and batch; 0: not even one


def plan(stored: Stored, question: Question) -> Plan:
    """Plan; nothing is traced, read or run."""
    device = question.device
    runs = None if device is None else kernels(device, stored.target, stored.precision)
    cached = None if device is None else device.last_level_cache_bytes
    model = model_of(stored, device)
    memory = _memory(model, question)
    step = Call(question.batch, 1, question.context - 1, question.loops)
    by_stage = defaultdict[str, int](int)
    for tensor in stored.tensors:
        by_stage[tensor.place.stage] += tensor.nbytes
    return Plan(
        name=stored.name,
        target=stored.target,
        precision=stored.precision,
        attention=_attention(stored.architecture),
        context=question.context,
        loops=question.loops,
        batch=question.batch,
        chunk=question.chunk,
        device=None if device is None else device.label,
        file_bytes=stored.file_bytes,
        weights_by_stage={stage: by_stage[stage] for stage in stored.architecture.stages},
        cache_bytes_per_token=model.cache.per_token,
        cache_bytes_per_token_and_loop=model.cache.per_token_and_loop,
        memory=memory,
        decode=_bound(work_of(model, step), question.batch, 1, device),
        prefill=_prefill(model, question),
        loop_stays_in_cache=None if cached is None else weight_reads(model, step)[1],
        every_expert=model.reads_all,
        kernels=runs,
        fits=fits(memory),
        largest_context=_largest(model, question, "context", stored.architecture.max_positions),
        largest_loops=_deepest(model, question, stored.depths, _MOST_LOOPS),
    )


def memory_of(stored: Stored, question: Question) -> Memory:
    """What is needed, and what the device has."""
    return _memory(model_of(stored, question.device), question)


def fits(memory: Memory) -> bool | None:
    """Does it? None where no device is named."""
    return None if memory.capacity is None else memory.total <= memory.capacity


def _memory(model: Model, question: Question) -> Memory:
    device = question.device
    cache = model.cache.total(loops=question.loops, batch=question.batch, context=question.context)
    activations = _activations(model, question)
    reserved = 0 if device is None else device.reserved_bytes
    return Memory(
        weights=model.stored,
        weights_held=model.weights,
        packing=model.packed,
        cache=cache,
        activations=activations,
        reserved=reserved,
        total=model.weights + model.packed + cache + activations + reserved,
        capacity=None if device is None else device.memory_bytes,
    )


def _activations(model: Model, question: Question) -> int:
    """Live tensors of the largest call, all in fp32, and what an arena that grows by doubling takes for them.

    An estimate, for runtimes reuse memory as they like.
    """
    architecture, seq = model.architecture, min(question.chunk, question.context)
    work, loop = architecture.work, architecture.loop
    tokens = question.batch * seq
    # the whole buffer is the past of every call but the first, whose past is empty
    keys = seq if seq == question.context else question.context + seq
    # what is encoded and the loop's states, a block's input and its result
    streams = tokens * (2 * architecture.dim + (0 if loop is None else architecture.dim + _states(loop)))
    attention = tokens * work.heads * (_SCORES * keys + 2 * work.width)
    routed = [
        (1 if model.dense else group.active) * (2 * group.dim + 3 * group.hidden) for group in architecture.experts
    ]
    feed_forward = tokens * max([3 * work.hidden, *routed])
    logits = question.batch * architecture.vocab_size
    rows = tokens * model.cache.token(question.loops)  # before they are appended
    return _ARENA * (_FLOAT * (streams + max(attention, feed_forward) + logits) + rows)


def _states(loop: Loop) -> int:
    return sum(state.width for state in loop.states)


def _attention(architecture: Architecture) -> str:
    """By what it caches, as `--attn` calls it."""
    return "mla" if any(part.name.endswith(".latent") for part in architecture.cache) else "gqa"


def _prefill(model: Model, question: Question) -> Bound:
    """The prompt, a chunk a call; every call reads the weights again."""
    whole, rest = divmod(question.context, question.chunk)
    batch, chunk, loops = question.batch, question.chunk, question.loops
    first = work_of(model, Call(batch, min(chunk, question.context), 0, loops))
    total = first if not whole else first * whole + _looking_back(model, question, whole)
    if whole and rest:
        total = total + work_of(model, Call(batch, rest, whole * chunk, loops))
    return _bound(total, batch * question.context, whole + bool(rest), question.device)


def _looking_back(model: Model, question: Question, calls: int) -> Work:
    """What whole chunks do beyond the first of them: they read the past, which grows by a chunk a call."""
    batch, chunk, loops = question.batch, question.chunk, question.loops
    steps = calls * (calls - 1) // 2
    behind = work_of(model, Call(batch, chunk, chunk, loops))
    alone = work_of(model, Call(batch, chunk, 0, loops))
    products = {kind: (count - alone.products[kind]) * steps for kind, count in behind.products.items()}
    return Work(0.0, (behind.cache_read - alone.cache_read) * steps, 0, products)


def _bound(work: Work, tokens: int, calls: int, device: Device | None) -> Bound:
    operations = {kind: round(2 * count) for kind, count in sorted(work.products.items()) if count}
    memory = compute = None
    if device is not None:
        memory = None if device.bandwidth is None else work.bytes / device.bandwidth
        rates = {kind: rate_of(device, kind) for kind in operations}
        if None not in rates.values():
            compute = sum(count / rate for (kind, count) in operations.items() if (rate := rates[kind]) is not None)
    known = {name: value for name, value in (("memory", memory), ("compute", compute)) if value is not None}
    return Bound(
        tokens=tokens,
        calls=calls,
        weight_bytes=round(work.weights),
        cache_read_bytes=work.cache_read,
        cache_written_bytes=work.cache_written,
        operations=operations,
        memory_seconds=memory,
        compute_seconds=compute,
        seconds=max(known.values(), default=None),
        limited_by=max(known, key=lambda name: known[name]) if len(known) > 1 else None,
    )


def _largest(model: Model, question: Question, field: str, most: int) -> int | None:
    if question.device is None:
        return None

    def holds(value: int) -> bool:
        return fits(_memory(model, replace(question, **{field: value}))) is True  # type: ignore[arg-type]  # integers

    return _last(holds, most)


def largest(stored: Stored, question: Question, most: Mapping[str, int]) -> dict[str, int]:
    """The largest context, loops, batch and chunk up to some, each alone, that fit; 0 where none does."""
    model = model_of(stored, question.device)
    found = {field: _largest(model, question, field, limit) for field, limit in most.items() if field != "loops"}
    found["loops"] = _deepest(model, question, stored.depths, most["loops"])
    return {field: found[field] or 0 for field in most}


def _deepest(model: Model, question: Question, depths: tuple[int, ...], most: int) -> int | None:
    """The most loops that fit, and that there is a graph for."""
    found = _largest(model, question, "loops", most)
    if found is None or not depths:
        return found
    return max((depth for depth in depths if depth <= found), default=0)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest of 1..most for which it holds, 0 if it does for none; it holds up to some number and then no more."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
