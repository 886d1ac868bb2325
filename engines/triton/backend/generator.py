"""The generator as Triton's Python backend runs it: `model.py` of a repository imports it from here.

Requests of any depth and length share one batch (`engines.serving`); each is answered as a stream of responses or
as one.
"""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

import engines
from engines.engine import Engine
from engines.errors import EngineError, one_line
from engines.serving.limits import ServingLimits
from engines.serving.request import Request
from engines.serving.scheduler import QueueFull, Scheduler
from engines.text import AnswerText
from engines.triton.backend.metrics import Metrics
from engines.triton.backend.options import Options, read_options
from engines.triton.backend.replies import Cancellations, Client, Outbox
from engines.triton.backend.reply import Reply
from engines.triton.backend.wording import as_sent
from engines.triton.contract import GENERATOR_INPUTS
from engines.triton.repository.record import read_record
from engines.triton.settings import read_settings

__all__ = ["TritonPythonModel"]

_BROKEN = 70  # exit code of a process with a defect
_LAST_SECONDS = 5.0  # for the answers that are on their way when it ends
_INPUTS = [port.name for port in GENERATOR_INPUTS]
_LONGEST_TOKEN = 128  # characters; a text of more than this per token of max_seq_len is refused before it is encoded


class TritonPythonModel:
    """Answers requests from one engine; the class name and its methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside `model.py`.

        Raises:
            EngineError, BundleError: it cannot be served here; Triton reports the message.
        """
        settings = read_settings(json.loads(args["model_config"]))
        threads = settings.pop("threads", None)
        folder = Path(args["model_repository"])
        bundle = folder / args["model_version"] / "bundle"
        self._engine: Engine = engines.load(bundle, threads=threads, spinning=False)
        self._has_text = "tokenizer.json" in self._engine.manifest.files
        sharers = 1 if "cache_bytes" in settings else _generators(folder.parent)
        self._scheduler = Scheduler(self._engine, ServingLimits(**settings, sharers=sharers))
        self._metrics = Metrics(args["model_name"])
        self._outbox = Outbox()
        self._cancellations = Cancellations(after_round=self._look_around, on_defect=self._give_up)
        self._scheduler.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests in; their answers follow by their response senders."""
        for request in requests:
            client = Client(request.get_response_sender())
            try:
                self._accept(request, client)
            except QueueFull as error:
                _refuse(client, str(error), pb_utils.TritonError.UNAVAILABLE)
            except EngineError as error:
                _refuse(client, str(error), pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # noqa: BLE001  (ours; left to Triton, it answers behind the back of `client`)
                traceback.print_exc()
                _refuse(client, f"this server has a defect: {one_line(error)}", pb_utils.TritonError.INTERNAL)

    def finalize(self) -> None:
        """End what is under way, with an error for each."""
        self._scheduler.close()
        self._cancellations.close()
        self._outbox.close()
        self._metrics.close()

    def _look_around(self) -> None:
        self._metrics.show(self._scheduler.stats, self._scheduler.load)
        if self._scheduler.broken or self._outbox.broken:
            self._give_up()

    def _give_up(self) -> None:
        """A model that only refuses would stay ready; a process that has ended is replaced."""
        self._outbox.close(timeout=_LAST_SECONDS)  # a client that takes nothing must not keep it
        os._exit(_BROKEN)

    def _accept(self, request: Any, client: Client) -> None:
        tensors = _tensors(request)
        self._check_length(tensors.get("input_ids"))
        options = read_options(tensors, _parameters(request))
        ids = self._ids(options)
        tokenizer = self._engine.tokenizer if self._has_text else None
        if options.stop_words and tokenizer is None:
            raise EngineError("this bundle has no tokenizer, so no stop_words; give end_id")
        words, rows = tokenizer.stops(options.stop_words) if tokenizer is not None else ([], [])
        work = Request(
            ids=ids,
            loops=options.loops,
            max_new_tokens=options.max_new_tokens,
            sampling=options.sampling,
            stop=[*(options.end_ids or ()), *rows],
            ignore_eos=options.end_ids is not None,
        )
        ends = self._engine.end_ids if options.end_ids is None else options.end_ids
        answer = AnswerText(tokenizer.stream(ids), words, ends) if tokenizer is not None else None
        reply = Reply(client, options, ids, self._prompt_text(options, ids), answer, self._outbox, self._cancellations)
        self._cancellations.watch(client, reply.cancel)
        try:
            self._submit(work, reply)
        except BaseException:
            self._cancellations.forget(client)
            raise

    def _submit(self, work: Request, reply: Reply) -> None:
        """Only what is refused here has our names in it: errors of `read_options` hold the sender's own words."""
        try:
            self._scheduler.submit(work, reply)
        except QueueFull:
            raise
        except EngineError as error:
            raise EngineError(as_sent(str(error))) from error

    def _check_length(self, ids: NDArray[Any] | None) -> None:
        """Before each becomes an object of Python: millions would hold up everybody for seconds."""
        longest = self._engine.manifest.limits.max_seq_len
        if ids is not None and ids.size > longest:
            raise EngineError(f"the prompt has {ids.size} tokens, more than max_seq_len {longest}")

    def _ids(self, options: Options) -> list[int]:
        if options.text is None:
            return options.ids or []
        if not self._has_text:
            raise EngineError("this bundle has no tokenizer; give input_ids in place of text_input")
        if len(options.text) > _LONGEST_TOKEN * self._engine.manifest.limits.max_seq_len:
            raise EngineError(f"text_input of {len(options.text)} characters cannot fit max_seq_len; shorten it")
        return self._engine.tokenizer.encode(options.text)

    def _prompt_text(self, options: Options, ids: list[int]) -> str:
        """The prompt as an answer repeats it."""
        if not options.echo or not self._has_text:
            return ""
        return options.text if options.text is not None else self._engine.tokenizer.decode(ids)


def _generators(repository: Path) -> int:
    """How many share this machine's memory; 1 where no usable record says so: a model is complete without it."""
    try:
        return len(read_record(repository).entries)
    except EngineError:
        return 1


def _tensors(request: Any) -> dict[str, Any]:
    found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in _INPUTS}
    return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}


def _parameters(request: Any) -> str:
    try:
        return str(request.parameters())
    except UnicodeDecodeError as error:  # Triton takes any bytes in their names
        raise EngineError("the name of a parameter is not valid UTF-8") from error


def _refuse(client: Client, message: str, code: int) -> None:
    client.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)), final=True)
