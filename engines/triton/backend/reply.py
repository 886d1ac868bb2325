"""The answer to one request: tokens become text and responses."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from engines.text import AnswerText
from engines.triton.backend.options import Options
from engines.triton.backend.replies import Cancellations, Client, Outbox

__all__ = ["Reply"]


class Reply:
    """Listens to one sequence of `engines.serving` (a `Listener`), and answers its client.

    A response holds what is new since the last one. Of a stop word the text is left out and the tokens are not.
    """

    def __init__(
        self,
        client: Client,
        options: Options,
        prompt: list[int],
        prompt_text: str,
        answer: AnswerText | None,
        outbox: Outbox,
        cancellations: Cancellations,
    ) -> None:
        self._client, self._options, self._prompt = client, options, prompt
        self._outbox, self._cancellations = outbox, cancellations
        self._answer = answer
        self._echo = list(prompt) if options.echo else []  # goes before the first tokens
        self._cancelled = False
        self._has_gap = False  # a response was lost; the outbox's own
        self._tokens: list[int] = []  # since the last response, as are the next two
        self._depths: list[int] = []
        self._pieces: list[str] = [prompt_text]

    def cancel(self) -> None:
        """The client has gone."""
        self._cancelled = True

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return self._cancelled

    def on_token(self, token: int, halting_depth: int) -> bool:
        """Take a token; False if a stop word is complete."""
        self._tokens.append(token)
        self._depths.append(halting_depth)
        if self._answer is not None:
            self._pieces.append(self._answer.push(token))
        reached = self._answer is not None and self._answer.reached
        if self._options.stream and not reached:
            self._respond("")
        return not reached

    def on_finish(self, reason: str) -> None:
        """Send the rest, and what ended it."""
        if reason == "cancelled":
            self._fail("the request was cancelled, or the model is being unloaded", pb_utils.TritonError.CANCELLED)
            return
        if self._answer is not None:
            self._pieces.append(self._answer.finish())
        self._respond(reason)
        self._end()

    def on_error(self, message: str) -> None:
        """Send an error in place of the rest; the server's log has it too."""
        print(f"error: a request failed: {message}", file=sys.stderr, flush=True)
        self._fail(message, pb_utils.TritonError.INTERNAL)

    def _respond(self, reason: str) -> None:
        tensors = [
            _text("text_output", "".join(self._pieces)),
            _integers("output_ids", self._echo + self._tokens, np.int64),
            _text("finish_reason", reason),
            _integers("halting_depth", self._depths, np.int64),
        ]
        if self._options.count_input:
            tensors.append(_integers("num_input_tokens", [len(self._prompt)], np.int32))
        if self._options.count_output:
            tensors.append(_integers("num_output_tokens", [len(self._tokens)], np.int32))
        self._tokens, self._depths, self._pieces, self._echo = [], [], [], []
        response = pb_utils.InferenceResponse(tensors)
        self._outbox.put(lambda: self._send(response, final=bool(reason)))

    def _fail(self, message: str, code: int) -> None:
        response = _error(message, code)
        self._outbox.put(lambda: self._send(response, final=True))
        self._end()

    def _end(self) -> None:
        self._cancellations.forget(self._client)

    def _send(self, response: Any, *, final: bool) -> None:
        """After one that was lost only the end is sent, an error: what has a gap is no answer."""
        if self._has_gap and not final:
            return
        if self._has_gap:
            response = _error("a response could not be sent", pb_utils.TritonError.INTERNAL)
        if not self._client.send(response, final=final):
            self._cancelled = self._has_gap = True


def _error(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _text(name: str, value: str) -> Any:
    return pb_utils.Tensor(name, np.array([[value.encode()]], np.object_))


def _integers(name: str, values: list[int], dtype: Any) -> Any:
    return pb_utils.Tensor(name, np.array([values], dtype))
