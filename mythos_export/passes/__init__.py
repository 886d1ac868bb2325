"""One onnx-ir pass a file; each states what it requires and ensures."""

from mythos_export.passes.float_scans import FloatScans
from mythos_export.passes.hoist import Hoist
from mythos_export.passes.lower_attention import LowerGroupedQueryAttention, LowerLatentAttention
from mythos_export.passes.lower_moe import LowerMoEGrouped
from mythos_export.passes.lower_moe_dense import LowerMoEDense
from mythos_export.passes.lower_moe_fused import LowerMoEFused
from mythos_export.passes.lower_norm import LowerNorm
from mythos_export.passes.lower_rotary import LowerRotary
from mythos_export.passes.quantize import Quantize
from mythos_export.passes.quantize_nbits import QuantizeNBits
from mythos_export.passes.reduce_precision import ReducePrecision
from mythos_export.passes.spread_past import SpreadPast
from mythos_export.passes.tidy import Tidy
from mythos_export.passes.transpose_weights import TransposeWeights
from mythos_export.passes.unroll import Unroll

__all__ = [
    "FloatScans",
    "Hoist",
    "LowerGroupedQueryAttention",
    "LowerLatentAttention",
    "LowerMoEDense",
    "LowerMoEFused",
    "LowerMoEGrouped",
    "LowerNorm",
    "LowerRotary",
    "Quantize",
    "QuantizeNBits",
    "ReducePrecision",
    "SpreadPast",
    "Tidy",
    "TransposeWeights",
    "Unroll",
]
