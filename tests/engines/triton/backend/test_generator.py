"""The generator model, driven as Triton's Python backend drives it."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_triton
import numpy as np
import pytest

import engines
from engines.triton.repository.record import Entry, Record
from mythos_export.bundle import Bundle

WORDS = [f"w{index}" for index in range(16)]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(WORDS)}, "unk_token": "w0"},
}


class Harness:
    """A loaded generator, and requests to it."""

    def __init__(self, model: Any, engine: engines.Engine) -> None:
        self.model, self.engine = model, engine

    def send(self, parameters: dict[str, Any] | None = None, **tensors: Any) -> fake_triton.Sender:
        arrays = {name: np.asarray(value)[None] for name, value in tensors.items()}
        request = fake_triton.Request(arrays, parameters or {})
        assert self.model.execute([request]) is None
        return request.sender

    def answer(self, parameters: dict[str, Any] | None = None, **tensors: Any) -> list[fake_triton.Response]:
        return self.send(parameters, **tensors).wait()


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module under a stand-in for Triton's."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton.module())
    names = [f"engines.triton.backend.{name}" for name in ("replies", "reply", "metrics", "generator")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("engines.triton.backend.generator")
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def load(generator: Any, tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Load a bundle as Triton would: `load(bundle, max_batch="4")`."""
    loaded: list[Any] = []

    def make(bundle: Bundle, **settings: str) -> Harness:
        folder = tmp_path / f"model-{len(loaded)}" / "1" / "bundle"
        shutil.copytree(bundle.path, folder)
        config = {"parameters": {name: {"string_value": value} for name, value in settings.items()}}
        model = generator.TritonPythonModel()
        repository = str(folder.parent.parent)
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": repository,
                "model_version": "1",
                "model_name": "toy",
            }
        )
        loaded.append(model)
        return Harness(model, engines.load(bundle.path, threads=1))

    yield make
    for model in loaded:
        model.finalize()
    assert not fake_triton.CRASHES


@pytest.fixture
def harness(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> Harness:
    """The toy model with a tokenizer of sixteen words."""
    return load(toy(files={"tokenizer.json": json.dumps(TOKENIZER)}), threads="1")


def ids_of(responses: list[fake_triton.Response]) -> list[int]:
    return np.concatenate([response.tensors["output_ids"][0] for response in responses]).tolist()


def text_of(responses: list[fake_triton.Response]) -> str:
    return b"".join(response.tensors["text_output"][0, 0] for response in responses).decode()


def reason_of(responses: list[fake_triton.Response]) -> str:
    reasons = [response.tensors["finish_reason"][0, 0].decode() for response in responses]
    assert not any(reasons[:-1])
    return reasons[-1]


def refusal(responses: list[fake_triton.Response]) -> tuple[str, str]:
    assert len(responses) == 1 and responses[0].error is not None
    return responses[0].error.message, responses[0].error.code


@pytest.mark.parametrize("loops", [1, 3, 5])
def test_one_response_holds_it_all(harness: Harness, loops: int) -> None:
    responses = harness.answer(input_ids=[1, 2, 3], n_loops=[loops], max_tokens=[6])
    expected = list(harness.engine.generate([1, 2, 3], loops, max_new_tokens=6))
    assert len(responses) == 1 and ids_of(responses) == expected
    assert text_of(responses).split() == [WORDS[token] for token in expected]
    assert reason_of(responses) == "length"
    # the toy halts a token at its id + 1, if its depth lets it
    fed = [3, *expected[:-1]]
    assert responses[0].tensors["halting_depth"].tolist() == [[min(loops, token + 1) for token in fed]]
    assert not {"num_input_tokens", "num_output_tokens"} & responses[0].tensors.keys()


def test_a_stream_gives_each_token_by_itself(harness: Harness) -> None:
    responses = harness.answer(
        text_input=[b"w1 w2"],
        max_tokens=[5],
        stream=[True],
        return_num_input_tokens=[True],
        return_num_output_tokens=[True],
    )
    whole = harness.answer(text_input=[b"w1 w2"], max_tokens=[5])
    assert [response.tensors["output_ids"].size for response in responses] == [1, 1, 1, 1, 1, 0]
    assert ids_of(responses) == ids_of(whole) and text_of(responses) == text_of(whole)
    assert reason_of(responses) == reason_of(whole) == "length"
    assert [response.tensors["num_output_tokens"].item() for response in responses] == [1, 1, 1, 1, 1, 0]
    assert {response.tensors["num_input_tokens"].item() for response in responses} == {2}


def test_an_end_id_is_the_last_token(harness: Harness) -> None:
    free = list(harness.engine.generate([1, 2], 2, max_new_tokens=8))
    responses = harness.answer(input_ids=[1, 2], n_loops=[2], max_tokens=[8], end_id=[free[3]])
    assert ids_of(responses) == free[: free.index(free[3]) + 1] and reason_of(responses) == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_word_is_left_out_of_the_text(harness: Harness, stream: bool) -> None:
    free = list(harness.engine.generate([1, 2], 2, max_new_tokens=8))
    text = text_of(harness.answer(input_ids=[1, 2], n_loops=[2], max_tokens=[8]))
    stop = " ".join(WORDS[token] for token in free[2:4])
    responses = harness.answer(
        input_ids=[1, 2], n_loops=[2], max_tokens=[8], stop_words=[stop.encode()], stream=[stream]
    )
    assert text_of(responses) == text[: text.index(stop)]
    shortest = next(count for count in range(9) if stop in " ".join(WORDS[token] for token in free[:count]))
    assert ids_of(responses) == free[:shortest] and reason_of(responses) == "stop"


def test_sampling_draws_as_alone(harness: Harness) -> None:
    options = {"temperature": 3.0, "top_k": 5, "seed": 11}
    expected = list(harness.engine.generate([4], 2, max_new_tokens=10, **options))
    senders = [harness.send({**options, "n_loops": 2, "max_tokens": 10}, input_ids=[4]) for _ in range(3)]
    assert [ids_of(sender.wait()) for sender in senders] == [expected] * 3


def test_many_at_once(harness: Harness) -> None:
    cases = [([1 + index % 7] * (1 + index % 5), 1 + index % 6, 1 + index % 9) for index in range(40)]
    senders = [harness.send(input_ids=ids, n_loops=[loops], max_tokens=[count]) for ids, loops, count in cases]
    for (ids, loops, count), sender in zip(cases, senders):
        assert ids_of(sender.wait()) == list(harness.engine.generate(ids, loops, max_new_tokens=count))


@pytest.mark.parametrize(
    ("parameters", "tensors", "message"),
    [
        ({}, {"input_ids": [16]}, "token id 16"),
        ({}, {"input_ids": [-1]}, "token id -1"),
        ({}, {"input_ids": np.zeros(0, np.int64)}, "the prompt is empty"),
        ({}, {"text_input": [b""]}, "the prompt is empty"),
        ({}, {"input_ids": [1] * 65}, "65 tokens, more than max_seq_len 64"),
        ({}, {"text_input": [b"w1 " * 5000]}, "text_input of 15000 characters cannot fit"),
        ({}, {"input_ids": [1], "max_tokens": [64]}, "1 tokens and max_tokens 64 exceed max_seq_len 64; ask for"),
        ({}, {"input_ids": [1], "max_tokens": [0]}, "max_tokens is 0"),
        ({}, {"input_ids": [1], "n_loops": [0]}, "n_loops is 0"),
        ({}, {"input_ids": [1], "n_loops": [10**9]}, "n_loops is 1000000000"),
        ({}, {"input_ids": [1], "n_loops": [25]}, "n_loops is 25; this scheduler takes at most 24"),
        ({}, {"input_ids": [1], "end_id": [99]}, "end_id is 99, which is not a token id"),
        ({"n_lops": 3}, {"input_ids": [1]}, "parameter 'n_lops' is unknown"),
        ({"max_new_tokens": 3}, {"input_ids": [1]}, "parameter 'max_new_tokens' is unknown"),
        ({}, {}, "give either text_input or input_ids"),
    ],
)
def test_a_bad_request_is_refused_and_the_next_one_served(
    harness: Harness, parameters: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    text, code = refusal(harness.answer(parameters, **tensors))
    assert message in text and code == "invalid"
    ours = set(re.findall(r"(?<!n_)loops is|max_new_tokens|^stop\b", text))
    assert ours <= parameters.keys(), "not what its sender calls it"
    assert len(ids_of(harness.answer(input_ids=[1], max_tokens=[2]))) == 2


def test_millions_of_ids_are_refused_before_each_becomes_an_object(harness: Harness) -> None:
    ids = np.broadcast_to(np.int64(1), 2**40)  # 8 TiB, were it written out
    assert refusal(harness.answer(input_ids=ids))[0] == f"the prompt has {2**40} tokens, more than max_seq_len 64"


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_millions_of_words_are_refused_before_each_becomes_an_object(harness: Harness, name: str) -> None:
    words = np.broadcast_to(np.array(b"x", np.object_), 2**40)
    text, code = refusal(harness.answer(input_ids=[1], **{name: words}))
    assert (text, code) == (f"{2**40} {name}; give at most 64", "invalid")


def test_millions_of_what_should_be_one(harness: Harness) -> None:
    text, _ = refusal(harness.answer(input_ids=[1], n_loops=np.broadcast_to(np.int64(1), 2**40)))
    assert text == f"n_loops has {2**40} values; give one"


def test_an_end_that_cannot_be_made_is_an_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the client waits for ever."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a wheel came off")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["engines.triton.backend.reply"].Reply, "_respond", broken)
        message, code = refusal(harness.answer(input_ids=[1], max_tokens=[2]))
    assert message == "the request's listener failed: a wheel came off" and code == fake_triton.TritonError.INTERNAL
    assert message in capsys.readouterr().err
    stats = harness.model._scheduler.stats
    assert (stats.finished, stats.failed) == (0, 1)
    assert harness.model._cancellations._watched == {}
    assert ids_of(harness.answer(input_ids=[1], max_tokens=[2]))


def test_an_end_that_cannot_be_sent_is_followed_by_a_bare_error(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send = fake_triton.Sender.send

    def no_room(self: Any, response: fake_triton.Response, flags: int = 0) -> None:
        if flags and response.error is None:
            raise fake_triton.ModelException("no shared memory")
        send(self, response, flags)

    with monkeypatch.context() as patch:
        patch.setattr(fake_triton.Sender, "send", no_room)
        *tokens, end = harness.answer(input_ids=[1], max_tokens=[3], stream=[True])
    assert ids_of(tokens) == list(harness.engine.generate([1], max_new_tokens=3))
    assert end.error is not None and end.error.message == "the end of this answer could not be sent"
    assert "error: a response could not be sent: no shared memory" in capsys.readouterr().err
    assert ids_of(harness.answer(input_ids=[1], max_tokens=[2]))


def test_a_parameter_whose_name_is_no_text(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fake_triton.Request, "parameters", lambda _: b"\xff".decode())  # what Triton's does
        message, code = refusal(harness.answer(input_ids=[1]))
    assert message == "the name of a parameter is not valid UTF-8"
    assert code == fake_triton.TritonError.INVALID_ARG
    assert ids_of(harness.answer(input_ids=[1], max_tokens=[2]))


def test_a_defect_is_the_error_of_one_request(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a wheel came off")

    with monkeypatch.context() as patch:
        patch.setattr(harness.model._scheduler, "submit", broken)
        message, code = refusal(harness.answer(input_ids=[1]))
    assert message == "this server has a defect: a wheel came off" and code == fake_triton.TritonError.INTERNAL
    assert "Traceback" in capsys.readouterr().err
    assert harness.model._cancellations._watched == {}
    assert ids_of(harness.answer(input_ids=[1], max_tokens=[2]))


def test_without_a_tokenizer_it_speaks_ids(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> None:
    harness = load(toy())
    responses = harness.answer(input_ids=[1], max_tokens=[3])
    assert len(ids_of(responses)) == 3 and text_of(responses) == ""
    assert "no tokenizer; give input_ids" in refusal(harness.answer(text_input=[b"x"]))[0]
    assert "no stop_words; give end_id" in refusal(harness.answer(input_ids=[1], stop_words=[b"x"]))[0]


def test_a_client_is_never_looked_after_once_it_is_answered(generator: Any) -> None:
    """The server crashes otherwise: the last response frees what `is_cancelled` looks at."""
    replies = sys.modules["engines.triton.backend.replies"]
    watching = replies.Cancellations(after_round=lambda: None, on_defect=lambda: None)
    for _ in range(30):
        clients = [replies.Client(fake_triton.Sender()) for _ in range(50)]
        for client in clients:
            watching.watch(client, lambda: None)
        threading.Event().wait(0.01)
        for client in clients:
            assert client.send(fake_triton.Response(), final=True)
            assert not client.send(fake_triton.Response(), final=True), "answered already"
            watching.forget(client)
    watching.close()
    assert not fake_triton.CRASHES


def test_generators_of_one_repository_share_the_memory(
    load: Callable[..., Harness], toy: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.serving.limits.available_memory", lambda: 120_000_000)
    assert load(toy()).model._scheduler._memory == 30_000_000
    entry = Entry(
        generator="a",
        tensors=None,
        backend="python",
        device="cpu",
        bundle="toy",
        precision="fp32",
        text=False,
        notes=[],
    )
    entries = [entry, entry.model_copy(update={"generator": "b"}), entry.model_copy(update={"generator": "c"})]
    (tmp_path / "mythos-repository.json").write_text(Record(tool="x", entries=entries).model_dump_json())
    assert load(toy()).model._scheduler._memory == 10_000_000
    assert load(toy(), cache_bytes="7000000").model._scheduler._memory == 7_000_000
    (tmp_path / "mythos-repository.json").write_text("nonsense")
    assert load(toy(), cache_bytes="7000000").model._scheduler._memory == 7_000_000
    assert load(toy()).model._scheduler._memory == 30_000_000, "a model's folder is complete without the record"


def test_a_full_queue_refuses_and_says_try_again(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> None:
    harness = load(toy(), max_batch="1", max_queue="1")
    senders = [harness.send(input_ids=[1], max_tokens=[60]) for _ in range(8)]
    answers = [sender.wait() for sender in senders]
    errors = [responses[0].error for responses in answers if responses[0].error]
    assert errors and all(error.code == "unavailable" and "queue is full" in error.message for error in errors)
    served = [ids_of(responses) for responses in answers if not responses[0].error]
    assert served and all(ids == list(harness.engine.generate([1], max_new_tokens=60)) for ids in served)


def test_a_client_that_goes_away_frees_its_place(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> None:
    harness = load(toy(), max_batch="1")
    scheduler = harness.model._scheduler
    step, slowly = scheduler._decoder.step, threading.Event()

    def slow(*arguments: Any) -> Any:
        slowly.wait(0.02)  # two of Triton's looks at its clients pass within six tokens
        return step(*arguments)

    scheduler._decoder.step = slow
    gone = harness.send(input_ids=[1], max_tokens=[60], n_loops=[6], stream=[True])
    gone.cancelled = True
    behind = harness.send(input_ids=[2], max_tokens=[3])
    *tokens, end = gone.wait()
    assert end.error is not None and end.error.code == "cancelled"
    assert len(ids_of(tokens)) < 60 if tokens else True
    assert len(ids_of(behind.wait())) == 3
    assert (scheduler.stats.cancelled, scheduler.stats.finished) == (1, 1)
    assert scheduler.stats.tokens < 3 + 60, "nobody went on working for it"
    assert scheduler.stats.running == scheduler.stats.cache_bytes == 0


def test_a_closed_connection_harms_nobody(harness: Harness) -> None:
    broken = harness.send(input_ids=[1], max_tokens=[40], stream=[True])
    broken.broken = True
    assert len(ids_of(harness.answer(input_ids=[2], max_tokens=[20]))) == 20


def test_unloading_answers_everybody(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> None:
    harness = load(toy(), max_batch="2")
    senders = [harness.send(input_ids=[1], max_tokens=[60]) for _ in range(6)]
    harness.model.finalize()
    for sender in senders:
        last = sender.wait()[-1]
        assert last.error is None or (last.error.code == "cancelled" and "unloaded" in last.error.message)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_scheduler_that_breaks_ends_the_process(
    generator: Any, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(generator.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(harness.model._scheduler, "_admit", lambda: 1 / 0)
    text, code = refusal(harness.answer(input_ids=[1], max_tokens=[3]))
    assert "the scheduler broke down" in text and code == "internal"
    assert ended.wait(10)


def wheel_comes_off(*_: Any) -> None:
    raise RuntimeError("a wheel came off")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("defect", ["send", "is_cancelled"])
def test_a_thread_that_breaks_ends_the_process(
    generator: Any, harness: Harness, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    """Else nobody is answered any more, or nobody is seen to leave, and the model stays ready."""
    ended, codes = threading.Event(), []
    monkeypatch.setattr(generator.os, "_exit", lambda code: (codes.append(code), ended.set()))
    with monkeypatch.context() as patch:
        patch.setattr(fake_triton.Sender, defect, wheel_comes_off)
        waiting = sys.modules["engines.triton.backend.replies"].Client(fake_triton.Sender())
        harness.model._cancellations.watch(waiting, lambda: None)  # as one whose answer takes long
        harness.send(input_ids=[1], max_tokens=[2])
        assert ended.wait(20)
    assert codes[0] == 70


def test_a_client_that_takes_nothing_does_not_keep_a_broken_process(
    generator: Any, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, taken = threading.Event(), threading.Event()
    monkeypatch.setattr(generator.os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(generator, "_LAST_SECONDS", 0.1)
    harness.model._outbox.put(taken.wait)
    harness.model._scheduler.broken = True
    assert ended.wait(20)
    taken.set()


def test_a_lost_response_is_an_error_of_the_server(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cancelled it, and a stream with a gap must not end as if it were whole."""
    send, lost = fake_triton.Sender.send, []

    def no_room_once(self: Any, response: fake_triton.Response, flags: int = 0) -> None:
        if not lost:
            lost.append(response)
            raise fake_triton.ModelException("no shared memory")
        send(self, response, flags)

    with monkeypatch.context() as patch:
        patch.setattr(fake_triton.Sender, "send", no_room_once)
        message, code = refusal(harness.answer(input_ids=[1], max_tokens=[3], stream=[True]))
    assert (message, code) == ("a response could not be sent", fake_triton.TritonError.INTERNAL)
    assert ids_of(harness.answer(input_ids=[1], max_tokens=[2]))


def test_metrics_count(harness: Harness) -> None:
    for count in (3, 4):
        harness.answer(input_ids=[1, 2], max_tokens=[count])
    stats = harness.model._scheduler.stats
    harness.model._metrics.show(stats, 130)
    shown = {name: metric.value for name, metric in harness.model._metrics._metrics.items()}
    assert shown["tokens"] == 7 and shown["prompt_tokens"] == 4 and shown["running"] == 0
    assert shown["load"] == 130
    harness.model._metrics.show(stats, 0)
    assert harness.model._metrics._metrics["load"].value == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": "many"}, "parameter max_batch of config.pbtxt is 'many'; it must be an integer"),
        ({"max_batch": "0"}, "max_batch of config.pbtxt is '0'; it must be an integer of at least 1"),
        ({"threads": "2000"}, "threads is 2000"),
        ({"cache_bytes": "-1"}, "'-1'; it must be an integer"),
    ],
)
def test_bad_settings_are_refused_when_it_loads(
    load: Callable[..., Harness], toy: Callable[..., Bundle], settings: dict[str, str], message: str
) -> None:
    with pytest.raises(engines.EngineError, match=message):
        load(toy(), **settings)


def test_the_models_own_end_ids_end_an_answer_and_leave_its_text(
    load: Callable[..., Harness], toy: Callable[..., Bundle], tmp_path: Path
) -> None:
    free = load(toy(files={"tokenizer.json": json.dumps(TOKENIZER)})).answer(
        input_ids=[1, 2], n_loops=[2], max_tokens=[8]
    )
    ids = free[-1].tensors["output_ids"][0].tolist()
    bundle = toy(files={"tokenizer.json": json.dumps(TOKENIZER)})
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["text"] = {"special_tokens": "none", "prefix": [], "suffix": [], "end": [ids[3]]}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    harness = load(bundle)
    first = ids.index(ids[3])

    def answer(**more: Any) -> tuple[str, list[int], str]:
        tensors = harness.answer(input_ids=[1, 2], n_loops=[2], max_tokens=[8], **more)[-1].tensors
        text, reason = (tensors[name][0, 0].decode() for name in ("text_output", "finish_reason"))
        return text.strip(), tensors["output_ids"][0].tolist(), reason

    assert answer() == (" ".join(f"w{token}" for token in ids[:first]), ids[: first + 1], "stop")
    assert answer(ignore_eos=[True])[1:] == (ids, "length")
    other = next(token for token in ids if token != ids[3])
    assert answer(end_id=[other])[1] == ids[: ids.index(other) + 1]


def test_a_prompt_may_be_part_of_its_answer(load: Callable[..., Harness], toy: Callable[..., Bundle]) -> None:
    harness = load(toy(files={"tokenizer.json": json.dumps(TOKENIZER)}))
    plain, echo = (
        harness.answer(text_input=[b"w1 w2"], n_loops=[2], max_tokens=[4], exclude_input_in_output=[excluded])[
            -1
        ].tensors
        for excluded in (True, False)
    )
    assert echo["output_ids"][0].tolist() == [1, 2, *plain["output_ids"][0].tolist()]
    assert echo["text_output"][0, 0] == b"w1 w2" + plain["text_output"][0, 0]
