"""Are `engines`, `calibration` and `reference_model` the packages that were installed with this one?

Others use these names too: a `calibration.py` in the working folder comes before the installed package, and
`pip install` of another distribution that has an `engines/` puts its files over ours. Nothing but the standard library
is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from mythos_export import __version__

__all__ = ["PACKAGES", "BrokenInstallation", "check_installation", "leave_working_folder"]

PACKAGES = ("engines", "calibration", "reference_model")
_ROOT = Path(os.path.abspath(__file__)).parents[1]
_RECORD = _ROOT / f"mythos_export-{__version__}.dist-info" / "RECORD"
_REINSTALL = f"pip install --force-reinstall --no-deps mythos-export=={__version__}"


class BrokenInstallation(ImportError):
    """Python would run code that is not mythos-export's; one line: which file, and what to do."""


def check_installation(packages: Iterable[str] = PACKAGES) -> None:
    """Refuse to go on with code that is not mythos-export's.

    Args:
        packages: those that are about to be imported.

    Raises:
        BrokenInstallation: a file hides one of them, or a file of this installation was replaced or removed.
    """
    _check_files()
    for package in packages:
        _check_origin(package)


def leave_working_folder() -> None:
    """Take the working folder off Python's path, where `python -m` puts it; a checkout that is run from there stays."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if sys.path and _same(sys.path[0] or here, here) and not _same(here, _ROOT):
        del sys.path[0]


def _check_origin(package: str) -> None:
    own, origin = _ROOT / package / "__init__.py", _origin(package)
    if not own.is_file():
        raise BrokenInstallation(f"{own}: missing; {_remedy(package)}")
    if origin is None or not _same(origin, own):
        raise BrokenInstallation(
            f"{origin or package} hides mythos-export's own package {package} ({own.parent}); "
            "rename it, or take its folder off Python's path (the working folder, PYTHONPATH)"
        )


def _origin(package: str) -> str | None:
    """The file that an import would run, or has run."""
    if package in sys.modules:
        return getattr(sys.modules[package], "__file__", None)
    spec = importlib.util.find_spec(package)
    return None if spec is None else spec.origin


def _check_files() -> None:
    """Compare sizes with the installer's list; a checkout has none, and nothing is installed over it."""
    try:
        lines = _RECORD.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        name, _, size = line.rsplit(",", 2)
        package = name.partition("/")[0]
        if package not in (*PACKAGES, "mythos_export") or not size:  # what was compiled has no size
            continue
        try:
            actual = os.stat(_ROOT / name).st_size
        except OSError:
            raise BrokenInstallation(f"{_ROOT / name}: missing; {_remedy(package)}") from None
        if actual != int(size):
            raise BrokenInstallation(
                f"{_ROOT / name}: not the file that mythos-export {__version__} brought; {_remedy(package)}"
            )


def _remedy(package: str) -> str:
    """What to run, and which distributions to keep apart from this one."""
    from importlib import metadata  # slow, and wanted by nobody whose installation is whole

    others = sorted(set(metadata.packages_distributions().get(package, ())) - {"mythos-export"})
    if not others:
        return f"run: {_REINSTALL}"
    return f"{', '.join(others)} has a package {package} too; use another environment for it, and run: {_REINSTALL}"


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))
