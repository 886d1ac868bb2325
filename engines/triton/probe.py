"""Whether generators answer: what a fleet's liveness and readiness probes run.

    python3 -m engines.triton.probe --models a,b

Triton calls a model ready whose process has died. So each is asked for one token; if others are served first and it
does not come in time, or the queue is full, the model's counters must at least move. Exit code 0: all alive; 1: one is
not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

__all__ = ["main"]

_ASK = {"input_ids": [0], "max_tokens": 1}  # n_loops is the model's own: one unrolled to a depth refuses another
_COUNTERS = r'^mythos_(?:tokens|prompt_tokens)_total\{{model="{}"\}} (\S+)$'
_BUSY = "the queue is full"
_LOOK_SECONDS = 2.0  # for the counters to be read
_PAUSE_SECONDS = 0.25
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine


def main(arguments: list[str] | None = None) -> int:
    """Ask every model; say on stderr which did not answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="names of generators, with commas between them")
    parser.add_argument("--http", default="http://127.0.0.1:8080", help="where Triton takes requests")
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a token to come")
    given = parser.parse_args(arguments)
    models = given.models.split(",")
    with ThreadPoolExecutor(len(models)) as pool:
        found = pool.map(lambda model: _trouble(model, given.http, given.metrics, given.timeout), models)
        troubles = [trouble for trouble in found if trouble]
    for trouble in troubles:
        print(f"error: {trouble}", file=sys.stderr)
    return 1 if troubles else 0


def _trouble(model: str, http: str, metrics: str, timeout: float) -> str:
    """What is wrong with a model, or nothing."""
    before, until = _progress(model, metrics), time.monotonic() + timeout
    request = urllib.request.Request(  # noqa: S310  (on this machine)
        f"{http}/v2/models/{model}/generate", json.dumps(_ASK).encode(), {"Content-Type": "application/json"}
    )
    try:
        with _DIRECT.open(request, timeout=timeout) as answer:
            said = json.load(answer)
        return "" if isinstance(said, dict) and "output_ids" in said else f"{model}: no token in its answer"
    except urllib.error.HTTPError as error:
        refusal = _read(error)
        if _BUSY not in refusal:
            return f"{model}: {error.code} {refusal}"
        alive = _moves(model, metrics, before, until)
        return "" if alive else f"{model}: the queue is full, and nothing moved in {timeout:g} s"
    except (OSError, ValueError, RecursionError, HTTPException) as error:  # nested too deep is no answer either
        alive = _moves(model, metrics, before, until=0)
        return "" if alive else f"{model}: no token in {timeout:g} s ({error})"


def _read(error: urllib.error.HTTPError) -> str:
    """The beginning of what it says; what there is of it if the connection breaks."""
    try:
        return error.read(500).decode(errors="replace")
    except (OSError, HTTPException) as broken:
        return f"({broken})"


def _moves(model: str, metrics: str, before: list[str] | None, until: float) -> bool:
    """Whether it works for others: its counters differ from what they were, now or before that time."""
    while True:
        now = _progress(model, metrics)
        if now is not None and before is not None and now != before:
            return True
        if time.monotonic() >= until:
            return False
        before = before or now
        time.sleep(_PAUSE_SECONDS)


def _progress(model: str, metrics: str) -> list[str] | None:
    """Its counters; None where there are none."""
    try:
        with _DIRECT.open(metrics, timeout=_LOOK_SECONDS) as answer:
            text = answer.read().decode(errors="replace")
    except (OSError, HTTPException):
        return None
    return re.findall(_COUNTERS.format(re.escape(model)), text, re.MULTILINE) or None


if __name__ == "__main__":
    sys.exit(main())
