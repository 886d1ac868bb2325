"""The generator in a real server: many clients at once, rude ones, and the tokens of the engine in process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton
from served import Served, eventually

import engines
from engines.triton.probe import main as probed
from mythos_export.cli import main

KINDS = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "bool": "BOOL", "uint64": "UINT64", "object": "BYTES"}
TYPES = {
    "n_loops": np.int64,
    "max_tokens": np.int32,
    "top_k": np.int32,
    "end_id": np.int32,
    "temperature": np.float32,
    "top_p": np.float32,
    "seed": np.uint64,
    "stream": np.bool_,
    "text_input": np.object_,
    "return_num_input_tokens": np.bool_,
    "return_num_output_tokens": np.bool_,
}


class Answer(NamedTuple):
    """What came back for one request over gRPC."""

    ids: list[int]
    responses: int
    reason: str
    error: str


class Stream:
    """A client with a gRPC stream of its own."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)
        self._results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client.start_stream(callback=lambda result, error: self._results.put((result, error)))

    def send(self, model: str, ids: list[int] | None, **options: Any) -> None:
        arrays = {name: np.array([[value]], TYPES[name]) for name, value in options.items()}
        if ids is not None:
            arrays["input_ids"] = np.array([ids], np.int64).reshape(1, -1)
        inputs = []
        for name, array in arrays.items():
            inputs.append(triton.InferInput(name, list(array.shape), KINDS[array.dtype.name]))
            inputs[-1].set_data_from_numpy(array)
        self._client.async_stream_infer(model, inputs, enable_empty_final_response=True)

    def next(self) -> tuple[Any, Any]:
        return self._results.get(timeout=60)

    def answer(self) -> Answer:
        ids: list[int] = []
        responses, reason = 0, ""
        while True:
            result, error = self.next()
            if error is not None:
                return Answer(ids, responses, reason, error.message())
            if (tokens := result.as_numpy("output_ids")) is not None:
                ids += tokens[0].tolist()
                responses += 1
                reason = reason or result.as_numpy("finish_reason")[0, 0].decode()
            if result.get_response().parameters["triton_final_response"].bool_param:
                return Answer(ids, responses, reason, "")

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


@pytest.fixture(scope="module")
def mla(tiny_bundle: Path) -> engines.Engine:
    """What the server's model `mla` must equal."""
    return engines.load(tiny_bundle, threads=1)


@pytest.fixture
def stream(server: Served) -> Any:
    """One gRPC client."""
    client = Stream(server.grpc)
    yield client
    client.close()


def post(served: Served, path: str, body: Any, model: str = "mla") -> tuple[int, str]:
    """Status and body of an answer over HTTP."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{served.http}/v2/models/{model}/{path}", content)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def generate(served: Served, model: str = "mla", **body: Any) -> dict[str, Any]:
    status, text = post(served, "generate", body, model)
    assert status == 200, text
    return json.loads(text)


def measured(served: Served, name: str, model: str = "mla") -> float:
    """One of the generator's own metrics."""
    with urllib.request.urlopen(served.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f'mythos_{name}{{model="{model}"}}'))


def idle(served: Served) -> bool:
    return not any(measured(served, name) for name in ("running", "waiting", "cache_bytes"))


@pytest.mark.parametrize("loops", [1, 4, 9])
def test_generate(server: Served, mla: engines.Engine, loops: int) -> None:
    answer = generate(server, input_ids=[5, 6, 7], n_loops=loops, max_tokens=12)
    assert answer["output_ids"] == list(mla.generate([5, 6, 7], loops, max_new_tokens=12))
    assert answer["finish_reason"] == "length" and len(answer["halting_depth"]) == 12


def test_generate_stream(server: Served, mla: engines.Engine) -> None:
    body = {"input_ids": [5, 6, 7], "n_loops": 3, "max_tokens": 6, "stream": True}
    status, text = post(server, "generate_stream", body)
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
    assert status == 200 and len(events) == 7
    # Triton writes a list of one as the one
    assert [event["output_ids"] for event in events[:6]] == list(mla.generate([5, 6, 7], 3, max_new_tokens=6))
    assert [event["finish_reason"] for event in events] == [*[""] * 6, "length"]


def test_what_is_not_asked_for_is_the_models_own(server: Served, mla: engines.Engine) -> None:
    answer = generate(server, input_ids=[9], max_tokens=5)
    assert answer["output_ids"] == list(mla.generate([9], mla.default_loops, max_new_tokens=5))


def test_options_as_parameters(server: Served, mla: engines.Engine) -> None:
    answer = generate(server, input_ids=[9], parameters={"n_loops": 2, "max_tokens": 5, "seed": 3, "temperature": 2.5})
    assert answer["output_ids"] == list(mla.generate([9], 2, max_new_tokens=5, seed=3, temperature=2.5))


def test_concurrent_streams_of_all_depths_and_lengths(server: Served) -> None:
    """Each gets, token by token, what it would get alone; none is lost."""
    draw = np.random.default_rng(0)
    cases = [
        (
            draw.integers(97, size=int(draw.integers(1, 60))).tolist(),
            {"n_loops": int(draw.integers(1, 13)), "max_tokens": int(draw.integers(1, 60)), "stream": True}
            | ({"temperature": 1.5, "seed": index, "top_k": 20} if index % 3 == 0 else {}),
        )
        for index in range(40)
    ]
    answers: dict[int, Answer] = {}
    together: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            together.append(measured(server, "running"))

    def client(index: int) -> None:
        ids, options = cases[index]
        connection = Stream(server.grpc)
        connection.send("mla", ids, **options)
        answers[index] = connection.answer()
        connection.close()

    watcher = threading.Thread(target=watch)
    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(cases))]
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join(120)
    over.set()
    watcher.join()
    assert 1 < max(together) <= 16, "they do run together"  # a gauge, looked at now and then
    for index, (ids, given) in enumerate(cases):
        alone = generate(server, input_ids=ids, **{**given, "stream": False})["output_ids"]
        alone = alone if isinstance(alone, list) else [alone]  # Triton writes a list of one as the one
        assert len(alone) == given["max_tokens"]
        assert answers[index] == Answer(alone, len(alone) + 1, "length", ""), index
    assert eventually(lambda: idle(server))


@pytest.mark.parametrize("stream", [False, True])
def test_counts_of_tokens(stream: bool, server: Served) -> None:
    connection = Stream(server.grpc)
    asked = {"return_num_input_tokens": True, "return_num_output_tokens": True, "stream": stream}
    connection.send("mla", [5, 6, 7], n_loops=2, max_tokens=4, **asked)
    counts = []
    while True:
        result, error = connection.next()
        assert error is None
        if result.as_numpy("output_ids") is not None:
            assert result.as_numpy("num_input_tokens").tolist() == [[3]]
            counts.append(result.as_numpy("num_output_tokens").item())
            assert counts[-1] == result.as_numpy("output_ids").size
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    connection.close()
    assert counts == ([1, 1, 1, 1, 0] if stream else [4])


def test_both_models_at_once(server: Served, mla: engines.Engine, tiny_gqa_bundle: Path) -> None:
    gqa = engines.load(tiny_gqa_bundle, threads=1)
    streams = {name: Stream(server.grpc) for name in ("gqa", "mla")}  # one each: answers of two would mix on one
    for name, stream in streams.items():
        stream.send(name, [1, 2], n_loops=4, max_tokens=9, stream=True)
    for name, engine in (("gqa", gqa), ("mla", mla)):
        assert streams[name].answer().ids == list(engine.generate([1, 2], 4, max_new_tokens=9))
        streams[name].close()


def test_a_cancelled_request_stops(server: Served) -> None:
    connection = Stream(server.grpc)
    before = measured(server, "tokens_total")
    connection.send("mla", [1], n_loops=24, max_tokens=255, stream=True)
    connection.next()
    connection.cancel()
    assert eventually(lambda: measured(server, "tokens_total") > before)  # metrics lag behind the first token
    assert eventually(lambda: idle(server))
    assert measured(server, "tokens_total") - before < 255


def test_a_client_that_vanishes_frees_its_cache(server: Served) -> None:
    """Its socket closes in the middle of a stream, without a word."""
    host, port = server.http.removeprefix("http://").split(":")
    before = measured(server, "tokens_total")
    body = json.dumps({"input_ids": [1], "n_loops": 24, "max_tokens": 255, "stream": True}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v2/models/mla/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert connection.recv(64)
    assert eventually(lambda: measured(server, "tokens_total") > before)  # metrics lag behind the first token
    assert eventually(lambda: idle(server))
    assert measured(server, "tokens_total") - before < 255


KILLED = """
import sys, time
sys.path[:0] = [{tests!r}, {here!r}]
from test_generating import Stream
stream = Stream({address!r})
stream.send("mla", [1], n_loops=24, max_tokens=255, stream=True)
stream.next()
print("streaming", flush=True)
time.sleep(60)
"""


def test_a_killed_grpc_client_frees_its_cache(server: Served) -> None:
    """Nobody says goodbye: the kernel closes its socket."""
    before = measured(server, "tokens_total")
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here.parent), here=str(here), address=server.grpc)
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline() == "streaming\n"
    client.kill()
    client.communicate()
    assert eventually(lambda: measured(server, "tokens_total") > before)  # metrics lag behind the first token
    assert eventually(lambda: idle(server))
    assert measured(server, "tokens_total") - before < 255


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input_ids": [97]}, "token id 97"),
        ({"input_ids": [-1]}, "token id -1"),
        ({"input_ids": [1] * 257}, "257 tokens, more than max_seq_len 256"),
        ({"input_ids": [1], "max_tokens": 256}, "exceed max_seq_len 256"),
        ({"input_ids": [1], "n_loops": 25}, "loops is 25"),
        ({"input_ids": [1], "n_loops": 2**31 - 1}, "loops is 2147483647"),
        ({"input_ids": [1], "n_loops": 2**40}, "loops is 1099511627776"),
        ({"input_ids": [1], "n_loops": 0}, "loops is 0"),
        ({"input_ids": [1], "n_loop": 3}, "parameter 'n_loop' is unknown"),
        ({"input_ids": [1], "temperature": -1}, "temperature is -1"),
        ({"input_ids": ["one"]}, "parse"),
        ({"text_input": "hello"}, "no tokenizer; give input_ids"),
        ({"max_tokens": 3}, "give either text_input or input_ids"),
        ({}, "request has 0 inputs"),
        (b"{", "parse"),
        (b"\xff\xfe", "parse"),
        (b'{"input_ids": [1], "\xff": 1}', '{"error":"the name of a parameter is not valid UTF-8"}'),
        ({"text_input": "a" * 5_000_000}, "no tokenizer; give input_ids"),  # as a form, which is urllib's default
    ],
)
def test_a_bad_request_is_refused_and_the_server_lives_on(
    server: Served, mla: engines.Engine, body: Any, message: str
) -> None:
    status, text = post(server, "generate", body)
    by_triton = message in ("parse", "request has 0 inputs")
    assert (status, message in text) == (400 if not by_triton else status, True), text
    assert status in (400, 500)  # what Triton itself cannot parse is a 500
    answer = generate(server, input_ids=[3], n_loops=2, max_tokens=2)
    assert answer["output_ids"] == list(mla.generate([3], 2, max_new_tokens=2))


def test_a_bad_request_over_grpc(stream: Stream) -> None:
    stream.send("mla", [97], max_tokens=3)
    assert "token id 97" in stream.answer().error
    stream.send("mla", [], max_tokens=3)
    assert "empty" in stream.answer().error
    stream.send("mla", [3], max_tokens=3)
    assert len(stream.answer().ids) == 3


def test_text_in_and_out(nano_served: Served) -> None:
    """nano's own task: three hops from a."""
    prompt = "d>a h>c a>h f>g c>e g>b b>d e>f 3 a"
    name = nano_served.lines[0].split(":")[0]
    deep = json.loads(post(nano_served, "generate", {"text_input": prompt, "n_loops": 8, "max_tokens": 1}, name)[1])
    assert deep["text_output"] == " e"
    options = {"text_input": prompt, "n_loops": 8, "max_tokens": 16, "stop_words": "b", "return_num_input_tokens": True}
    stopped = json.loads(post(nano_served, "generate", options, name)[1])
    assert "b" not in stopped["text_output"] and stopped["num_input_tokens"] == 10


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_a_stop_word_across_tokens(nano_served: Served, path: str) -> None:
    prompt, name = "d>a h>c a>h f>g c>e g>b b>d e>f 3 a", nano_served.lines[0].split(":")[0]
    options = {"text_input": prompt, "n_loops": 8, "max_tokens": 12, "temperature": 3.0, "seed": 5}
    free = json.loads(post(nano_served, "generate", options, name)[1])
    text, pieces = free["text_output"], free["output_ids"]
    assert len(pieces) == 12 and free["finish_reason"] == "length"
    stop = text[-4:]  # several tokens' text
    first = text.index(stop)
    status, said = post(nano_served, path, {**options, "stop_words": stop, "stream": path != "generate"}, name)
    events = [json.loads(line.removeprefix("data: ")) for line in said.splitlines() if line]
    assert status == 200
    assert "".join(event["text_output"] for event in events) == text[:first]
    assert [event["finish_reason"] for event in events][-1] == "stop"
    ids = [token for event in events for token in np.atleast_1d(event["output_ids"]).tolist()]
    assert ids == pieces[: len(ids)], "of a stop word the tokens are there"


def test_the_curl_line_works_as_printed(nano_served: Served) -> None:
    for line in nano_served.curl:
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["output_ids"], done


def test_a_full_queue_says_try_again(serve: Callable[..., Served], tiny_bundle: Path) -> None:
    served = serve(tiny_bundle, "--max-batch=1", "--max-queue=2")
    name = served.lines[0].split(":")[0]
    connections = [Stream(served.grpc) for _ in range(8)]
    for connection in connections:
        connection.send(name, [1], n_loops=12, max_tokens=200, stream=True)
    answers = [connection.answer() for connection in connections]
    refused = [answer for answer in answers if answer.error]
    assert refused and all("queue is full (2 wait); try again later" in answer.error for answer in refused)
    assert len({tuple(answer.ids) for answer in answers if not answer.error}) == 1
    for connection in connections:
        connection.close()
    # Triton's HTTP answers of a generator know 200 and 400 only; how many of them meet is not ours to say
    for path in ("generate", "generate_stream"):
        body = {"input_ids": [1], "n_loops": 12, "max_tokens": 250, "stream": path != "generate"}
        with ThreadPoolExecutor(8) as pool:
            over_http = list(pool.map(lambda each, body=body: post(served, each, body, name), [path] * 8))  # type: ignore[misc]
        assert 200 in {status for status, _ in over_http} <= {200, 400}
        assert all(('"error":"the queue is full (' in text) == (status == 400) for status, text in over_http)
    served.end()


def test_json_nested_too_deep_is_survived(serve: Callable[..., Served], tiny_bundle: Path) -> None:
    """By whichever of the two: Triton 24.10 ends on it, and the watchdog starts it again; another may refuse it."""
    served = serve(tiny_bundle, "--no-tensors")
    name = served.lines[0].split(":")[0]
    body = {"input_ids": [1], "n_loops": 2, "max_tokens": 3}
    alone = post(served, "generate", body, name)
    assert alone[0] == 200
    with contextlib.suppress(OSError):  # the connection may close in the middle of it
        assert post(served, "generate", b'{"input_ids": ' + b"[" * 5_000_000, name)[0] == 400
    assert eventually(lambda: survives(served, body, name, alone), 60)
    assert served.end() == 0


def survives(served: Served, body: Any, name: str, alone: tuple[int, str]) -> bool:
    try:
        return post(served, "generate", body, name) == alone
    except OSError:
        return False


def test_the_probe(server: Served, serve: Callable[..., Served], tiny_bundle: Path) -> None:
    """A model whose process has died is still ready to Triton, and not to the probe."""

    def probe(each: Served, models: str) -> int:
        return probed(["--models", models, "--http", each.http, "--metrics", each.metrics, "--timeout", "3"])

    assert probe(server, "mla,gqa,half") == 0
    assert probe(server, "mla,missing") == 1
    served = serve(tiny_bundle, "--no-tensors")
    name = served.lines[0].split(":")[0]
    [stub] = stubs(served, f"/{name}/1/model.py")
    assert probe(served, name) == 0
    os.kill(stub, signal.SIGKILL)
    assert probe(served, name) == 1
    assert eventually(lambda: probe(served, name) == 0, 60), "once `serve` has started it again"
    assert served.end() == 0


def test_a_generator_is_unloaded_under_a_stream(serve: Callable[..., Served], repository: Path) -> None:
    """Who streams gets the rest or an error, never silence; loaded again, it serves."""
    served = serve("--repository", repository)
    control = triton.InferenceServerClient(served.grpc)
    connection = Stream(served.grpc)
    connection.send("mla", [1], n_loops=24, max_tokens=255, stream=True)
    connection.next()
    control.unload_model("mla", headers=served.control)
    answer = connection.answer()
    assert answer.error or (answer.reason == "length" and len(answer.ids) == 254)
    connection.close()
    assert eventually(lambda: not control.is_model_ready("mla"))
    assert len(generate(served, model="gqa", input_ids=[1], max_tokens=2)["output_ids"]) == 2
    control.load_model("mla", headers=served.control)
    assert len(generate(served, input_ids=[1], max_tokens=2)["output_ids"]) == 2
    assert served.end() == 0


def test_a_killed_model_process_recovers(serve: Callable[..., Served], tiny_bundle: Path) -> None:
    """Whoever waited is told, by an error or a closed connection, and the next request is served."""
    served = serve(tiny_bundle)
    name = served.lines[0].split(":")[0]
    connection = Stream(served.grpc)
    connection.send(name, [1], n_loops=24, max_tokens=255, stream=True)
    connection.next()
    [stub] = stubs(served, f"/{name}/1/model.py")
    os.kill(stub, signal.SIGKILL)
    assert connection.answer().error

    def served_again() -> bool:
        try:
            return post(served, "generate", {"input_ids": [1], "max_tokens": 3}, name)[0] == 200
        except OSError:
            return False

    assert eventually(served_again, 60)
    assert stubs(served, f"/{name}/1/model.py") != [stub]
    assert served.end() == 0


def stubs(served: Served, model: str) -> list[int]:
    """Processes of Triton's Python backend that run a model of this server."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:  # it has just ended
            continue
        if len(command) > 1 and command[1].decode().endswith(model) and str(served.temporary).encode() in command[1]:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def nano_served(serve: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A server over nano, which has a tokenizer."""
    output = tmp_path_factory.mktemp("nano") / "nano"
    arguments = ["mythos-export", "--scale", "nano", "--no-validate", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="0"):
            main()
    return serve(output)
