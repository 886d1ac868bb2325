"""What this machine can do at best: bytes read a second, out of memory and out of caches, and products a second.

Whatever moves most counts: several ways to read are tried, each as often as it takes, and the best is the machine's. A
roofline that is too low would flatter everyone who is held against it. What plain loops over an array reach is too
low: a bundle was seen at 128 % of it, for ONNX Runtime packs weights so that threads read them in many streams at once.
So what contestants do at their best is among the ways: products of one row with packed weights.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.benchmarking.worker import SETTLE, thread_limits

__all__ = [
    "Others",
    "Roofline",
    "better",
    "buffer_bytes",
    "busy_elsewhere",
    "describe",
    "disturbed",
    "last_level_cache",
    "measure_roofline",
    "reading",
    "with_readings",
]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_BUSY = (1, 2, 3, 6, 7, 8)  # columns of its first line: user, nice, system, irq, softirq, steal
_UNDISTURBED = 0.03  # share of the processor that others may take before figures suffer
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_MIB = 1 << 20
_BUFFER = 512 * _MIB  # where the system does not say how large its caches are
_LEAST_BUFFER, _MOST_BUFFER = 128 * _MIB, 4096 * _MIB
_WORKING_SETS = [mib * _MIB for mib in (2, 4, 8, 16, 32, 64, 128)]
_SECONDS = 0.25  # of reading, for each way and working set
_AGAIN_SECONDS = 0.3  # of reading once more, while contestants are in memory
_CONTRACTION = 2048  # of a product of one row
_MOST_COLUMNS = 8192
_BLOCK = 128  # of the contraction, which shares a scale
_GEMM_SIZES = (512, 1024, 2048)


class Roofline(NamedTuple):
    """Rates measured with the given number of threads."""

    read_bytes_per_s: float  # out of memory
    read_way: str
    resident_bytes_per_s: dict[int, float]  # by working set in bytes, over and over
    gemm_flops: dict[str, float]  # operations a second (two a multiply-add), by arithmetic

    def at(self, working_set: float) -> float:
        """Bytes a second for something of this size that is read again and again."""
        fitting = [size for size in self.resident_bytes_per_s if size >= working_set]
        return self.resident_bytes_per_s[min(fitting)] if fitting else self.read_bytes_per_s


class _Reading(NamedTuple):
    """A way of reading, its buffers made."""

    once: Callable[[], object]
    amount: float  # bytes
    held: object = None  # what must outlive it

    def rate(self, seconds: float = _SECONDS) -> float:
        return _best_rate(self.once, self.amount, seconds)


def measure_roofline(threads: int) -> Roofline:
    """Measure, in a process of its own."""
    with _own_process(threads) as pool:
        return pool.submit(_measure, threads).result()


@contextlib.contextmanager
def reading(threads: int, way: str) -> Iterator[Callable[[], float]]:
    """One way of reading out of memory, kept ready in a process of its own: bytes a second, whenever it is called."""
    with _own_process(threads) as pool:
        pool.submit(_keep, threads, way).result()
        yield lambda: pool.submit(_read_again).result()


@contextlib.contextmanager
def _own_process(threads: int) -> Iterator[ProcessPoolExecutor]:
    with thread_limits(threads), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def better(first: Roofline, second: Roofline) -> Roofline:
    """The best of two measurements, rate by rate."""
    best = first if first.read_bytes_per_s >= second.read_bytes_per_s else second
    resident = {size: max(rate, second.resident_bytes_per_s[size]) for size, rate in first.resident_bytes_per_s.items()}
    gemm = {kind: max(rate, second.gemm_flops[kind]) for kind, rate in first.gemm_flops.items()}
    return Roofline(best.read_bytes_per_s, best.read_way, resident, gemm)


def with_readings(roofline: Roofline, way: str, rates: Sequence[float]) -> Roofline:
    """The roofline, raised to the best of what was read in between."""
    best = max(rates, default=0.0)
    return roofline if best <= roofline.read_bytes_per_s else roofline._replace(read_bytes_per_s=best, read_way=way)


def buffer_bytes() -> int:
    """What is read out of memory: far more than caches hold."""
    cache = last_level_cache()
    return _BUFFER if cache is None else min(max(8 * cache, _LEAST_BUFFER), _MOST_BUFFER)


def last_level_cache() -> int | None:
    """Bytes; None where the system does not say."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size and size[-1] in _UNITS), default=None)


def describe() -> str:
    """The processor's name, and how many of it there are."""
    name = platform.processor() or platform.machine()
    if _CPUINFO.exists():
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {_cores()} cores"


def busy_elsewhere(threads: int) -> str | None:
    """A warning, if others keep this machine busy; asked before anything of this run is under way."""
    load, cores = os.getloadavg()[0], _cores()
    if load <= max(0.5, cores - threads):
        return None
    return f"load average {load:.1f} on {cores} cores before the run, which wants {threads}: others work here"


class Others:
    """How much of the processor others take while this run lasts."""

    def __init__(self) -> None:
        """Begin."""
        self._start = self._now()

    def share(self) -> float | None:
        """Their part of all cores' time since; None where the system does not say.

        Processes of this run count as its own once they have ended.
        """
        before, after = self._start, self._now()
        if before is None or after is None:
            return None
        busy, own, wall = (late - early for early, late in zip(before, after))
        return max(0.0, (busy - own) / (wall * _cores()))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds of CPU time of the whole machine and of this run, and wall time."""
        try:
            columns = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        except OSError:
            return None
        busy = sum(int(columns[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")
        return busy, _own_seconds(), time.perf_counter()


def disturbed(share: float | None) -> str | None:
    """A warning, if others took too much."""
    if share is None or share <= _UNDISTURBED:
        return None
    return f"others took {share:.0%} of the processor during the run: measure again on a quiet machine"


def _own_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    return sum(os.times()[:4])


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(threads: int) -> Roofline:
    import torch

    torch.set_num_threads(threads)
    size, ways = buffer_bytes(), _ways(threads)
    out_of_memory = {name: way(size).rate() for name, way in ways.items()}
    best = max(out_of_memory, key=lambda name: out_of_memory[name])
    resident = {size: max(way(size).rate() for way in ways.values()) for size in _WORKING_SETS}
    return Roofline(out_of_memory[best], best, resident, _gemm_rates(threads))


_kept: list[_Reading] = []  # of the process of `reading`, between its calls


def _keep(threads: int, way: str) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is interrupted is the other end
    torch.set_num_threads(threads)
    _kept.append(_ways(threads)[way](buffer_bytes()))


def _read_again() -> float:
    rate = _kept[0].rate(_AGAIN_SECONDS)
    time.sleep(SETTLE)
    return rate


def _ways(threads: int) -> dict[str, Callable[[int], _Reading]]:
    """By name, what makes buffers for a working set of so many bytes."""
    import torch

    def rows(size: int) -> torch.Tensor:
        return torch.ones(max(size // (4 * 2048), threads), 2048)

    def summed(size: int) -> _Reading:
        data = rows(size)
        return _Reading(lambda: data.sum(), data.nbytes)

    def multiplied(size: int) -> _Reading:
        data, vector = rows(size), torch.ones(2048)
        return _Reading(lambda: torch.mv(data, vector), data.nbytes)

    return {
        "a dot product in each thread": lambda size: _dot_product(size, threads),
        "torch.sum": summed,
        "a matrix times a vector": multiplied,
        "ONNX Runtime's MatMul of a row": lambda size: _row_products("MatMul", size, threads),
        "ONNX Runtime's MatMulNBits of a row, int8": lambda size: _row_products("MatMulNBits", size, threads),
    }


def _dot_product(size: int, threads: int) -> _Reading:
    """numpy's dot product leaves Python's lock, so that threads read at once; each reads its own half."""
    parts = [np.ones(size // 4 // threads, np.float32) for _ in range(threads)]
    passes = max(1, _MIB * 64 // size)  # in one go, so that starting threads does not count

    def read(part: Any) -> None:
        for _ in range(passes):
            np.dot(part, part)

    def once() -> None:
        others = [threading.Thread(target=read, args=(part,)) for part in parts[1:]]
        for thread in others:
            thread.start()
        read(parts[0])
        for thread in others:
            thread.join()

    return _Reading(once, passes * sum(part.nbytes for part in parts))


def _row_products(op: str, size: int, threads: int) -> _Reading:
    """One row times matrices of together `size` bytes, which ONNX Runtime packs when it loads them."""
    number = 4 if op == "MatMul" else 1  # bytes
    count = -(-size // (number * _CONTRACTION * _MOST_COLUMNS))
    columns = max(size // (count * number * _CONTRACTION), 1)
    weights = [_weights_of(op, index, columns) for index in range(count)]
    session = _session_of_products(op, weights, columns, threads)
    given = {"x": np.ones((1, _CONTRACTION), np.float32)}
    amount = sum(array.nbytes for of_node in weights for array in of_node.values())
    # a session does not own what it was handed over, and may read it where it lies
    return _Reading(lambda: session.run(None, given), amount, weights)


def _weights_of(op: str, index: int, columns: int) -> dict[str, Any]:
    """The parameters of one product: fp32, or int8 and the scales of its blocks.

    Each product's numbers are its own: ONNX Runtime keeps one copy of packed weights that are equal.
    """
    if op == "MatMul":
        return {f"w{index}": np.full((_CONTRACTION, columns), index + 1, np.float32)}
    blocks = _CONTRACTION // _BLOCK
    return {
        f"w{index}": np.full((columns, blocks, _BLOCK), index % 256, np.uint8),
        f"s{index}": np.full((columns, blocks), index + 1, np.float32),
    }


def _session_of_products(op: str, weights: list[dict[str, Any]], columns: int, threads: int) -> Any:
    """Weights are handed over beside the model, which may be no larger than 2 GiB."""
    import onnxruntime
    from onnx import TensorProto, helper

    attributes: dict[str, Any] = {}
    if op == "MatMulNBits":
        attributes = {"domain": "com.microsoft", "K": _CONTRACTION, "N": columns, "bits": 8, "block_size": _BLOCK}
        attributes["accuracy_level"] = 4  # multiplies integers, as quantised bundles do
    arrays = {name: array for of_node in weights for name, array in of_node.items()}
    results = [f"y{index}" for index in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *of_node], [y], **attributes) for of_node, y in zip(weights, results)],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _CONTRACTION])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, columns]) for y in results],
        [_handed_over(name, array) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _handed_over(name: str, array: Any) -> Any:
    """An initialiser whose numbers the session is given."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="handed over")
    return tensor


def _best_rate(run: Callable[[], object], amount: float, seconds: float = _SECONDS) -> float:
    """Amount a second in the quickest of many runs."""
    run()
    quickest, begun, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run()
        quickest = min(quickest, time.perf_counter() - start)
        runs += 1
    return amount / quickest


def _gemm_rates(threads: int) -> dict[str, float]:
    """Operations a second of square products: fp32 in PyTorch and ONNX Runtime, int8 in ONNX Runtime."""
    import torch

    best = {"fp32": 0.0, "int8": 0.0}
    for size in _GEMM_SIZES:
        operations = 2.0 * size**3
        matrix = torch.ones(size, size)
        run = _onnx_product("MatMul", np.ones((size, size), np.float32), threads)
        best["fp32"] = max(best["fp32"], _best_rate(lambda: matrix @ matrix, operations), _best_rate(run, operations))  # noqa: B023
        run = _onnx_product("MatMulInteger", np.ones((size, size), np.int8), threads)
        best["int8"] = max(best["int8"], _best_rate(run, operations))
    return best


def _onnx_product(op: str, weight: Any, threads: int) -> Callable[[], object]:
    """A model of one product: of fp32, or of uint8 activations with an int8 weight, as quantised bundles multiply."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kind, out = (TensorProto.FLOAT, TensorProto.FLOAT) if op == "MatMul" else (TensorProto.UINT8, TensorProto.INT32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, list(weight.shape))],
        [helper.make_tensor_value_info("y", out, list(weight.shape))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = np.ones(weight.shape, np.float32 if op == "MatMul" else np.uint8)
    return lambda: session.run(None, {"x": given})
