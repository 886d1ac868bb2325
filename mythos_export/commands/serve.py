"""`mythos-export serve BUNDLE`: a Triton server over a bundle, until Ctrl-C; needs neither torch nor onnx."""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from engines.engine import Engine
from engines.errors import EngineError
from engines.onnxruntime import OnnxRuntimeEngine
from engines.triton.repository.record import Entry, read_record
from engines.triton.repository.write import write_repository
from engines.triton.server.installation import find_installation
from engines.triton.server.launch import CONTROL_HEADER, NO_TELEMETRY, Ports, TritonServer, list_models
from engines.triton.settings import read_settings
from mythos_export.bundle import Bundle
from mythos_export.progress import Reporter

__all__ = ["run"]

# A model that keeps dying wants a person.
_MOST_RESTARTS, _RESTARTS_WITHIN = 3, 600.0  # seconds

Place = Callable[[], AbstractContextManager[tuple[Path, Path | None]]]  # a repository, and what goes with it


def run(
    path: Path | None,
    *,
    repository: Path | None,
    name: str | None,
    tensors: bool,
    host: str,
    ports: Ports,
    log_verbose: bool,
    **settings: int | None,
) -> None:
    """Serve a bundle, or a repository that is there, until interrupted."""
    os.environ.update(NO_TELEMETRY)
    report = Reporter()
    given = {name: value for name, value in settings.items() if value is not None}
    if (path is None) == (repository is None):
        raise EngineError("give a BUNDLE to serve, or --repository with what `mythos-export triton` wrote")
    if repository is not None and (given or name is not None or not tensors):
        option = "name" if name is not None else next(iter(given), "no_tensors").replace("_", "-")
        raise EngineError(f"--{option}: a repository has its own; give it to `mythos-export triton`")
    find_installation()  # what is missing shows before gigabytes are hashed
    if repository is not None:
        there = repository
        _keep_serving(lambda: nullcontext((there, None)), host, ports, log_verbose, report)
        return
    assert path is not None
    bundle = Bundle.open(path, check_hashes=False)
    OnnxRuntimeEngine(bundle)
    with report.step("hash the bundle", bundle.total_bytes) as advance:
        bundle.check_hashes(advance)
    _keep_serving(lambda: _written(bundle, given, name, tensors), host, ports, log_verbose, report)


def _keep_serving(make: Place, host: str, ports: Ports, log_verbose: bool, report: Reporter) -> None:
    """Serve, again if a process dies: Triton itself would call its model ready, and let whoever waited wait."""
    ended: list[float] = []
    while True:
        try:
            with make() as (repository, scratch):
                ports, why = _serve(repository, scratch, host, ports, log_verbose, report)
        except KeyboardInterrupt:
            if not ended:
                raise
            report.say("stop the server")  # it has served, and is stopped while it starts again
            return
        if why is None:
            return
        ended = [*(moment for moment in ended if time.monotonic() - moment < _RESTARTS_WITHIN), time.monotonic()]
        if len(ended) > _MOST_RESTARTS:
            raise EngineError(f"{why}; that was the {len(ended)}th time in {_RESTARTS_WITHIN // 60:.0f} minutes")
        report.say(f"{why}; starting again, at the same addresses")


@contextmanager
def _written(
    bundle: Bundle, settings: Mapping[str, int], name: str | None, tensors: bool
) -> Iterator[tuple[Path, Path]]:
    """A repository over a bundle, and the folder that it goes with."""
    with _scratch(bundle) as scratch:
        written = write_repository(
            bundle, scratch / "repository", backend="python", name=name, tensors=tensors, settings=settings, link=True
        )
        yield written.path, scratch


@contextmanager
def _scratch(bundle: Bundle) -> Iterator[Path]:
    """A temporary folder: beside the bundle where links to its files reach no further."""
    temporary, beside = Path(tempfile.gettempdir()), bundle.path.resolve().parent
    near = beside.stat().st_dev != temporary.stat().st_dev and os.access(beside, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix=".mythos-serve-", dir=beside if near else temporary))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(
    repository: Path, scratch: Path | None, host: str, ports: Ports, log_verbose: bool, report: Reporter
) -> tuple[Ports, str | None]:
    """Until interrupted, or until something dies: where it listened, and why it ended if nobody wanted that."""
    record = read_record(repository)
    missing = record.names() - set(list_models(repository))
    if missing:
        raise EngineError(f"{repository}: {min(missing)} is gone; write the repository again")
    for entry in record.entries:
        if entry.tensors is not None and entry.backend != "python":
            raise EngineError(
                f"{repository}: {entry.tensors} is for the {entry.backend} backend, and the server that "
                "nvidia-pytriton brings has the Python backend only; write the repository with --backend python"
            )
    report.say("start the server")
    with TritonServer.start(
        repository, host=host, ports=ports, log_verbose=log_verbose, on_line=report.say, scratch=scratch
    ) as server:
        if not _is_loopback(host):
            report.say(f"warning: whoever reaches {host} can use these models; nothing is encrypted, nobody is asked")
        try:
            _announce(server, record.entries)
            return server.ports, server.wait()
        except KeyboardInterrupt:
            report.say("stop the server")
            return server.ports, None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _announce(server: TritonServer, entries: list[Entry]) -> None:
    for line in _words(server, entries):
        print(line)
    sys.stdout.flush()


def _words(server: TritonServer, entries: list[Entry]) -> Iterator[str]:
    for entry in entries:
        yield f"{entry.generator}: generates from {entry.bundle} ({entry.precision})"
        if entry.tensors is not None:
            yield f"{entry.tensors}: its graph, the cache in and out"
    yield f"HTTP     {server.http_url}"
    yield f"gRPC     {server.grpc_url}"
    yield f"metrics  {server.metrics_url}"
    yield f"control  {CONTROL_HEADER}: {server.control[CONTROL_HEADER]}  (a header, to load and unload models)"
    for name in (entry.generator for entry in entries):
        request = json.dumps(_example(server, name))
        yield f"curl -s {server.http_url}/v2/models/{name}/generate -d {shlex.quote(request)}"
    yield "Ctrl-C stops it"


def _example(server: TritonServer, name: str) -> dict[str, Any]:
    """A request that this generator answers."""
    bundle = Bundle.open(server.repository / name / "1" / "bundle", check_hashes=False)
    engine = OnnxRuntimeEngine(bundle)
    most = read_settings(server.model_config(name)).get("max_loops", engine.default_loops)
    return {**_prompt(engine), "n_loops": min(engine.default_loops, most), "max_tokens": 8}


def _prompt(engine: Engine) -> dict[str, Any]:
    """Text that the tokenizer knows, or ids from the middle of the vocabulary, where no special tokens are."""
    vocab = engine.manifest.limits.vocab_size
    ids = list(range(vocab // 2, min(vocab // 2 + 3, vocab)))
    if "tokenizer.json" in engine.manifest.files:
        with suppress(EngineError):
            for text in ("Hello", engine.tokenizer.decode(ids)):
                if engine.tokenizer.decode(engine.tokenizer.encode(text)).strip() == text.strip():
                    return {"text_input": text}
    return {"input_ids": ids}
