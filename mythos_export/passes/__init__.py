"""One onnx-ir pass a file; each states what it requires and ensures."""

from mythos_export.passes.lower_attention import LowerGroupedQueryAttention, LowerLatentAttention
from mythos_export.passes.lower_moe import LowerMoEGrouped
from mythos_export.passes.lower_norm import LowerNorm
from mythos_export.passes.tidy import Tidy
from mythos_export.passes.transpose_weights import TransposeWeights

__all__ = [
    "LowerGroupedQueryAttention",
    "LowerLatentAttention",
    "LowerMoEGrouped",
    "LowerNorm",
    "Tidy",
    "TransposeWeights",
]
