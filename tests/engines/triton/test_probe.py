"""The probe, against servers that answer, refuse, say nothing, or are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engines.triton.probe import main


@pytest.fixture
def server() -> Iterator[Any]:
    """A stand-in: `says[model]` is a status and a text, or None for no answer; `counts[model]` its tokens, made up."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked == {"input_ids": [0], "max_tokens": 1}
            said = server.says[self.path.split("/")[3]]  # type: ignore[attr-defined]
            if said is None:
                ended.wait(20)
                return
            self.answer(*said)

        def do_GET(self) -> None:
            lines = [
                f'mythos_tokens_total{{model="{name}"}} {count()}'
                for name, count in server.counts.items()  # type: ignore[attr-defined]
            ]
            self.answer(200, "\n".join(lines) + "\n")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def probe(server: Any) -> Callable[..., int]:
    url = f"http://127.0.0.1:{server.server_port}"
    return lambda models, timeout: main(
        ["--models", models, "--http", url, "--metrics", f"{url}/metrics", "--timeout", str(timeout)]
    )


TOKEN = (200, '{"output_ids": 5}')
FULL = (503, '{"error": "the queue is full (9 wait); try again later"}')
AMPLE, SHORT = 5, 0.3  # seconds: where something must come, and where it never does


def moving() -> Callable[[], int]:
    numbers = iter(range(1000))
    return lambda: next(numbers)


def late() -> Callable[[], int]:
    """Moves at the fourth look."""
    looks = iter(range(1000))
    return lambda: int(next(looks) > 2)


def stuck() -> Callable[[], int]:
    return lambda: 7


@pytest.mark.parametrize(
    ("said", "count", "seconds", "code", "trouble"),
    [
        (TOKEN, None, AMPLE, 0, ""),
        (FULL, moving, AMPLE, 0, ""),
        (FULL, late, AMPLE, 0, ""),
        (FULL, stuck, SHORT, 1, "a: the queue is full, and nothing moved in 0.3 s"),
        (FULL, None, SHORT, 1, "a: the queue is full, and nothing moved in 0.3 s"),
        ((200, '{"error": "x"}'), None, AMPLE, 1, "a: no token in its answer"),
        ((200, "7"), None, AMPLE, 1, "a: no token in its answer"),
        ((200, "nonsense"), None, AMPLE, 1, "a: no token in 5 s"),
        ((200, "[" * 100_000), None, AMPLE, 1, "a: no token in 5 s"),
        ((500, '{"error": "the stub is not healthy"}'), None, AMPLE, 1, "a: 500 "),
        ((400, '{"error": "unknown model"}'), moving, AMPLE, 1, "a: 400 "),
        (None, None, SHORT, 1, "a: no token in 0.3 s"),
        (None, stuck, SHORT, 1, "a: no token in 0.3 s"),
        (None, moving, SHORT, 0, ""),
    ],
    ids=[
        *("token", "full", "full for a while", "full and stuck", "full without counters", "error in 200", "a number"),
        *("nonsense", "nested too deep", "dead", "unknown", "silent", "stuck", "busy"),
    ],
)
def test_one_model(
    server: Any, probe: Callable[..., int], capsys: Any, said: Any, count: Any, seconds: float, code: int, trouble: str
) -> None:
    server.says, server.counts = {"a": said}, {"a": count()} if count else {}
    assert probe("a", seconds) == code
    assert trouble in capsys.readouterr().err


def test_one_dead_model_of_two(server: Any, probe: Callable[..., int], capsys: Any) -> None:
    """Progress of another is not its own."""
    server.says, server.counts = {"a": TOKEN, "a.b": None}, {"a": moving(), "a.b": lambda: 3, "aXb": moving()}
    assert probe("a,a.b", 1) == 1
    assert capsys.readouterr().err.splitlines() == ["error: a.b: no token in 1 s (timed out)"]


def test_a_refusal_that_breaks_off(
    server: Any, probe: Callable[..., int], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(*_: Any) -> bytes:
        raise ConnectionResetError("reset by peer")

    server.says, server.counts = {"a": (500, "x")}, {}
    monkeypatch.setattr(urllib.error.HTTPError, "read", reset, raising=False)
    assert probe("a", AMPLE) == 1
    assert capsys.readouterr().err.splitlines() == ["error: a: 500 (reset by peer)"]


def test_a_proxy_is_not_asked(server: Any) -> None:
    """In a process of its own: which proxies there are is read when an opener is made."""
    server.says, server.counts = {"a": TOKEN}, {}
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-m", "engines.triton.probe", "--models", "a", "--http", url, "--metrics", url]
    proxied = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    assert subprocess.run(command, env=proxied, check=False).returncode == 0


def test_no_server(capsys: Any) -> None:
    nowhere = "http://127.0.0.1:9"
    assert main(["--models", "a", "--http", nowhere, "--metrics", nowhere]) == 1
    assert capsys.readouterr().err.startswith("error: a: no token in 10 s (<urlopen error")
