"""Finds the Triton server that nvidia-pytriton brings, and what its Python backend needs of this interpreter.

The wheel is used as a box with a server in it: its Python package is never imported. The server's Python
backend starts a stub process for each model, one binary per Python release, linked to libpython.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from engines.errors import EngineError

__all__ = ["Installation", "find_installation"]

_INSTALL = 'pip install "mythos-export[cpu,triton]"'
_OLDEST, _NEWEST = (3, 10), (3, 12)  # this package's oldest; the newest that numpy 1.26 has wheels for


class Installation(NamedTuple):
    """Where the parts of the server are."""

    server: Path  # the executable
    backend: Path  # folder of the Python backend's own files
    stub: Path  # the executable that embeds this interpreter
    libraries: Path  # shared libraries of all of these
    libpython: Path | None  # this interpreter's, where the loader would not find it by itself


def find_installation() -> Installation:
    """The server of this environment.

    Raises:
        EngineError: there is none, or it cannot run models in this interpreter.
    """
    _check_interpreter()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise EngineError(f"this needs nvidia-pytriton, which is not installed; run: {_INSTALL}")
    _check_numpy()
    package = Path(spec.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = package / "tritonserver"
    found = Installation(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / version / "triton_python_backend_stub",
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython=_find_libpython(),
    )
    for path in (found.server, found.backend / "libtriton_python.so", found.stub, found.libraries):
        if not path.exists():
            raise EngineError(f"{path}: missing, so this nvidia-pytriton cannot serve here; run: {_INSTALL}")
    return found


def _check_interpreter() -> None:
    if not sys.platform.startswith("linux"):
        raise EngineError(f"nvidia-pytriton brings a Triton server for Linux only, and this is {sys.platform}")
    if not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        raise EngineError(
            f"Python {sys.version_info.major}.{sys.version_info.minor} cannot run models in the Triton server of "
            "nvidia-pytriton, which needs numpy below 2; make an environment with Python 3.10, 3.11 or 3.12"
        )


def _check_numpy() -> None:
    """With numpy 2 the stub starts, and hands its models empty tensors."""
    version = metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise EngineError(
            f'Triton\'s Python backend needs numpy below 2, and this is {version}; run: {_INSTALL} "numpy<2"'
        )


def _find_libpython() -> Path | None:
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if folder and (path := Path(folder) / name).is_file():
            return path
    try:
        ctypes.CDLL(name)
    except OSError:
        raise EngineError(
            f"{name} is not here, and Triton's Python backend is linked to it; install it (Debian, Ubuntu: "
            f"apt-get install {name[:-7]}), or a Python built with --enable-shared"
        ) from None
    return None
