"""Where there is no server to be had, one line says why and what to do."""

from __future__ import annotations

import ctypes
import importlib.util
import sysconfig
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.errors import EngineError
from engines.triton.server import installation
from engines.triton.server.installation import find_installation


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An environment as Triton needs it: Linux, Python 3.12, numpy 1.26, all files of the wheel."""

    def make(*, version: tuple[int, int] = (3, 12), platform: str = "linux", numpy: str = "1.26.4") -> Path:
        package = tmp_path / "site-packages" / "pytriton"
        root = package / "tritonserver"
        stub = f"python_backend_stubs/{version[0]}.{version[1]}/triton_python_backend_stub"
        for name in ("bin/tritonserver", "backends/python/libtriton_python.so", stub):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        (tmp_path / "site-packages" / "nvidia_pytriton.libs").mkdir()
        (tmp_path / f"libpython{version[0]}.{version[1]}.so.1.0").touch()
        numbers = _Version(*version)
        python = SimpleNamespace(version_info=numbers, platform=platform, base_prefix=str(tmp_path / "none"))
        monkeypatch.setattr(installation, "sys", python)
        spec = ModuleSpec("pytriton", None, origin=str(package / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(metadata, "version", lambda name: numpy)
        monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path))
        return root

    return make


class _Version(tuple[int, ...]):
    def __new__(cls, *numbers: int) -> _Version:
        return super().__new__(cls, numbers)

    @property
    def major(self) -> int:
        return self[0]

    @property
    def minor(self) -> int:
        return self[1]


def test_it_finds_the_stub_of_this_python(installed: Callable[..., Path], tmp_path: Path) -> None:
    root = installed(version=(3, 10))
    found = find_installation()
    assert found.stub == root / "python_backend_stubs" / "3.10" / "triton_python_backend_stub"
    assert found.server == root / "bin" / "tritonserver"
    assert found.libpython == tmp_path / "libpython3.10.so.1.0"


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"platform": "win32"}, "for Linux only, and this is win32"),
        ({"platform": "darwin"}, "for Linux only"),
        ({"version": (3, 13)}, "Python 3.13 cannot .* Python 3.10, 3.11 or 3.12"),
        ({"version": (3, 14)}, "Python 3.14 cannot"),
        ({"numpy": "2.4.6"}, 'numpy below 2, and this is 2.4.6; run: pip install .* "numpy<2"'),
    ],
)
def test_an_environment_that_cannot_serve_is_refused(
    installed: Callable[..., Path], here: dict[str, object], said: str
) -> None:
    installed(**here)
    with pytest.raises(EngineError, match=said):
        find_installation()


def test_a_missing_extra_is_named(installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r'pip install "mythos-export\[cpu,triton\]"'):
        find_installation()


@pytest.mark.parametrize("part", ["bin/tritonserver", "python_backend_stubs/3.12/triton_python_backend_stub"])
def test_a_part_that_the_wheel_lacks_is_named(installed: Callable[..., Path], part: str) -> None:
    missing = installed() / part
    missing.unlink()
    with pytest.raises(EngineError, match=f"{missing}: missing"):
        find_installation()


def test_a_python_without_its_library_is_refused(
    installed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()
    (tmp_path / "libpython3.12.so.1.0").unlink()

    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(EngineError, match=r"libpython3\.12\.so\.1\.0 is not here.*apt-get install libpython3\.12"):
        find_installation()
