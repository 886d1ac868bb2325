"""`mythos-export generate BUNDLE`: tokens from a bundle, streamed; needs neither torch nor onnx."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineError
from mythos_export.commands.output import print_json

__all__ = ["run"]


def run(
    path: Path,
    *,
    prompt: str | None,
    tokens: str | None,
    threads: int | None,
    runtime: str,
    json: bool,
    **options: Any,
) -> None:
    """Generate, printing tokens (text, with a tokenizer) as they come."""
    given = _token_ids(prompt, tokens)  # a mistake shows before gigabytes are hashed
    if runtime == "onnxruntime":
        engine = engines.load(path, threads=threads)
    elif threads is None:
        engine = engines.load(path, runtime=runtime)
    else:
        raise EngineError("--threads is for onnxruntime; leave it out")
    ids = given if prompt is None else engine.tokenizer.encode(prompt)
    started = time.perf_counter()
    stream = engine.generate(ids, **options)
    if json:
        generated = list(stream)
        print_json(_result(engine, prompt, ids, generated, time.perf_counter() - started))
        return
    for piece in _numbers(stream) if prompt is None else _text(engine, stream):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _token_ids(prompt: str | None, tokens: str | None) -> list[int]:
    """The ids of `--tokens`; none for a prompt."""
    if (prompt is None) == (tokens is None):
        raise EngineError("give --prompt TEXT or --tokens 1,2,3")
    if tokens is None:
        return []
    try:
        return [int(part) for part in tokens.split(",")]
    except ValueError:
        raise EngineError(f"--tokens is {tokens[:80]!r}; give ids such as 1,2,3") from None


def _numbers(stream: Iterator[int]) -> Iterator[str]:
    for index, token in enumerate(stream):
        yield f" {token}" if index else str(token)


def _text(engine: engines.Engine, stream: Iterator[int]) -> Iterator[str]:
    text = engine.tokenizer.stream()
    for token in stream:
        yield text.push(token)
    yield text.finish()


def _result(
    engine: engines.Engine, prompt: str | None, ids: list[int], generated: list[int], seconds: float
) -> dict[str, Any]:
    result: dict[str, Any] = {"prompt_tokens": ids, "tokens": generated, "seconds": round(seconds, 4)}
    if prompt is not None:
        result["text"] = engine.tokenizer.decode(generated)
    return result
