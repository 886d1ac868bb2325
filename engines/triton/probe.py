"""Whether generators answer: what a fleet's liveness and readiness probes run.

    python3 -m engines.triton.probe --models a,b

Triton calls a model ready whose process has died. So each is asked for one token; if others are served first and it
does not come in time, the model's counters must at least have moved. Exit code 0: all alive; 1: one is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

__all__ = ["main"]

_ASK = {"input_ids": [0], "n_loops": 1, "max_tokens": 1}
_COUNTERS = r'^mythos_(?:tokens|prompt_tokens)_total\{{model="{}"\}} (\S+)$'
_BUSY = "the queue is full"


def main(arguments: list[str] | None = None) -> int:
    """Ask every model; say on stderr which did not answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="names of generators, with commas between them")
    parser.add_argument("--http", default="http://127.0.0.1:8080", help="where Triton takes requests")
    parser.add_argument("--metrics", default="http://127.0.0.1:8002/metrics")
    parser.add_argument("--timeout", type=float, default=15.0, help="seconds for a token to come")
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
    before = _progress(model, metrics)
    request = urllib.request.Request(  # noqa: S310  (on this machine)
        f"{http}/v2/models/{model}/generate", json.dumps(_ASK).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            return "" if "output_ids" in json.load(answer) else f"{model}: no token in its answer"
    except urllib.error.HTTPError as error:
        said = error.read(500).decode(errors="replace")
        return "" if _BUSY in said else f"{model}: {error.code} {said}"
    except (OSError, ValueError, HTTPException) as error:
        if before is not None and _progress(model, metrics) not in (None, before):
            return ""  # it works for others
        return f"{model}: no token in {timeout:g} s ({error})"


def _progress(model: str, metrics: str) -> list[str] | None:
    """Its counters; None where there are none."""
    try:
        with urllib.request.urlopen(metrics, timeout=2) as answer:  # noqa: S310
            text = answer.read().decode(errors="replace")
    except (OSError, HTTPException):
        return None
    return re.findall(_COUNTERS.format(re.escape(model)), text, re.MULTILINE) or None


if __name__ == "__main__":
    sys.exit(main())
