"""Triton's `triton_python_backend_utils`, as far as our models use it, recording what they send."""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

FINAL = 1
CRASHES: list[str] = []  # what would have taken the real server down


class ModelException(Exception):
    """As Triton's `TritonModelException`."""


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    UNAVAILABLE, INVALID_ARG, INTERNAL, CANCELLED = "unavailable", "invalid", "internal", "cancelled"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error


class Sender:
    """A client's end of a request."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.cancelled = self.broken = False
        self.done = threading.Event()

    def send(self, response: Response, flags: int = 0) -> None:
        assert not self.done.is_set(), "sent after the final response"
        if self.broken:
            raise ModelException("closed")
        self.responses.append(response)
        if flags & FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        if self.done.is_set():
            CRASHES.append("asked after the last response, which frees what this looks at")
        return self.cancelled

    def wait(self) -> list[Response]:
        assert self.done.wait(30), "no final response"
        return self.responses


class Request:
    def __init__(self, tensors: Mapping[str, np.ndarray], parameters: dict[str, Any]) -> None:
        self.inputs = {name: Tensor(name, array) for name, array in tensors.items()}
        self._parameters, self.sender = parameters, Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return json.dumps(self._parameters)


class Metric:
    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        self.family, self.labels, self.value = family, labels, 0.0

    def increment(self, by: float) -> None:
        assert by > 0, "Triton refuses a counter that falls"
        self.value += by

    def set(self, value: float) -> None:
        assert self.family.kind == MetricFamily.GAUGE
        self.value = value


class MetricFamily:
    GAUGE, COUNTER = "gauge", "counter"

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert name and description
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str]) -> Metric:
        return Metric(self, labels)


def module() -> types.ModuleType:
    """To be put into `sys.modules`."""
    fake = types.ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.TritonError, fake.InferenceResponse = Tensor, TritonError, Response  # type: ignore[attr-defined]
    fake.TritonModelException, fake.MetricFamily = ModelException, MetricFamily  # type: ignore[attr-defined]
    fake.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    fake.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)  # type: ignore[attr-defined]
    return fake
