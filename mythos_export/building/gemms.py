"""What a built engine really multiplies in int8 or fp8.

A compiler that cannot fuse a Q/DQ pair says nothing: it dequantises, and multiplies in float. An engine of
TensorRT-RTX holds its code as text (unofficially; other releases and TensorRT proper need not). There a product
is an operation named after the graph's nodes, and every tensor has a type:

    fully_connected={ name="...^step.node_linear.quantized.MatMul_3+..." output={"a" } input={"b" "c" ... } ...
    tensor={ ... name="b" ... type=int8 }
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from engines.receipts import Gemms

__all__ = ["FellBack", "check_gemms", "quantized_products"]

_TYPES = {"int8": "int8", "fp8": "fp8_e4m3"}
_TENSOR = re.compile(rb'tensor=\{[^\n]{0,4000}? name="([^"\n]+)"[^\n]{0,4000}? type=(\w+)')
_OPERATION = re.compile(rb'(\w+)=\{ ?name="([^"\n]+)" output=\{[^}\n]*\} input=\{([^}\n]*)\}')
_QUANTIZED = re.compile(r"\.quantized\.(MatMul|Gemm)_\d+$")
_COPY = re.compile(r"_U\d+$")  # the compiler numbers what it has rewritten
_BODY = "step."  # the names of the Loop's body; those of an unrolled copy begin with loop0., loop1., ...
_SHOWN = 3


class FellBack(Exception):
    """Products that are quantised in the graph and not in the engine."""


def quantized_products(layers: Iterable[str]) -> set[str]:
    """Names of the products that are quantised in the graph, from those of all layers of the parsed network."""
    return {name for layer in layers if _QUANTIZED.search(name := _plain(layer))}


def check_gemms(engine: Path, products: set[str], precision: str) -> Gemms | None:
    """Check that both inputs of every quantised product are of the precision's type, in the Loop and outside.

    Args:
        products: from `quantized_products`.

    Returns:
        None where the precision quantises no activations, so that products are in float by design.

    Raises:
        FellBack: a product is in float, or not found at all.
    """
    if precision not in _TYPES:
        return None
    wanted, found = _TYPES[precision], dict[str, list[str]]()
    with engine.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        types = {name.decode(): kind.decode() for name, kind in _TENSOR.findall(content)}
        kernels = 0
        for operation in _OPERATION.finditer(content):
            names = {_plain(part) for part in operation[2].decode().split("+")} & products
            if names:
                kernels += 1
                kinds = [_type(name, types) for name in _quoted(operation[3])[:2]]
                found |= dict.fromkeys(names, kinds)
    wrong = [f"{name} in {' x '.join(kinds)}" for name, kinds in found.items() if kinds != [wanted] * 2]
    wrong += [f"{name} not found" for name in sorted(products - found.keys())]
    if not products:
        wrong = ["no product of the graph is quantised"]
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise FellBack(f"{len(wrong)} products do not run in {wanted}: {', '.join(wrong[:_SHOWN])}{more}")
    return Gemms(quantized=len(products), in_loop=sum(map(_in_loop, products)), kernels=kernels, type=wanted)


def _plain(name: str) -> str:
    """A name of the graph, from the compiler's or the parser's version of it."""
    return _COPY.sub("", name.strip().rpartition("^")[2])


def _in_loop(name: str) -> bool:
    return name.startswith((_BODY, "loop"))


def _quoted(text: bytes) -> list[str]:
    return [name.decode() for name in re.findall(rb'"([^"]+)"', text)]


def _type(name: str, types: Mapping[str, str]) -> str:
    """A tensor read through a pointer may have its type under either name."""
    return types.get(name) or types.get(name.removesuffix("^deref"), "unknown type")
