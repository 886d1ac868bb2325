"""What Triton's ONNX Runtime backend can be told of the session options that a bundle was proven with.

Of ONNX Runtime's session configuration the backend passes one entry on; of its optimisers it sets only the level
(src/onnxruntime.cc of triton-inference-server/onnxruntime_backend).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engines.errors import EngineError

__all__ = ["BackendOptions", "backend_options"]

_BASIC = -1
_PASSED_ON = "session.use_device_allocator_for_initializers"
_AS_WRITTEN = "session.disable_quant_qdq"
_OPTIMIZERS = "disabled_optimizers"
_FUSION = "MatMulAddFusion"

# How fast, not what.
_SPEED = frozenset({"session.disable_prepacking", "session.inter_op.allow_spinning", "session.intra_op.allow_spinning"})


class BackendOptions(NamedTuple):
    """What goes into `config.pbtxt`, and what is to be said of the rest."""

    parameters: dict[str, str]
    graph_level: int | None  # of `optimization.graph`; None: all optimisers
    notes: list[str]


def backend_options(session: Mapping[str, str]) -> BackendOptions:
    """Translate a manifest's session options.

    Raises:
        EngineError: one that decides what is computed, and that the backend cannot be told.
    """
    parameters, level, notes = dict[str, str](), None, list[str]()
    for key, value in session.items():
        if key == _PASSED_ON:
            parameters[key] = value
        elif key == _AS_WRITTEN:
            # Q/DQ are fused beyond the basic level, and only there
            level = _BASIC if value == "1" else level
        elif key == _OPTIMIZERS and value.strip() == _FUSION:
            notes.append(
                f"may be slower than it could: the backend cannot disable {_FUSION}, so some int8 layers compute in "
                "float (with the same int8 values); the generator is not affected"
            )
        elif key in _SPEED:
            notes.append(f"the backend cannot be told {key} = {value[:40]}, which concerns its speed only")
        else:
            raise EngineError(
                f"this bundle was proven with session option {key[:80]!r}, which Triton's ONNX Runtime backend cannot "
                "be told, so it could compute something else; use --backend python"
            )
    return BackendOptions(parameters, level, notes)
