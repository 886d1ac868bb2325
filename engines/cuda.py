"""The little of CUDA that an engine needs, through NVIDIA's own binding (`pip install cuda-python`)."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from engines.errors import EngineError

__all__ = ["Cuda"]


class Cuda:
    """One device, one stream; every copy is ordered by the stream.

    Addresses are plain ints, sizes are bytes.
    """

    def __init__(self, device: int = 0) -> None:
        """Take a device.

        Raises:
            EngineError: no binding, no driver, or no such device.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError(
                'TensorRT engines need cuda-python; run: pip install "mythos-export[tensorrt]"'
            ) from error
        self._api: Any = runtime
        self._call("cudaSetDevice", device)
        self.device = device
        self.stream = int(self._call("cudaStreamCreate"))

    @property
    def compute_capability(self) -> str:
        """Of the device: `8.9`."""
        kinds = self._api.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, self.device)
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        return f"{major}.{minor}"

    def allocate(self, size: int) -> int:
        """Device memory, filled with zeros.

        Raises:
            EngineError: there is not so much.
        """
        address = int(self._call("cudaMalloc", max(size, 1)))
        self._call("cudaMemsetAsync", address, 0, max(size, 1), self.stream)
        return address

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array from the device, and wait for it."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)
        self._call("cudaStreamSynchronize", self.stream)

    def copy_rows(self, to: int, to_pitch: int, source: int, width: int, count: int) -> None:
        """Copy `count` rows of `width` bytes, lying one behind the other, to places `to_pitch` bytes apart."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", to, to_pitch, source, width, width, count, kind, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._api, name)(*arguments)
        if int(error):
            raise EngineError(f"CUDA: {name} failed with error {int(error)} ({getattr(error, 'name', 'unknown')})")
        return results[0] if results else None
