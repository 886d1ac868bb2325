"""`config.pbtxt` of the two models, built as Triton's own message so that no field can be misspelt."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engines.errors import EngineError, one_line
from engines.triton.contract import GENERATOR_INPUTS, GENERATOR_OUTPUTS, SETTINGS, Port
from engines.triton.repository.signature import Signature, Tensor, paired

__all__ = ["check_config", "generator_config", "parse_config", "tensors_config", "to_text"]

_TYPES = {
    "bfloat16": "TYPE_BF16",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
}
_KINDS = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_ANY = -1
_MOST = (1 << 63) - 1


def generator_config(name: str, settings: Mapping[str, int]) -> Any:
    """The generator: one request at a time goes in, any number of responses come out.

    One instance on the CPU: it is a process of its own, which batches by itself.

    Args:
        settings: of `contract.SETTINGS`, only those that differ from their defaults.

    Raises:
        EngineError: a setting that there is not, or that is no positive integer.
    """
    for key, value in settings.items():
        if key not in SETTINGS:
            raise EngineError(f"{key[:80]!r} is no setting of the generator; known: {', '.join(SETTINGS)}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise EngineError(f"{key} is {str(value)[:80]}; it must be a positive integer ({SETTINGS[key]})")
    config = _new(name, backend="python", max_batch_size=1, kind="cpu")
    config.model_transaction_policy.decoupled = True
    for port in GENERATOR_INPUTS:
        config.input.add(**_port(port), optional=port.optional)
    for port in GENERATOR_OUTPUTS:
        config.output.add(**_port(port))
    _add_parameters(config, {key: str(value) for key, value in settings.items()})
    return config


def tensors_config(
    name: str,
    signature: Signature,
    *,
    backend: str,
    device: str,
    parameters: Mapping[str, str],
    shape_tensors: Iterable[str] = (),
) -> Any:
    """The tensor-level model: the graph's own inputs and outputs, the cache among them.

    The batch is not the first dimension of a cache, so for Triton there is none (`max_batch_size` 0).

    Args:
        parameters: of the backend.
        shape_tensors: inputs whose values decide sizes, which TensorRT wants to know.

    Raises:
        EngineError: a type that Triton does not have, or a dimension that it does not take.
    """
    config = _new(name, backend=backend, max_batch_size=0, kind=device)
    for tensor in signature.inputs:
        config.input.add(**_tensor(tensor, backend), is_shape_tensor=tensor.name in shape_tensors)
    for tensor in signature.outputs:
        config.output.add(**_tensor(tensor, backend))
    _add_parameters(config, parameters)
    return config


def check_config(config: Any, signature: Signature, where: str) -> None:
    """Make sure that a `config.pbtxt` says of every tensor what the graph says.

    Args:
        config: parsed from the text that was written.
        where: that text lies, for the message.

    Raises:
        EngineError: a name, a type or a size differs.
    """
    names = {value: name for name, value in _messages().DataType.items()}
    for kind, ports, tensors in (
        ("input", config.input, signature.inputs),
        ("output", config.output, signature.outputs),
    ):
        for port, own in paired(kind, list(ports), tensors, where):
            dtype, dims = names[port.data_type], list(port.dims)
            if dtype != _TYPES.get(own.dtype) or dims != ([size or _ANY for size in own.shape] or [1]):
                raise EngineError(f"{where}: {kind} {own.name} is {dtype} {dims}, but the graph's is {own.shown}")


def to_text(config: Any) -> str:
    """As it stands in `config.pbtxt`."""
    return _text_format().MessageToString(config, use_short_repeated_primitives=True)


def parse_config(text: str) -> Any:
    """What a `config.pbtxt` says.

    Raises:
        EngineError: it is none.
    """
    text_format = _text_format()
    try:
        return text_format.Parse(text, _messages().ModelConfig())
    except text_format.ParseError as error:
        raise EngineError(f"not a config.pbtxt ({one_line(error)})") from error


def _new(name: str, *, backend: str, max_batch_size: int, kind: str) -> Any:
    config = _messages().ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    config.instance_group.add(count=1, kind=_KINDS[kind])
    return config


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "data_type": port.dtype, "dims": port.dims}


def _tensor(tensor: Tensor, backend: str) -> dict[str, Any]:
    if tensor.dtype not in _TYPES:
        raise EngineError(f"{tensor.name[:80]!r} is {tensor.dtype[:40]!r}, which Triton has no type for")
    return {
        "name": tensor.name,
        "data_type": _TYPES[tensor.dtype],
        "dims": _dims(tensor, backend),
    }


def _dims(tensor: Tensor, backend: str) -> Sequence[int]:
    """Sizes as Triton takes them: it has neither scalars (without batching) nor a size of 0.

    An input without dimensions is declared as a list of one, and its backends take that for a scalar: all but
    TensorRT's, which compares ranks, and whose engines therefore have such inputs as lists (`mythos_export.building`).
    """
    if 0 in tensor.shape and backend != "python":
        raise EngineError(
            f"{tensor.name[:80]!r} is a cache without layers, which Triton's {backend} backend cannot declare; "
            "use --backend python"
        )
    return [size or _ANY for size in tensor.shape] or [1]


def _add_parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value


def _messages() -> Any:
    try:
        return importlib.import_module("tritonclient.grpc.model_config_pb2")
    except RuntimeError as error:  # tritonclient without its grpc part
        raise EngineError(
            'this needs the gRPC part of tritonclient; run: pip install "mythos-export[triton]"'
        ) from error


def _text_format() -> Any:
    return importlib.import_module("google.protobuf.text_format")
