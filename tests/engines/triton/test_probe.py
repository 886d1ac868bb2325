"""The probe, against servers that answer, refuse, say nothing, or are not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engines.triton.probe import main

Answers = Callable[..., list[str]]


@pytest.fixture
def server() -> Iterator[Any]:
    """A stand-in: `says[model]` is a status and a text, or None for no answer; `counts[model]` its tokens, made up."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked == {"input_ids": [0], "n_loops": 1, "max_tokens": 1}
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
def probe(server: Any) -> Callable[[str], int]:
    url = f"http://127.0.0.1:{server.server_port}"
    return lambda models: main(["--models", models, "--http", url, "--metrics", f"{url}/metrics", "--timeout", "0.3"])


TOKEN = (200, '{"output_ids": 5}')


def moving() -> Callable[[], int]:
    numbers = iter(range(1000))
    return lambda: next(numbers)


@pytest.mark.parametrize(
    ("said", "count", "code", "trouble"),
    [
        (TOKEN, None, 0, ""),
        ((503, '{"error": "the queue is full (9 wait); try again later"}'), None, 0, ""),
        ((200, '{"error": "x"}'), None, 1, "a: no token in its answer"),
        ((200, "nonsense"), None, 1, "a: no token in 0.3 s"),
        ((500, '{"error": "the stub is not healthy"}'), None, 1, "a: 500 "),
        ((400, '{"error": "unknown model"}'), moving, 1, "a: 400 "),
        (None, None, 1, "a: no token in 0.3 s"),
        (None, lambda: lambda: 7, 1, "a: no token in 0.3 s"),
        (None, moving, 0, ""),
    ],
    ids=["token", "full", "error in 200", "nonsense", "dead", "unknown", "silent", "stuck", "busy"],
)
def test_one_model(
    server: Any, probe: Callable[[str], int], capsys: Any, said: Any, count: Any, code: int, trouble: str
) -> None:
    server.says, server.counts = {"a": said}, {"a": count()} if count else {}
    assert probe("a") == code
    assert trouble in capsys.readouterr().err


def test_one_dead_model_of_two(server: Any, probe: Callable[[str], int], capsys: Any) -> None:
    """Progress of another is not its own."""
    server.says, server.counts = {"a": TOKEN, "a.b": None}, {"a": moving(), "a.b": lambda: 3, "aXb": moving()}
    assert probe("a,a.b") == 1
    assert capsys.readouterr().err.splitlines() == ["error: a.b: no token in 0.3 s (timed out)"]


def test_no_server(capsys: Any) -> None:
    nowhere = "http://127.0.0.1:9"
    assert main(["--models", "a", "--http", nowhere, "--metrics", nowhere]) == 1
    assert capsys.readouterr().err.startswith("error: a: no token in 15 s (<urlopen error")
