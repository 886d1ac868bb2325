"""Bundles on TensorRT or TensorRT-RTX, from the engines that `mythos-export build` made.

Written without a GPU at hand: what drives TensorRT is tested against a stand-in, and has not yet run on hardware.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.cache import storage_dtype
from engines.cuda import Cuda
from engines.device_cache import DeviceCache, DeviceTensor
from engines.engine import Engine
from engines.errors import EngineError, one_line
from engines.generation import Graph
from engines.receipts import FOLDER, EngineEntry, Profile, read_receipt
from engines.tensorrt_library import Library, find_library
from mythos_export.bundle import Bundle, CachePart, GraphFile, TensorSpec

__all__ = ["TensorRtEngine"]

_HOST = "logits_to_keep"  # decides sizes, so TensorRT reads it from the host's memory
_DTYPES = {"int64": np.dtype(np.int64)}


class TensorRtEngine(Engine):
    """A bundle's built engines; the right one for each depth, as of every `Engine`."""

    def __init__(
        self, bundle: Bundle, *, runtime: str | None = None, device: int = 0, cuda: Cuda | None = None
    ) -> None:
        """Find the engines for the device; none is loaded yet.

        Args:
            runtime: tensorrt_rtx or tensorrt; the first that is installed if None.
            device: number of the GPU.
            cuda: in place of that device.

        Raises:
            EngineError: no TensorRT, no GPU, or no engine that was built for both from this very bundle.
        """
        super().__init__(bundle)
        self._library = find_library(runtime)
        self._cuda = cuda or Cuda(device)
        sm = self._cuda.compute_capability
        self.receipt = read_receipt(bundle, sm, runtime=self._library.name, version=self._library.version)

    def load_graph(self, file: GraphFile) -> Graph:
        """Load the engine of one graph.

        Raises:
            EngineError: it was not built, or does not load.
        """
        built = {entry.graph: entry for entry in self.receipt.engines}
        if file.file not in built:
            raise EngineError(f"{self.bundle.path}: no engine of {file.file} for {self.receipt.sm}; build it again")
        return _TensorRtGraph(self.bundle, self._library, self._cuda, built[file.file], self.receipt.profile)


class _TensorRtGraph:
    """One engine and its buffers, which grow to the largest call and then stay."""

    def __init__(self, bundle: Bundle, library: Library, cuda: Cuda, entry: EngineEntry, profile: Profile) -> None:
        trt, path = library.module, bundle.path / FOLDER / entry.file
        self._logger, self._errors = library.logger()
        self._runtime = trt.Runtime(self._logger)
        plan = np.memmap(path, np.uint8, "r")  # weights of gigabytes go to the device, not through the host's memory
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise EngineError(f"{path}: {library.label} cannot load it: {self._reason()}")
        self._cuda, self._name, self._profile, self._loops = cuda, entry.file, profile, entry.loops
        self._specs = {spec.name: spec for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)}
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._bound: dict[str, int] = {}
        self._keep = np.zeros((), np.int64)

    @property
    def loops(self) -> int | Literal["dynamic"]:
        return self._loops

    def new_cache(self, parts: Sequence[CachePart], *, loops: int, batch: int, capacity: int) -> DeviceCache:
        """A cache on the device, for `engines.generation`."""
        return DeviceCache(self._cuda, parts, loops=loops, batch=batch, capacity=capacity)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Run once; of the outputs, cache rows stay on the device (until the next run), others come as arrays."""
        sizes = self._sizes(inputs)
        for name, value in inputs.items():
            self._feed(name, value)
        made = {
            name: self._output(spec, sizes)
            for name, spec in self._specs.items()
            if name == "logits" or name.startswith(("new.", "halting."))
        }
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"{self._name}: TensorRT failed: {self._reason()}")
        return [made[name] if name.startswith("new.") else self._array(name, made[name]) for name in outputs]

    def _sizes(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """What the dimensions of the outputs are in this call; and does the profile take it?"""
        batch, seq = inputs["input_ids"].shape
        past = inputs["attention_mask"].shape[1] - seq
        trips = self._loops if isinstance(self._loops, int) else int(inputs["n_loops"].max())
        for name, size in (("batch", batch), ("seq", seq), ("past", past), ("loops", trips)):
            axis = getattr(self._profile, name)
            if not axis.min <= size <= axis.max and not (name == "loops" and isinstance(self._loops, int)):
                raise EngineError(
                    f"{self._name} was built for {name} {axis.min} to {axis.max}, not {size}; "
                    f"build it with --{name} MIN:OPT:MAX, or ask for less (prefill_chunk, capacity)"
                )
        keep = int(inputs[_HOST])
        return {"batch": batch, "seq": seq, "kept": min(keep or seq, seq), "trip_count": trips}

    def _feed(self, name: str, value: Any) -> None:
        if name == _HOST:
            self._keep[...] = value
            self._bind(name, self._keep.ctypes.data)
            return
        if isinstance(value, DeviceTensor):
            address = value.address
        else:
            array = np.ascontiguousarray(value)
            address = self._buffer(name, array.nbytes)
            self._cuda.upload(address, array)
        if not self._context.set_input_shape(name, tuple(value.shape)):
            raise EngineError(f"{self._name}: does not take {name} of shape {tuple(value.shape)}: {self._reason()}")
        self._bind(name, address)

    def _output(self, spec: TensorSpec, sizes: Mapping[str, int]) -> DeviceTensor:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        address = self._buffer(spec.name, math.prod(shape) * _dtype(spec).itemsize)
        self._bind(spec.name, address)
        return DeviceTensor(address, shape)

    def _array(self, name: str, made: DeviceTensor) -> NDArray[Any]:
        array = np.empty(made.shape, _dtype(self._specs[name]))
        self._cuda.download(array, made.address)
        return array

    def _buffer(self, name: str, size: int) -> int:
        address, held = self._buffers.get(name, (0, 0))
        if not address or held < size:
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = address, max(size, 1)
        return address

    def _bind(self, name: str, address: int) -> None:
        """Tell TensorRT where a tensor lies; in steady state there is nothing to tell."""
        if self._bound.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"{self._name}: has no tensor {name}; build the engine again")
            self._bound[name] = address

    def _reason(self) -> str:
        return one_line(RuntimeError(self._errors[-1] if self._errors else "it does not say why"))

    def __del__(self) -> None:
        for address, _ in getattr(self, "_buffers", {}).values():
            self._cuda.free(address)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    return _DTYPES.get(spec.dtype) or storage_dtype(spec.dtype)
