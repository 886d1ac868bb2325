"""`mythos-export generate BUNDLE`: tokens from a bundle, streamed; needs neither torch nor onnx."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineError
from engines.text import AnswerText
from mythos_export.commands.output import print_json
from mythos_export.console import reader_has_gone

__all__ = ["run"]


def run(
    path: Path,
    *,
    prompt: str | None,
    tokens: str | None,
    stop_words: Sequence[str],
    stop_ids: Sequence[int],
    threads: int | None,
    runtime: str,
    json: bool,
    **options: Any,
) -> None:
    """Generate, printing tokens (text, with a tokenizer) as they come."""
    ids = _token_ids(prompt, tokens)  # a mistake shows before gigabytes are hashed
    if any(not word for word in stop_words):
        raise EngineError("--stop is empty; give a text")
    if runtime == "onnxruntime":
        engine = engines.load(path, threads=threads)
    elif threads is None:
        engine = engines.load(path, runtime=runtime)
    else:
        raise EngineError("--threads is for onnxruntime; leave it out")
    if prompt is not None:
        ids = engine.tokenizer.encode(prompt)
    words, rows = engine.tokenizer.stops(stop_words) if stop_words else ([], [])
    started = time.perf_counter()
    stream = engine.generate(ids, stop=[*stop_ids, *rows], **options)
    ends = [*stop_ids, *([] if options["ignore_eos"] else engine.end_ids)]
    text = AnswerText(engine.tokenizer.stream(ids), words, ends) if prompt is not None or words else None
    answer = _Answer(stream, text)
    if json:
        pieces = "".join(answer)
        seconds = round(time.perf_counter() - started, 4)
        result = {"prompt_tokens": ids, "tokens": answer.tokens, "seconds": seconds}
        print_json(result | ({"text": pieces} if prompt is not None else {}))
        return
    for piece in answer if prompt is not None else answer.numbers():
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


class _Answer:
    """Reads a stream of tokens up to a stop word; iterating gives its text, piece by piece."""

    def __init__(self, stream: Iterator[int], text: AnswerText | None) -> None:
        self._stream, self._text = stream, text
        self.tokens: list[int] = []

    def __iter__(self) -> Iterator[str]:
        for token in self._stream:
            self.tokens.append(token)
            if self._text is not None:
                yield self._text.push(token)
                if self._text.reached:
                    return
            if reader_has_gone():
                return
        if self._text is not None:
            yield self._text.finish()

    def numbers(self) -> Iterator[str]:
        """The tokens themselves."""
        shown = 0
        for _ in self if self._text is not None else self._bare():
            for token in self.tokens[shown:]:
                yield f" {token}" if shown else str(token)
                shown += 1

    def _bare(self) -> Iterator[None]:
        for token in self._stream:
            self.tokens.append(token)
            yield


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
