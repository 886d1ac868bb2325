"""TensorRT, whichever is installed: TensorRT-RTX (`tensorrt_rtx`) or TensorRT proper (`tensorrt`).

The parts of the two that this package uses have the same names. They differ in three things: RTX builds for a
GPU that is not there, and so is told which; its timing cache does nothing; its engines hold readable code.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineError

__all__ = ["RUNTIMES", "Library", "architecture", "find_library"]

RUNTIMES = ("tensorrt_rtx", "tensorrt")
_OLDEST = (10, 3)  # of TensorRT proper: JetPack 6
_HALVES = 2  # of a compute capability


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    name: str
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        """Is it TensorRT-RTX?"""
        return self.name == "tensorrt_rtx"

    @property
    def label(self) -> str:
        """Name and version, as receipts and messages say it."""
        return f"{self.name} {self.version}"

    def logger(self) -> tuple[Any, list[str]]:
        """A logger that is silent, and the list it collects errors in."""
        trt, errors = self.module, list[str]()

        class Collector(trt.ILogger):  # type: ignore[misc, name-defined]  # the base is known at run time only
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    errors.append(message)

        return Collector(), errors


def find_library(name: str | None = None) -> Library:
    """Import TensorRT: the one that is named, else the first there is.

    Raises:
        EngineError: it is not installed, or too old.
    """
    if name is not None and name not in RUNTIMES:
        raise EngineError(f"{name[:80]!r} is no TensorRT; known: {', '.join(RUNTIMES)}")
    for candidate in (name,) if name is not None else RUNTIMES:
        for module in _imported(candidate):
            version = str(module.__version__)
            if candidate == "tensorrt" and _numbers(version) < _OLDEST:
                raise EngineError(f"TensorRT {version} is too old; 10.3 (JetPack 6) or later is needed")
            return Library(candidate, version, module)
    wanted = name or "TensorRT"
    raise EngineError(f'{wanted} is not installed here; run: pip install "mythos-export[tensorrt-rtx]", or [tensorrt]')


def _imported(name: str) -> Iterator[Any]:
    """The module, if it is there. Placeholders and missing driver libraries raise other things than ImportError."""
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        yield importlib.import_module(name)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:_HALVES] if part.isdigit())


def architecture(text: str) -> str:
    """A compute capability as it is written here, `8.9`; `sm89` and `89` are understood.

    Raises:
        EngineError: it is none.
    """
    digits = text.strip().lower().removeprefix("sm").lstrip("_")
    if digits.isdigit() and _HALVES <= len(digits) <= _HALVES + 1:
        digits = f"{digits[:-1]}.{digits[-1]}"
    major, _, minor = digits.partition(".")
    short = len(major) <= _HALVES and len(minor) == 1
    if not (short and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        raise EngineError(f"--sm is {text[:40]!r}; give a compute capability such as 8.9")
    return f"{int(major)}.{minor}"
