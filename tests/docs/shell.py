"""A working folder in which the commands of a page run, one after another."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import Served

from mythos_export import cli
from tests.docs.pages import ROOT, Block

__all__ = ["Shell", "missing_for"]

_TIMEOUT = 1800.0  # seconds of one command
_ACTIVATE = ". .venv/bin/activate"  # of the environment that runs the tests
_ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")

# What a machine that runs tests may lack: how such a command begins, and the module it wants.
_WANTS = {
    "mythos-export build ": "tensorrt_rtx",
    "python -m tools.measure_build ": "tensorrt_rtx",
    "polygraphy ": "polygraphy",
    "python -m tools.benchmark ": "matplotlib",
    "python -m tools.write_goldens ": "polygraphy",
}


def missing_for(block: Block) -> list[str]:
    """Modules that a block's commands want and this environment lacks."""
    import importlib.util

    wanted = {module for line in block.commands for start, module in _WANTS.items() if line.startswith(start)}
    return sorted(module for module in wanted if importlib.util.find_spec(module) is None)


class Shell:
    """Runs a page's lines, in its own folder.

    `mythos-export` runs in this process, so that a model is traced once for all pages; `serve` in the environment that
    serves, on free ports; the rest in bash.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        """`request` gives the environment that serves, once it is asked for."""
        self._folder, self._monkeypatch, self._request = folder, monkeypatch, request
        self._work, self._commands = folder / "work", folder / "bin"
        self._work.mkdir()
        self._commands.mkdir()
        for name, module in (("mythos-export", "-m mythos_export"), ("python", "")):
            script = self._commands / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            script.chmod(0o755)
        monkeypatch.chdir(self._work)
        here = [str(self._commands), str(Path(sys.executable).parent), os.environ["PATH"]]
        monkeypatch.setenv("PATH", os.pathsep.join(here))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("COLUMNS", raising=False)
        self._server: Served | None = None

    def run(self, line: str) -> str:
        """Run one line to its end (a server: until it serves); what it printed on both streams."""
        if line == _ACTIVATE:
            return ""
        if line.startswith("make "):
            return self._make(line)
        if line == "pre-commit install":  # it would change the checkout
            return self._check_pre_commit()
        if line.startswith("mythos-export serve "):
            return self._serve(line)
        if line.startswith("mythos-export ") and not re.search(r"&&|\||;", line):
            return self._export(line)
        return self._bash(line)

    def write(self, name: str, text: str) -> None:
        """A file in the working folder."""
        (self._work / name).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Ctrl-C to a server, if one runs; what was made is removed, for pytest would keep its gigabytes."""
        try:
            self._end_server()
        finally:
            shutil.rmtree(self._work)

    def _end_server(self) -> None:
        if self._server is None:
            return
        try:
            assert self._server.end() == 0, self._server.errors
        finally:
            self._server.process.kill()  # of nothing, if it has ended
            assert self._server.process.stdout is not None
            self._server.process.stdout.close()

    def _export(self, line: str) -> str:
        words = shlex.split(line)
        to = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if to else words
        printed = io.StringIO()
        out = (self._work / to).open("w", encoding="utf-8") if to else contextlib.nullcontext(printed)
        self._monkeypatch.setattr(sys, "argv", words)
        code: int | str | None = None
        with out as stdout, contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(printed):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
        assert not code, f"{line}\nexit code {code}\n{printed.getvalue()}"
        return printed.getvalue()

    def _bash(self, line: str) -> str:
        if self._server is not None:
            line = _ADDRESS.sub(self._server.http, line)
        ran = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", line],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
        )
        assert ran.returncode == 0, f"{line}\nexit code {ran.returncode}\n{ran.stdout}"
        return ran.stdout

    def _make(self, line: str) -> str:
        """Every target must be there; of `demo` the recipe is run, less the installation that these tests stand in."""
        planned = subprocess.run(
            ["make", "--no-print-directory", "-C", str(ROOT), "-n", *shlex.split(line)[1:]],
            capture_output=True,
            text=True,
            check=True,
        )
        if line != "make demo":
            return ""
        recipe = re.findall(r"(?m)^\S+/bin/(mythos-export .+)$", planned.stdout)
        assert len(recipe) == 2, planned.stdout
        return "".join(self.run(each) for each in recipe)

    @staticmethod
    def _check_pre_commit() -> str:
        assert '"pre-commit' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert (ROOT / ".pre-commit-config.yaml").exists()
        return ""

    def _serve(self, line: str) -> str:
        environment: Path = self._request.getfixturevalue("serving_environment")
        temporary = self._folder / "tmp"
        temporary.mkdir()
        words = [*shlex.split(line)[1:], "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (self._folder / "stderr").open("w") as errors:
            process = subprocess.Popen(
                [environment / "mythos-export", *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**env, "TMPDIR": str(temporary)},
            )
        self._server = Served(process, temporary, self._folder / "stderr")
        self._server.read_announcement()
        return "".join(f"{line}\n" for line in self._server.lines)
