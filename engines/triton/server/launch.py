"""Starts the Triton server that nvidia-pytriton brings over a model repository, and ends it with whoever started it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from engines.errors import EngineError
from engines.triton.server import watchdog
from engines.triton.server.installation import Installation, find_installation
from engines.triton.server.processes import dead_models

__all__ = ["CONTROL_HEADER", "NO_TELEMETRY", "Ports", "TritonServer", "list_models"]

# For HTTP as it is; gRPC's own setting puts the first part before a name by itself.
_GRPC_PREFIX = "triton-grpc-protocol-"
CONTROL_HEADER = f"{_GRPC_PREFIX}mythos-control"

# Whoever may load a model may run any program on this machine, and a registered region is memory of the server's own
# processes; a web page can make a browser ask for either. These want a header that only the starter knows.
_GUARDED = "model-repository,shared-memory,trace,logging"

# ONNX Runtime 1.32 sends what it is used for to its maker, unless told not to before it is imported.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}

_START_TIMEOUT = 600.0  # seconds; hashing and loading hundreds of gigabytes takes minutes
_ANSWER_TIMEOUT = 5.0
_POLL = 0.1
_HEALTH_POLL = 1.0
_KEPT_LINES = 400
_HEADER = re.compile(r"^([IWEFV])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+\] ?(.*)$")
_NO_GPU = ("CudaDriverHelper has not been initialized", "pinned system memory", "CUDA memory pool disabled")


class Ports(NamedTuple):
    """Where to listen; 0 is any free port."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class TritonServer:
    """A running server with every model of its repository ready; leave the context, or `close`, to stop it.

    Attributes:
        ports: where it listens.
        http_url, grpc_url, metrics_url: "http://host:port", "host:port" and "http://host:port/metrics".
        control: the header that loading, unloading, tracing and shared memory want, as {name: value}.
        process: what runs the server and ends with it, and the server with this process.
        models: their names.
    """

    def __init__(self, repository: Path, host: str, ports: Ports, scratch: Path) -> None:
        """Use `start`."""
        self.repository, self.models, self.ports = repository, list_models(repository), ports
        named = f"[{host}]" if ":" in host else host
        self.http_url = f"http://{named}:{ports.http}"
        self.grpc_url = f"{named}:{ports.grpc}"
        self.metrics_url = f"http://{named}:{ports.metrics}/metrics"
        self.control = {CONTROL_HEADER: secrets.token_urlsafe(16)}
        self.process: subprocess.Popen[bytes]
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader: threading.Thread
        self._closing = False
        self._scratch = scratch
        self._prefix = f"mythos-triton-{secrets.token_hex(8)}-"  # of shared memory

    @classmethod
    def start(
        cls,
        repository: str | Path,
        *,
        host: str = "127.0.0.1",
        ports: Ports = Ports(),  # noqa: B008  (immutable)
        log_verbose: bool = False,
        on_line: Callable[[str], None] | None = None,
        scratch: Path | None = None,
    ) -> TritonServer:
        """Start it, and wait for the server and all of its models.

        Args:
            repository: a folder of models, each with its config.pbtxt.
            host: address to listen at; whoever reaches it can use the models.
            log_verbose: let the server log all it can.
            on_line: called, from another thread, with each line of the log that says something is wrong, and
                with what the models print; with every line if `log_verbose`.
            scratch: a folder to use and to remove at the end, however that comes; a temporary one by default.

        Raises:
            EngineError: there is no server here, it does not start, or a model does not load; in the server's words.
        """
        scratch = scratch or Path(tempfile.mkdtemp(prefix="mythos-triton-"))
        try:
            repository = Path(repository).absolute()
            server = cls(repository, host, _free_ports(host, ports), scratch)
            server._launch(find_installation(), host, log_verbose, on_line)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        try:
            server._wait_until_ready()
        except BaseException:
            server.close()
            raise
        return server

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def log(self) -> list[str]:
        """The last lines of the server's log."""
        return list(self._log)

    @property
    def reason(self) -> str:
        """Why it ended or does not start, in one line: of all it logged, a model's own error first."""
        lines = [found.groups() for found in map(_HEADER.match, self._log) if found]
        errors = [text.strip('"') for severity, text in lines if severity in "EF" and not _is_no_gpu(text)]
        loading = [text for text in errors if text.startswith("failed to load")]
        printed = [line for line in self._log if not _HEADER.match(line)]
        said = [*loading, *errors, *reversed(printed)]
        return next((" ".join(text.split())[:500] for text in said if text.strip()), "it said nothing")

    def model_config(self, name: str) -> dict[str, Any]:
        """The configuration that a model was loaded with."""
        with _open(f"{self.http_url}/v2/models/{name}/config") as answer:
            return json.load(answer)

    def wait(self) -> str:
        """Until it can no longer serve; why."""
        dead: frozenset[int] = frozenset()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_HEALTH_POLL)
                return f"the Triton server ended by itself (exit code {code}): {self.reason}"
            before, dead = dead, dead_models(self.process.pid)
            if before & dead:
                return f"a model's process has ended, so its requests fail: {self.reason}"

    def close(self) -> None:
        """Stop it: requests under way may end, for a few seconds. An interruption ends it at once."""
        self._closing = True
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait()
        except KeyboardInterrupt:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        self._reader.join(_ANSWER_TIMEOUT)
        watchdog.remove_traces(str(self._scratch), self._prefix)  # should the watchdog itself have been killed

    def _launch(
        self,
        found: Installation,
        host: str,
        log_verbose: bool,
        on_line: Callable[[str], None] | None,
    ) -> None:
        ports = Ports(*(_port(url) for url in (self.http_url, self.grpc_url, self.metrics_url)))
        guard = f"{CONTROL_HEADER}={self.control[CONTROL_HEADER]}"
        arguments = {
            "model-repository": self.repository,
            "backend-directory": _link_backend(found, self._scratch),
            "backend-config": f"python,shm-region-prefix-name={self._prefix}",
            "model-control-mode": "explicit",
            "load-model": "*",
            "http-address": host,
            "grpc-address": host,
            "metrics-address": host,
            "http-port": ports.http,
            "grpc-port": ports.grpc,
            "metrics-port": ports.metrics,
            "http-restricted-api": f"{_GUARDED}:{guard}",
            "grpc-restricted-protocol": f"{_GUARDED}:{guard.removeprefix(_GRPC_PREFIX)}",
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            "exit-timeout-secs": 10,
            "log-info": str(log_verbose).lower(),
            "log-verbose": int(log_verbose),
        }
        command = [str(found.server), *(f"--{name}={value}" for name, value in arguments.items())]
        assert watchdog.__file__ is not None
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, str(self._scratch), self._prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(found, self._scratch),
            cwd=self._scratch,  # the models' Python looks for packages there first
            start_new_session=True,  # Ctrl-C is for us alone
        )
        self._reader = threading.Thread(target=self._read_log, args=(log_verbose, on_line), daemon=True)
        self._reader.start()

    def _read_log(self, everything: bool, on_line: Callable[[str], None] | None) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = "".join(letter if letter.isprintable() else " " for letter in raw.decode(errors="replace").rstrip())
            self._log.append(line)
            if on_line is not None and (everything or (_matters(line) and not self._closing)):
                on_line(line)
        self.process.stdout.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        urls = [
            f"{self.http_url}/v2/health/ready",
            *(f"{self.http_url}/v2/models/{name}/ready" for name in self.models),
        ]
        while not all(map(_answers, urls)):
            if self.process.poll() is not None:
                self._reader.join()
                raise EngineError(f"the Triton server did not start: {self.reason}")
            if time.monotonic() > deadline:
                raise EngineError(f"the Triton server was not ready after {_START_TIMEOUT:.0f} s: {self.reason}")
            time.sleep(_POLL)


def list_models(repository: Path) -> list[str]:
    """Names of the models of a repository.

    Raises:
        EngineError: there are none.
    """
    try:
        models = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    except OSError as error:
        raise EngineError(f"{repository}: cannot be read ({error.strerror or error})") from error
    if not models:
        raise EngineError(f"{repository}: not a model repository (no folder in it has a config.pbtxt)")
    return models


def _link_backend(found: Installation, scratch: Path) -> Path:
    """A folder of backends with the stub of this Python: the wheel has it elsewhere, one for each release."""
    folder = scratch / "backends" / "python"
    folder.mkdir(parents=True)
    for path in (*found.backend.glob("*.so"), *found.backend.glob("*.py"), found.stub):
        (folder / path.name).symlink_to(path)
    if found.libpython is not None:  # its own folder may hold libraries that the server must not get
        (scratch / "lib").mkdir()
        (scratch / "lib" / found.libpython.name).symlink_to(found.libpython)
    return folder.parent


def _environment(found: Installation, scratch: Path) -> dict[str, str]:
    """The stub finds its Python as the first `python3` of PATH."""
    libraries = [str(scratch / "lib"), str(found.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": ":".join(path),
        "PYTHONUNBUFFERED": "1",
        **NO_TELEMETRY,
    }


def _free_ports(host: str, ports: Ports) -> Ports:
    """The ports asked for, and others for those that are 0.

    Raises:
        EngineError: one is taken, or `host` is no address of this machine.
    """
    with contextlib.ExitStack() as held:  # all at once, so that they differ
        return Ports(*(held.enter_context(_bound(host, name, port)) for name, port in ports._asdict().items()))


@contextlib.contextmanager
def _bound(host: str, name: str, port: int) -> Iterator[int]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise EngineError(f"--host {host}: no address of this machine ({error})") from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()  # where two may bind, only one may listen
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise EngineError(f"--host {host}: no address of this machine") from error
            raise EngineError(
                f"--{name}-port {port} at {host} cannot be used ({error.strerror or error}); "
                "choose another, or 0 for any that is free"
            ) from error
        yield listener.getsockname()[1]


def _port(url: str) -> int:
    return int(url.removesuffix("/metrics").rpartition(":")[2])


def _open(url: str) -> Any:
    """Never by way of a proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=_ANSWER_TIMEOUT)


def _answers(url: str) -> bool:
    try:
        with _open(url) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _matters(line: str) -> bool:
    """Whether a line is a warning, an error, or no line of the server's own: then a model printed it."""
    if not line.strip() or _is_no_gpu(line):
        return False
    found = _HEADER.match(line)
    return found is None or found[1] in "WEF"


def _is_no_gpu(line: str) -> bool:
    return any(said in line for said in _NO_GPU)
