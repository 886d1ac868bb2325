"""A real Triton server, started as a user starts it, from an environment that has neither torch nor onnx."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Served

from mythos_export.bundle import Bundle

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 120.0  # seconds; a server that has not spoken by then never will


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def environment() -> Path:
    """The `bin` of an environment with `mythos-export[cpu,triton]`; `make test` makes it."""
    folder = Path(os.environ.get("MYTHOS_TRITON_ENV", ROOT / ".venv-triton")) / "bin"
    if not (folder / "mythos-export").exists():
        reason = f"no {folder}/mythos-export; run `make test`, or set MYTHOS_TRITON_ENV (needs Python 3.10 to 3.12)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def run_there(environment: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mythos-export` in that environment."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        command = [environment / "mythos-export", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT, **options)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture(scope="session")
def serve(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start `mythos-export serve ...` and wait until it serves; ended with the tests, if not before."""
    started: list[Served] = []

    def start(*arguments: str | Path, wait: bool = True) -> Served:
        folder = tmp_path_factory.mktemp("serve")
        (folder / "tmp").mkdir()
        (folder / "work").mkdir()
        for name in ("engines.py", "mythos_export.py"):  # of the user's own, and not to be run
            (folder / "work" / name).write_text("raise SystemExit('the wrong code ran')")
        ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
        with (folder / "stderr").open("w") as errors:
            process = subprocess.Popen(
                [environment / "mythos-export", "serve", *arguments, *ports],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "TMPDIR": str(folder / "tmp")},
                cwd=folder / "work",
            )
        started.append(Served(process, folder / "tmp", folder / "stderr"))
        if wait:
            started[-1].read_announcement()
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end()
        assert each.process.stdout is not None
        each.process.stdout.close()


@pytest.fixture(scope="session")
def repository(
    tiny_bundle: Path, tiny_gqa_bundle: Path, half_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository with an MLA bundle, a GQA bundle and one in bfloat16: mla, gqa, half, and each with -tensors."""
    from engines.triton.repository.write import write_repository

    folder = tmp_path_factory.mktemp("models") / "repository"
    for name, path in (("mla", tiny_bundle), ("gqa", tiny_gqa_bundle), ("half", half_bundle)):
        write_repository(Bundle.open(path), folder, backend="python", name=name)
    return folder


@pytest.fixture(scope="session")
def half_bundle(make_bundle, mla_config) -> Path:  # type: ignore[no-untyped-def]
    """An exported MLA bundle in bfloat16."""
    return make_bundle(mla_config, precision="bf16").path


@pytest.fixture(scope="session")
def server(serve: Serve, repository: Path) -> Served:
    """One server for all tests that only ask it; do not end it."""
    return serve("--repository", repository)
