"""What this machine can do at best: bytes read a second, out of memory and out of caches, and products a second.

Whatever moves most counts: several ways to read are tried, each as often as it takes, and the best is the machine's. A
roofline that is too low would flatter everyone who is held against it.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.benchmarking.worker import thread_limits

__all__ = [
    "Others",
    "Roofline",
    "better",
    "busy_elsewhere",
    "describe",
    "disturbed",
    "last_level_cache",
    "measure_roofline",
]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_BUSY = (1, 2, 3, 6, 7, 8)  # columns of its first line: user, nice, system, irq, softirq, steal
_UNDISTURBED = 0.03  # share of the processor that others may take before figures suffer
_UNITS = {"K": 1 << 10, "M": 1 << 20}
_MIB = 1 << 20
_LEAST_BUFFER, _MOST_BUFFER = 512 * _MIB, 4096 * _MIB
_WORKING_SETS = [mib * _MIB for mib in (2, 4, 8, 16, 32, 64, 128)]
_SECONDS = 0.25  # of reading, for each way and working set
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


def measure_roofline(threads: int) -> Roofline:
    """Measure, in a process of its own."""
    with thread_limits(threads):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_measure, threads).result()


def better(first: Roofline, second: Roofline) -> Roofline:
    """The best of two measurements, rate by rate."""
    best = first if first.read_bytes_per_s >= second.read_bytes_per_s else second
    resident = {size: max(rate, second.resident_bytes_per_s[size]) for size, rate in first.resident_bytes_per_s.items()}
    gemm = {kind: max(rate, second.gemm_flops[kind]) for kind, rate in first.gemm_flops.items()}
    return Roofline(best.read_bytes_per_s, best.read_way, resident, gemm)


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
    size = min(max(_LEAST_BUFFER, 8 * (last_level_cache() or 0)), _MOST_BUFFER)
    out_of_memory = {name: way(size) for name, way in _ways(threads).items()}
    best = max(out_of_memory, key=lambda name: out_of_memory[name])
    resident = {size: max(way(size) for way in _ways(threads).values()) for size in _WORKING_SETS}
    return Roofline(out_of_memory[best], best, resident, _gemm_rates(threads))


def _ways(threads: int) -> dict[str, Callable[[int], float]]:
    """Name -> bytes a second for a working set of so many bytes."""
    import torch

    def rows(size: int) -> torch.Tensor:
        return torch.ones(max(size // (4 * 2048), threads), 2048)

    def summed(size: int) -> float:
        data = rows(size)
        return _best_rate(lambda: data.sum(), data.nbytes)

    def multiplied(size: int) -> float:
        data, vector = rows(size), torch.ones(2048)
        return _best_rate(lambda: torch.mv(data, vector), data.nbytes)

    return {
        "a dot product in each thread": lambda size: _dot_rate(size, threads),
        "torch.sum": summed,
        "a matrix times a vector": multiplied,
    }


def _dot_rate(size: int, threads: int) -> float:
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

    return _best_rate(once, passes * sum(part.nbytes for part in parts))


def _best_rate(run: Callable[[], object], amount: float) -> float:
    """Amount a second in the quickest of many runs."""
    run()
    quickest, begun, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - begun < _SECONDS:
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
