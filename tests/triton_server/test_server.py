"""`mythos-export serve` and the launcher under it: it starts, answers, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served, eventually

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Serve = Callable[..., Served]


def _line(ran: subprocess.CompletedProcess[str]) -> str:
    """What a refusal says."""
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def _get(url: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _command_lines() -> list[str]:
    """Of every process; one that has ended and waits for its parent has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return found


def _traces(served: Served) -> list[str]:
    """Processes of this server: each names its temporary folder, or the shared memory that the server's line names."""
    return [line for line in _command_lines() if str(served.temporary) in line]


def _shared_memory(served: Served) -> Callable[[], list[Path]]:
    """What a running server has of it, then and later: other servers of this machine may have theirs."""
    (prefix,) = {found for line in _traces(served) for found in re.findall(r"mythos-triton-[0-9a-f]{16}-", line)}
    return lambda: list(Path("/dev/shm").glob(f"{prefix}*"))


@pytest.fixture(scope="module")
def small_repository(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tensor-level model of one bundle, and a generator that is only there to be loaded: quick to start."""
    folder = tmp_path_factory.mktemp("small") / "repository"
    shutil.copytree(repository, folder, ignore=shutil.ignore_patterns("gqa*", "half*"))
    record = json.loads((folder / "mythos-repository.json").read_text())
    record["entries"] = [entry for entry in record["entries"] if entry["generator"] == "mla"]
    (folder / "mythos-repository.json").write_text(json.dumps(record))
    return folder


def test_it_serves_every_model_and_says_where(server: Served) -> None:
    assert _get(f"{server.http}/v2/health/ready")[0] == 200
    for name in ("mla", "mla-tensors", "gqa", "gqa-tensors", "half", "half-tensors"):
        assert any(line.startswith(f"{name}: ") for line in server.lines)
        assert _get(f"{server.http}/v2/models/{name}/ready")[0] == 200
    host, _, port = server.grpc.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def test_metrics_count_what_was_asked(server: Served) -> None:
    def succeeded() -> float:
        lines = _get(server.metrics)[1].splitlines()
        wanted = 'nv_inference_request_success{model="mla",'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))

    def own() -> dict[str, float]:
        found = re.findall(r'^mythos_(\w+)\{model="mla"\} (\S+)$', _get(server.metrics)[1], re.MULTILINE)
        return {name: float(value) for name, value in found}

    idle = {"running": 0, "waiting": 0, "cache_bytes": 0, "load_mla": 0}
    assert eventually(lambda: {name: own()[name] for name in idle} == idle)
    before, first = succeeded(), own()
    assert first.keys() == {*idle, "tokens_total", "prompt_tokens_total", "refused_total"}
    ask = {"input_ids": [5, 6, 7], "n_loops": 1, "max_tokens": 4}
    assert _get(f"{server.http}/v2/models/mla/generate", ask)[0] == 200
    assert eventually(lambda: succeeded() == before + 1)
    assert _get(f"{server.http}/v2/models/mla/generate", {**ask, "n_loops": 1000})[0] == 400
    counted = {"tokens_total": 4, "prompt_tokens_total": 3, "refused_total": 1}
    after = {**first, **{name: first[name] + more for name, more in counted.items()}}
    assert eventually(lambda: own() == after), (own(), after)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_each_printed_curl_line_works_as_printed(server: Served) -> None:
    assert len(server.curl) == 3
    for line in server.curl:
        assert '"n_loops": 6' in line, "the depth the model was made for"
        answered = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=120)
        answer = json.loads(answered.stdout)
        assert len(answer["output_ids"]) == 8
        assert all(0 <= token < 97 for token in answer["output_ids"])


def test_it_listens_on_loopback_only(server: Served) -> None:
    ports = {int(url.removesuffix("/metrics").rpartition(":")[2]) for url in (server.http, server.grpc, server.metrics)}
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    found = {int(port, 16): address for address, port in listening if int(port, 16) in ports}
    assert found.keys() == ports
    assert set(found.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and as IPv6 says it


@pytest.mark.parametrize(
    "path",
    ["repository/index", "repository/models/mla/unload", "systemsharedmemory/region/x/register", "trace/setting"],
)
def test_control_wants_the_header(server: Served, path: str) -> None:
    code, text = _get(f"{server.http}/v2/{path}", {})
    assert code == 403
    assert "restricted" in text
    assert _get(f"{server.http}/v2/{path}", {}, dict.fromkeys(server.control, "guess"))[0] == 403


def test_models_can_be_unloaded_and_loaded(server: Served) -> None:
    import tritonclient.grpc as grpc
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    clients = http.InferenceServerClient(server.http[7:]), grpc.InferenceServerClient(server.grpc)
    for client in clients:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("gqa-tensors")
        client.unload_model("gqa-tensors", headers=server.control)
        assert eventually(lambda client=client: not client.is_model_ready("gqa-tensors"))  # type: ignore[misc]
        assert client.is_model_ready("mla-tensors")
        client.load_model("gqa-tensors", headers=server.control)
        assert client.is_model_ready("gqa-tensors")


def test_the_environment_has_neither_torch_nor_onnx(environment: Path) -> None:
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx', 'onnx_ir', 'safetensors')])"
    ran = subprocess.run([environment / "python", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[None, None, None, None]"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(serve: Serve, small_repository: Path, tiny_bundle: Path, number: int) -> None:
    what = [tiny_bundle, "--max-loops", "3"] if number == signal.SIGINT else ["--repository", small_repository]
    served = serve(*what)
    shared_memory = _shared_memory(served)
    assert shared_memory()
    assert ('"n_loops": 3' in served.curl[0]) == (number == signal.SIGINT), "no deeper than this server goes"
    assert served.end(number) == 0
    assert served.errors.splitlines()[-1] == "stop the server"
    assert _traces(served) == []
    assert list(served.temporary.iterdir()) == []
    assert shared_memory() == []


def test_a_killed_launcher_leaves_nothing(serve: Serve, small_repository: Path) -> None:
    served = serve("--repository", small_repository)
    shared_memory = _shared_memory(served)
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    assert eventually(lambda: _traces(served) == [] and list(served.temporary.iterdir()) == [])
    assert shared_memory() == []


def _kill(served: Served, program: str) -> None:
    """A process of this server."""
    lines = {int(path.parent.name): path.read_bytes().decode() for path in Path("/proc").glob("[0-9]*/cmdline")}
    ours = {process: line.split("\0") for process, line in lines.items() if str(served.temporary) in line}
    named = [process for process, words in ours.items() if program in (Path(word).name for word in words[:4])]
    os.kill(named[0], signal.SIGKILL)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("tritonserver", "the Triton server ended by itself (exit code 137)"),
        ("triton_python_backend_stub", "a model's process has ended, so its requests fail"),
        ("watchdog.py", "the Triton server ended by itself (exit code -9)"),
    ],
)
def test_a_process_that_dies_is_replaced(serve: Serve, small_repository: Path, program: str, said: str) -> None:
    served = serve("--repository", small_repository)
    shared_memory = _shared_memory(served)
    _kill(served, program)
    served.read_announcement()  # of the next server
    again = next(line for line in served.errors.splitlines() if "starting again" in line)
    assert again.startswith(said)
    assert len({line for line in served.lines if line.startswith("HTTP")}) == 1, "at the same address"
    assert _ready(served)
    assert served.end() == 0
    assert _traces(served) == []
    assert list(served.temporary.iterdir()) == []
    assert shared_memory() == []


def test_ctrl_c_while_it_starts_again(serve: Serve, small_repository: Path) -> None:
    served = serve("--repository", small_repository)
    shared_memory = _shared_memory(served)
    _kill(served, "tritonserver")
    assert eventually(lambda: "starting again" in served.errors)
    assert served.end() == 0
    assert served.errors.splitlines()[-1] == "stop the server"
    assert _traces(served) == []
    assert list(served.temporary.iterdir()) == []
    assert shared_memory() == []


def test_one_that_keeps_dying_is_an_error(serve: Serve, small_repository: Path) -> None:
    served = serve("--repository", small_repository)
    for _ in range(3):
        _kill(served, "tritonserver")
        served.read_announcement()
    _kill(served, "tritonserver")
    assert served.process.wait(60) == 2
    assert "error: the Triton server ended by itself" in served.errors.splitlines()[-1]
    assert "the 4th time in 10 minutes" in served.errors.splitlines()[-1]
    assert eventually(lambda: _traces(served) == [])


def _ready(served: Served) -> bool:
    with urllib.request.urlopen(f"{served.http}/v2/health/ready", timeout=10) as answer:
        return bool(answer.status == 200)


def test_a_model_that_does_not_load_says_why(run_there: Run, small_repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(small_repository, broken)
    weights = broken / "mla-tensors" / "1" / "bundle" / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    line = _line(run_there("serve", "--repository", broken, "--http-port=0", "--grpc-port=0", "--metrics-port=0"))
    assert "failed to load 'mla-tensors'" in line
    assert "altered since it was exported" in line
    assert _traces(Served(None, broken, broken)) == []  # type: ignore[arg-type]


def test_a_taken_port_is_named(run_there: Run, small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _line(run_there("serve", "--repository", small_repository, "--grpc-port", str(port)))
    assert f"--grpc-port {port}" in line
    assert "Address already in use" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a BUNDLE"),
        (["BUNDLE", "--repository", "REPOSITORY"], "give a BUNDLE"),
        (["--repository", "REPOSITORY", "--max-loops", "3"], "--max-loops: a repository has its own"),
        (["--repository", "EMPTY"], "not a repository"),
        (["EMPTY"], "not a bundle"),
        (["BUNDLE", "--host", "203.0.113.7"], "--host 203.0.113.7"),
        (["BUNDLE", "--host", "no such host"], "--host no such host"),
        (["BUNDLE", "--http-port", "70000"], "--http-port"),
        (["BUNDLE", "--max-batch", "0"], "--max-batch"),
    ],
)
def test_what_cannot_be_served_is_refused(
    run_there: Run, tiny_bundle: Path, small_repository: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tmp").mkdir()
    known = {"BUNDLE": tiny_bundle, "REPOSITORY": small_repository, "EMPTY": tmp_path / "empty"}
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    line = _line(run_there("serve", *(known.get(each, each) for each in arguments), env=environment))
    assert said in line
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_altered_bundle_is_refused_before_anything_starts(run_there: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    weights = tmp_path / "bundle" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    assert "altered since it was exported" in _line(run_there("serve", tmp_path / "bundle"))


def test_a_repository_for_another_backend_is_refused(run_there: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    from engines.triton.repository.write import write_repository
    from mythos_export.bundle import Bundle

    write_repository(Bundle.open(tiny_bundle), tmp_path / "repository", backend="onnxruntime", name="mla")
    assert "--backend python" in _line(run_there("serve", "--repository", tmp_path / "repository"))


def test_without_the_extra_it_says_what_to_install(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "mythos_export", "serve", str(tiny_bundle)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'pip install "mythos-export[cpu,triton]"' in _line(ran)


def test_an_engine_of_this_process_agrees_with_the_served_generator(server: Served, tiny_bundle: Path) -> None:
    import engines

    request = {"input_ids": [5, 6, 7], "n_loops": 4, "max_tokens": 12}
    answer = json.loads(_get(f"{server.http}/v2/models/mla/generate", request)[1])
    wanted = list(engines.load(tiny_bundle, threads=1).generate([5, 6, 7], loops=4, max_new_tokens=12))
    assert np.array_equal(answer["output_ids"], wanted)
