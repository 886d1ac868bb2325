"""`mythos-export generate BUNDLE`: tokens from a bundle, streamed; needs neither torch nor onnx."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineError
from mythos_export.commands.output import print_json

__all__ = ["run"]


def run(
    path: Path, *, prompt: str | None, tokens: str | None, threads: int | None, json: bool, **options: Any
) -> None:
    """Generate, printing tokens (text, with a tokenizer) as they come."""
    engine = engines.load(path, threads=threads)
    ids = _prompt_ids(engine, prompt, tokens)
    started = time.perf_counter()
    stream = engine.generate(ids, **options)
    if json:
        generated = list(stream)
        print_json(_result(engine, prompt, ids, generated, time.perf_counter() - started))
        return
    _print(_pieces(engine, stream) if prompt is not None else (f"{token} " for token in stream))


def _prompt_ids(engine: engines.Engine, prompt: str | None, tokens: str | None) -> list[int]:
    if (prompt is None) == (tokens is None):
        raise EngineError("give --prompt TEXT or --tokens 1,2,3")
    if prompt is not None:
        return engine.tokenizer.encode(prompt)
    assert tokens is not None
    try:
        return [int(part) for part in tokens.split(",")]
    except ValueError:
        raise EngineError(f"--tokens is {tokens!r}; give ids such as 1,2,3") from None


def _pieces(engine: engines.Engine, stream: Iterator[int]) -> Iterator[str]:
    text = engine.tokenizer.stream()
    for token in stream:
        yield text.push(token)
    yield text.finish()


def _print(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _result(
    engine: engines.Engine, prompt: str | None, ids: list[int], generated: list[int], seconds: float
) -> dict[str, Any]:
    result: dict[str, Any] = {"prompt_tokens": ids, "tokens": generated, "seconds": round(seconds, 4)}
    if prompt is not None:
        result["text"] = engine.tokenizer.decode(generated)
    return result
