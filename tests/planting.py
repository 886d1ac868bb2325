"""Defects planted in a copy of a bundle, its hashes made right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from mythos_export.bundle import Bundle, file_entry

__all__ = ["Edit", "body_of", "constant", "in_file", "plant", "set_constant"]

Edit = Callable[[onnx.ModelProto, Path], None]


def plant(original: Path, copy: Path, edit: Edit = lambda model, folder: None, file: str = "model.onnx") -> Bundle:
    """A copy of a bundle with an edited graph, data or recipe, and a manifest that vouches for it."""
    shutil.copytree(original, copy)
    model = onnx.load(copy / file, load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    edit(model, copy)
    if model.SerializeToString(deterministic=True) != before:
        onnx.save(model, copy / file)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = file_entry(copy / name).model_dump()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(copy)


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    """The body of the Loop."""
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    return loop.attribute[0].g


def in_file(folder: Path, name: str, dtype: Any = np.uint8) -> NDArray[Any]:
    """A parameter in the bundle's data file, flat, to write into."""
    tensor = ir.load(folder / "model.onnx").graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None and tensor.length is not None
    count = tensor.length // np.dtype(dtype).itemsize
    return np.memmap(folder / tensor.location, dtype, "r+", tensor.offset, (count,))


def constant(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    """A constant in the graph itself."""
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    return onnx.numpy_helper.to_array(tensor)


def set_constant(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> None:
    """Change it; its type stays."""
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value, constant(graph, name).dtype), name))
