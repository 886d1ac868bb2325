"""Load on a served bundle: throughput and latency against how many requests are under way, one at a time included.

    python -m tools.serving_load BUNDLE --concurrency 1,4,16 --loops 4,8,16

Starts `mythos-export serve` (from --environment, which has the triton extra) on this machine, unless --url names a
server that already runs there. Clients keep their number of requests under way until all are answered; the same
requests at each number, rounds taken in turn, medians over the rounds. Times are the client's: to the first token, and
between a token and the next. Prints a table, or one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc.aio as triton

from mythos_export.bundle import Bundle

__all__ = ["measure"]

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Work(NamedTuple):
    """One request."""

    ids: list[int]
    loops: int
    tokens: int


class Timing(NamedTuple):
    """One answer, in seconds."""

    first: float
    between: list[float]


class Round(NamedTuple):
    """All requests, once."""

    seconds: float
    timings: list[Timing]


def make_work(
    bundle: Bundle, requests: int, prompt: Sequence[int], tokens: Sequence[int], loops: Sequence[int]
) -> list[Work]:
    """Requests of random tokens; the same for the same arguments."""
    draw = random.Random(0)
    limits = bundle.manifest.limits
    return [
        Work(
            ids=[draw.randrange(limits.vocab_size) for _ in range(draw.choice(prompt))],
            loops=draw.choice(loops),
            tokens=draw.choice(tokens),
        )
        for _ in range(requests)
    ]


async def run_round(url: str, model: str, work: Sequence[Work], concurrency: int) -> Round:
    """Answer all requests with `concurrency` clients.

    Raises:
        RuntimeError: an answer is an error, or has another number of tokens than asked for.
    """
    waiting = iter(work)
    timings: list[Timing] = []

    async def client(connection: triton.InferenceServerClient) -> None:
        for one in waiting:
            timings.append(await ask(connection, model, one))

    async with triton.InferenceServerClient(url) as connection:
        start = time.perf_counter()
        await asyncio.gather(*(client(connection) for _ in range(concurrency)))
        return Round(time.perf_counter() - start, timings)


async def ask(connection: triton.InferenceServerClient, model: str, work: Work) -> Timing:
    """Stream one answer."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": _inputs(work), "enable_empty_final_response": True}

    start = last = time.perf_counter()
    times: list[float] = []
    async for result, error in connection.stream_infer(requests()):
        if error is not None:
            raise RuntimeError(f"{work.loops} loops, {work.tokens} tokens: {error}")
        now = time.perf_counter()
        if result.as_numpy("output_ids") is not None and result.as_numpy("output_ids").size:
            times.append(now - last)
            last = now
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    if len(times) != work.tokens:
        raise RuntimeError(f"asked for {work.tokens} tokens, got {len(times)} responses; after {last - start:.1f} s")
    return Timing(times[0], times[1:])


def _inputs(work: Work) -> list[triton.InferInput]:
    values = {
        "input_ids": np.array([work.ids], np.int64),
        "n_loops": np.array([[work.loops]], np.int64),
        "max_tokens": np.array([[work.tokens]], np.int32),
        "stream": np.array([[True]]),
    }
    inputs = []
    for name, array in values.items():
        kind = {"int64": "INT64", "int32": "INT32", "bool": "BOOL"}[array.dtype.name]
        inputs.append(triton.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def measure(
    url: str, model: str, work: Sequence[Work], concurrencies: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """One row for each number of clients; the first round of each is thrown away."""
    asyncio.run(run_round(url, model, work[: max(concurrencies)], max(concurrencies)))
    done: dict[int, list[Round]] = {count: [] for count in concurrencies}
    for index in range(rounds):
        for count in concurrencies:
            done[count].append(asyncio.run(run_round(url, model, work, count)))
            print(f"round {index + 1} of {rounds}, {count} at a time: {done[count][-1].seconds:.1f} s", file=sys.stderr)
    tokens = sum(one.tokens for one in work)
    alone = statistics.median(each.seconds for each in done[concurrencies[0]])
    return [_row(count, results, tokens, alone) for count, results in done.items()]


def _row(count: int, results: Sequence[Round], tokens: int, alone: float) -> dict[str, Any]:
    seconds = statistics.median(each.seconds for each in results)
    first = [timing.first for each in results for timing in each.timings]
    between = [gap for each in results for timing in each.timings for gap in timing.between]
    return {
        "concurrency": count,
        "tokens_per_second": round(tokens / seconds, 1),
        "times_the_first": round(alone / seconds, 2),
        "first_token_ms": {"p50": _percentile(first, 50), "p99": _percentile(first, 99)},
        "per_token_ms": {"p50": _percentile(between, 50), "p99": _percentile(between, 99)},
    }


def _percentile(seconds: Sequence[float], share: int) -> float:
    return round(1e3 * float(np.percentile(seconds, share)), 2) if seconds else float("nan")


@contextlib.contextmanager
def served(bundle: Path, environment: Path, options: Sequence[str]) -> Iterator[str]:
    """`mythos-export serve` on free ports; its gRPC address."""
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [str(environment / "bin" / "mythos-export"), "serve", str(bundle), *ports, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    address = ""
    for line in process.stdout or ():
        if line.startswith("gRPC "):
            address = line.split()[1]
        if line.startswith("Ctrl-C"):  # the last line that `serve` prints before it serves
            return address
    raise SystemExit("error: the server did not start; see above")


def main() -> int:
    """Print a table, or one JSON object."""
    given = _arguments()
    bundle = Bundle.open(given.bundle, check_hashes=False)
    work = make_work(bundle, given.requests, given.prompt, given.tokens, given.loops)
    model = given.model or bundle.manifest.name
    options = ["--threads", str(given.threads), "--max-batch", str(max(given.concurrency))]
    with contextlib.ExitStack() as stack:
        url = given.url or stack.enter_context(served(given.bundle, given.environment, options))
        if url.rpartition(":")[0] not in _LOOPBACK:
            raise SystemExit(f"error: {url} is not on this machine; load belongs on a server of your own, on loopback")
        rows = measure(url, model, work, given.concurrency, given.rounds)
    if given.json:
        print(json.dumps({"bundle": bundle.manifest.name, "requests": len(work), "rounds": given.rounds, "rows": rows}))
    else:
        _print(rows)
    return 0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    print("at once  tokens/s  ratio   first token ms p50 / p99   per token ms p50 / p99")
    for row in rows:
        first, between = row["first_token_ms"], row["per_token_ms"]
        print(
            f"{row['concurrency']:7}  {row['tokens_per_second']:8}  {row['times_the_first']:5}   "
            f"{first['p50']:11} / {first['p99']:<12} {between['p50']:10} / {between['p99']}"
        )


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--concurrency", type=numbers, default=[1, 2, 4, 8, 16], help="the first is the yardstick")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=numbers, default=[8, 16, 24], help="lengths of prompts")
    parser.add_argument("--tokens", type=numbers, default=[16, 24, 32], help="lengths of answers")
    parser.add_argument("--loops", type=numbers, default=[2, 4, 8], help="depths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=Path(".venv-triton"))
    parser.add_argument("--url", help="HOST:PORT of gRPC, in place of starting a server")
    parser.add_argument("--model", help="the generator's name, where it is not the bundle's")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
