"""The oldest ONNX Runtime that runs a graph, from the operators in it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from mythos_export.errors import RequestError

__all__ = ["FUSED_EXPERTS_SINCE", "OLDEST", "minimum_runtime", "read_version"]

OLDEST = (1, 22)  # what the extra `cpu` installs at least
FUSED_EXPERTS_SINCE = (1, 31)  # the first whose QMoE knows accuracy levels
_SINCE = {("com.microsoft", "QMoE"): FUSED_EXPERTS_SINCE}


def minimum_runtime(graphs: Iterable[ir.Model]) -> str | None:
    """The version that the operators of all graphs need, nested ones included; None where the oldest will do."""
    needed = max(
        (_SINCE.get((node.domain, node.op_type), OLDEST) for model in graphs for node in model.graph.all_nodes()),
        default=OLDEST,
    )
    return None if needed == OLDEST else ".".join(map(str, needed))


def read_version(text: str) -> tuple[int, ...]:
    """A version of ONNX Runtime as the user wrote it.

    Raises:
        RequestError: it is none, or older than any bundle runs on.
    """
    if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", text) is None:
        raise RequestError(f"--minimum-runtime is {text[:40]!r}; give a version of ONNX Runtime such as 1.22")
    version = tuple(map(int, text.split(".")))
    if version[:2] < OLDEST:
        raise RequestError(
            f"--minimum-runtime is {text}; bundles run on ONNX Runtime {'.'.join(map(str, OLDEST))} or later"
        )
    return version[:2]
