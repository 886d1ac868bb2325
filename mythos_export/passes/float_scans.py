"""The Loop's scan outputs in fp32, for TensorRT: its compiler breaks on a scan output in half precision.

What is scanned was rounded already, so widening it in the body and narrowing it behind the Loop changes no
value (TensorRT-RTX 1.7: `CHECK(graph().ssa_validation()) failed` without this).
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from mythos_export.graph_parts import Builder, recurrent_loop, state_count
from mythos_export.passes.rewriting import PassDidNothing

__all__ = ["FloatScans"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class FloatScans(ir.passes.InPlacePass):
    """Requires a scan output in half precision; ensures that none is left, and that no graph output changes type."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        loop = recurrent_loop(model.graph)
        halves = [index for index in range(state_count(loop), len(loop.outputs)) if loop.outputs[index].dtype in _HALF]
        if not halves:
            raise PassDidNothing("FloatScans: no scan output is in half precision")
        for index in halves:
            self._widen(loop, index)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        loop = recurrent_loop(model.graph)
        for value in loop.outputs[state_count(loop) :]:
            if value.dtype in _HALF:
                raise ir.passes.PostconditionError(f"FloatScans: {value.name} is still {value.dtype}")

    @staticmethod
    def _widen(loop: ir.Node, index: int) -> None:
        body, scan = loop.attributes["body"].as_graph(), loop.outputs[index]
        main, half = loop.graph, scan.dtype
        assert isinstance(main, ir.Graph) and half is not None
        inside, outside = Builder(f"{scan.name}.inside"), Builder(f"{scan.name}.outside")
        widened = inside.op("Cast", [body.outputs[index + 1]], to=ir.DataType.FLOAT)
        widened.type = ir.TensorType(ir.DataType.FLOAT)
        body.extend(inside.take())
        body.outputs[index + 1] = widened
        narrowed = outside.op("Cast", [scan], to=half)
        (cast,) = outside.take()
        narrowed.type = ir.TensorType(half)
        if scan.is_graph_output():
            narrowed.name, narrowed.shape, scan.name = scan.name, scan.shape, f"{scan.name}.wide"
        convenience.replace_all_uses_with(scan, narrowed, replace_graph_outputs=True)
        cast.replace_input_with(0, scan)
        main.insert_after(loop, [cast])
        scan.type = ir.TensorType(ir.DataType.FLOAT)
