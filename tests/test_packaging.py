"""The wheel in a fresh environment: whole, and never another package's code under one of its names."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from mythos_export import __version__
from mythos_export.installation import PACKAGES

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"mythos_export", *PACKAGES}
WRONG = 'print("the wrong code ran")\nraise SystemExit(3)\n'
LOAD = "import mythos_export, sys\nmythos_export.load(sys.argv[1] if len(sys.argv) > 1 else 'none')\nprint('loaded')\n"


class Environment(NamedTuple):
    """A virtual environment without anything but what was installed into it, and the libraries of this one."""

    python: Path
    script: Path
    packages: Path

    def run(self, *command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, with nothing of this checkout on Python's path."""
        values = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
        return subprocess.run(
            [str(word) for word in command], cwd=cwd, env=values, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; offline where hatchling is installed, as it is by `make test`."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip(sys.executable, "wheel", "--no-deps", *isolation, "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel installed; do not change it."""
    return environment(tmp_path_factory.mktemp("installed"), wheel)


def environment(folder: Path, *wheels: Path, removed: str | None = None) -> Environment:
    """A new environment with these wheels, installed one after the other, less what is removed again."""
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    paths = {name: Path(sysconfig.get_path(name, "venv", {"base": str(folder)})) for name in ("scripts", "purelib")}
    python = paths["scripts"] / "python"
    for each in wheels:
        pip(python, "install", "--no-deps", "--no-index", each)
    if removed is not None:
        pip(python, "uninstall", "--yes", removed)
    (paths["purelib"] / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # last: pip is to see none of them
    return Environment(python, paths["scripts"] / "mythos-export", paths["purelib"])


def pip(python: str | Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr


def foreign_wheel(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """A wheel of somebody else's distribution."""
    info = f"{name}-9.0.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: hashlib.sha256(text.encode()).digest() for path, text in contents.items()}
    hashes = {path: base64.urlsafe_b64encode(digest).rstrip(b"=").decode() for path, digest in digests.items()}
    record = [f"{path},sha256={hashes[path]},{len(text)}" for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    file = folder / f"{name}-9.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return file


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    """What a command that must be refused says."""
    assert (ran.returncode, ran.stdout) == (2, ""), ran
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
    return ran.stderr


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"mythos_export-{__version__}.dist-info/")}
        entry_points = archive.read(f"mythos_export-{__version__}.dist-info/entry_points.txt").decode()
    files = (path for package in TOP_LEVEL for path in (ROOT / package).rglob("*") if path.is_file())
    assert names == {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert {f"{package}/py.typed" for package in TOP_LEVEL} <= names
    assert "mythos-export = mythos_export.__main__:main" in entry_points


def test_it_works_where_it_is_installed(installed: Environment, tiny_bundle: Path, tmp_path: Path) -> None:
    """Files that are no Python too: nano's weights and tokenizer, the list of devices, the report's style."""
    for command in (
        ("inspect", tiny_bundle),
        ("plan", "--scale", "nano", "--device", "jetson-orin-nano-8gb"),
        ("report", tiny_bundle, "--json"),
    ):
        ran = installed.run(installed.script, *command, cwd=tmp_path)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    nano = "from reference_model.open_mythos import nano; "
    nano += "assert nano.CHECKPOINT.is_file() and nano.CONFIG.is_file(); print(nano)"
    ran = installed.run(installed.python, "-c", nano, cwd=tmp_path)
    assert str(installed.packages) in ran.stdout, ran.stderr


class TestInstalledOver:
    """Another distribution has a package of the same name, and pip replaces ours without a word."""

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("engines", "engines/__init__.py"),
            ("engines", "engines/sampling.py"),
            ("calibration", "calibration/__init__.py"),
            ("reference-model", "reference_model/checkpoint.py"),
        ],
    )
    def test_every_way_in_says_so(self, wheel: Path, tiny_bundle: Path, tmp_path: Path, name: str, path: str) -> None:
        broken = environment(tmp_path / "venv", wheel, foreign_wheel(tmp_path, name.replace("-", "_"), {path: WRONG}))
        module = (broken.python, "-m", "mythos_export")
        for command in ((broken.script, "--help"), (*module, "inspect", tiny_bundle)):
            line = one_line(broken.run(*command, cwd=tmp_path))
            assert f"{broken.packages / path}: not the file that mythos-export {__version__} brought" in line
            assert "pip install --force-reinstall --no-deps mythos-export" in line
            assert name in line.replace("_", "-"), "whose it is"
        ran = broken.run(broken.python, "-c", LOAD, tiny_bundle, cwd=tmp_path)
        assert ran.returncode == 1 and "the wrong code ran" not in ran.stdout
        assert ran.stderr.splitlines()[-1].startswith("mythos_export.installation.BrokenInstallation: ")

    def test_removed_again(self, wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        other = foreign_wheel(tmp_path, "engines", {"engines/__init__.py": WRONG})
        broken = environment(tmp_path / "venv", wheel, other, removed="engines")
        line = one_line(broken.run(broken.script, "inspect", tiny_bundle, cwd=tmp_path))
        assert f"{broken.packages / 'engines' / '__init__.py'}: missing; run: pip install" in line

    def test_before_ours(self, wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        """Then ours is what is there."""
        other = foreign_wheel(tmp_path, "engines", {"engines/__init__.py": WRONG, "engines/theirs.py": WRONG})
        whole = environment(tmp_path / "venv", other, wheel)
        ran = whole.run(whole.python, "-c", LOAD, tiny_bundle, cwd=tmp_path)
        assert ran.stdout == "loaded\n", ran.stderr


SHADOWS = ("calibration.py", "reference_model.py", "engines.py", "engines/__init__.py")


class TestWorkingFolder:
    """Files there that have our packages' names."""

    @pytest.fixture(params=SHADOWS)
    def shadow(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        file = tmp_path / "work" / str(request.param)
        file.parent.mkdir(parents=True)
        file.write_text(WRONG)
        return file

    @pytest.fixture
    def folder(self, shadow: Path, tmp_path: Path) -> Path:
        return tmp_path / "work"

    def test_no_harm_to_the_command_line(self, installed: Environment, tiny_bundle: Path, folder: Path) -> None:
        for command in ([installed.script], [installed.python, "-m", "mythos_export"]):
            ran = installed.run(*command, "generate", tiny_bundle, "--tokens", "1,2", "--json", cwd=folder)
            assert (ran.returncode, ran.stderr) == (0, "")
            assert "tokens" in ran.stdout

    def test_on_the_path_itself(self, installed: Environment, shadow: Path, folder: Path) -> None:
        """PYTHONPATH is the user's word: nothing is taken off it, but the command says what is in the way."""
        line = one_line(installed.run(installed.script, "--help", cwd=folder.parent, PYTHONPATH=str(folder)))
        assert f"{shadow} hides mythos-export's own package" in line and "rename it" in line

    @pytest.mark.parametrize("way", ["-c", "script", "pytest"])
    def test_python(self, installed: Environment, tiny_bundle: Path, shadow: Path, folder: Path, way: str) -> None:
        """As in a notebook, whose folder comes first on the path."""
        (folder / "test_it.py").write_text(
            f"def test_it() -> None:\n    import sys\n    sys.argv = ['x', {str(tiny_bundle)!r}]\n    exec({LOAD!r})\n"
        )
        (folder / "program.py").write_text(LOAD)
        command = {
            "-c": ["-c", LOAD],
            "script": ["program.py"],
            "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider"],
        }
        arguments = [] if way == "pytest" else [tiny_bundle]
        ran = installed.run(installed.python, *command[way], *arguments, cwd=folder)
        assert "the wrong code ran" not in ran.stdout
        if shadow.name.startswith(("calibration", "reference_model")):
            assert ran.returncode == 0, ran
        else:
            assert ran.returncode == 1
            assert f"BrokenInstallation: {shadow} hides mythos-export's own package engines" in ran.stdout + ran.stderr

    def test_an_export_from_among_all_of_them(self, installed: Environment, tmp_path: Path) -> None:
        """It imports all there is, and gets to its own complaint."""
        for name in ("calibration.py", "reference_model.py", "engines.py", "torch.py", "typer.py"):
            (tmp_path / name).write_text(WRONG)
        for command in ([installed.script], [installed.python, "-m", "mythos_export"]):
            line = one_line(installed.run(*command, "--scale", "2b", cwd=tmp_path))
            assert "unknown scale '2b'" in line

    def test_folders_that_are_no_packages(self, installed: Environment, tiny_bundle: Path, tmp_path: Path) -> None:
        """Python takes a package anywhere on its path before them."""
        for name in PACKAGES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "mine.txt").touch()
        ran = installed.run(installed.python, "-c", LOAD, tiny_bundle, cwd=tmp_path)
        assert ran.stdout == "loaded\n", ran.stderr

    def test_a_working_folder_that_is_gone(self, installed: Environment, tmp_path: Path) -> None:
        script = 'mkdir gone && cd gone && rmdir ../gone && "$0" -m mythos_export --version'
        ran = installed.run("bash", "-c", script, installed.python, cwd=tmp_path)
        assert ran.stdout == f"mythos-export {__version__}\n", ran.stderr


def test_a_module_imported_before(installed: Environment, tiny_bundle: Path, tmp_path: Path) -> None:
    """One that a program already uses under our name is not taken for ours."""
    (tmp_path / "engines.py").write_text("mine = True\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import engines; del sys.path[0]\n{LOAD}"
    ran = installed.run(installed.python, "-c", code, tiny_bundle, cwd=tmp_path.parent)
    assert f"{tmp_path / 'engines.py'} hides mythos-export's own package engines" in ran.stderr.splitlines()[-1]


def test_importing_is_cheap(installed: Environment, tmp_path: Path) -> None:
    code = "import mythos_export, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = installed.run(installed.python, "-c", code, cwd=tmp_path).stdout.split()
    assert "mythos_export" in loaded
    assert not {"numpy", "pydantic", "onnxruntime", "torch", "typer", *PACKAGES} & set(loaded)
