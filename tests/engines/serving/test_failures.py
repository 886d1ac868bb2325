"""What goes wrong hits whom it concerns, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines import EngineError
from engines.serving import Request, Scheduler, ServingLimits

Tokens = Callable[..., list[int]]
ERRORS = [EngineError("model.onnx: out of order"), RuntimeError("out\nof order")]


def drive(scheduler: Scheduler) -> None:
    while scheduler.step():
        pass


def raising(error: Exception, when: Callable[[dict[str, Any]], bool]) -> Callable[[dict[str, Any]], None]:
    def before(call: dict[str, Any]) -> None:
        if when(call):
            raise error

    return before


class TestCalls:
    @pytest.mark.parametrize("error", ERRORS)
    def test_a_failing_prefill_fails_those_it_reads(
        self, spied: Any, recorder: Any, toy_tokens: Tokens, error: Exception
    ) -> None:
        scheduler = Scheduler(spied.engine, ServingLimits(prefill_chunk=4))
        heard = [recorder() for _ in range(4)]
        spied.before = raising(error, lambda call: call["seq"] > 1 and 9 in call["ids"])
        for prompt, listener in zip([[1, 1], [9, 9], [2], [3, 3, 3]], heard):
            scheduler.submit(Request(prompt, loops=2, max_new_tokens=5), listener)
        drive(scheduler)
        failed = [each.end.startswith("error: ") and each.end.endswith("out of order") for each in heard]
        assert failed == [True, True, False, False]  # the first two were read in one call
        assert heard[2].tokens == toy_tokens([2], 2, 5)
        assert heard[3].tokens == toy_tokens([3, 3, 3], 2, 5)
        assert scheduler.stats[:4] == (0, 0, 0, 0)
        assert (scheduler.stats.finished, scheduler.stats.failed) == (2, 2)

    def test_a_prompt_that_fails_in_its_second_chunk(self, spied: Any, recorder: Any, toy_tokens: Tokens) -> None:
        scheduler = Scheduler(spied.engine, ServingLimits(prefill_chunk=4))
        heard = [recorder(), recorder()]
        spied.before = raising(ERRORS[0], lambda call: 15 in call["ids"])
        scheduler.submit(Request([1, 1, 1, 1, 15, 1], loops=2), heard[0])
        scheduler.submit(Request([1, 2], loops=2, max_new_tokens=2), heard[1])
        drive(scheduler)
        assert heard[0].end == "error: model.onnx: out of order"
        assert heard[1].tokens == toy_tokens([1, 2], 2, 2)
        assert scheduler.stats.cache_bytes == 0

    @pytest.mark.parametrize("error", ERRORS)
    def test_a_failing_step_fails_those_that_run(
        self, spied: Any, recorder: Any, toy_tokens: Tokens, error: Exception
    ) -> None:
        scheduler = Scheduler(spied.engine, ServingLimits(prefill_chunk=2))
        heard = [recorder() for _ in range(3)]
        for prompt, listener in zip([[1], [2], [3] * 12], heard):
            scheduler.submit(Request(prompt, loops=2, max_new_tokens=9), listener)
        for _ in range(3):
            scheduler.step()
        spied.before = raising(error, lambda call: call["batch"] == 2)
        scheduler.step()
        assert all(each.end.startswith("error: ") for each in heard[:2])
        assert scheduler.stats[:3] == (0, 1, 0)
        drive(scheduler)
        assert heard[2].tokens == toy_tokens([3] * 12, 2, 9)  # it was being read
        assert scheduler.stats[:4] == (0, 0, 0, 0)

    @pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["logits", "halting", "prelude rows", "recurrent rows"])
    @pytest.mark.parametrize("decoding", [False, True])
    def test_a_graph_that_is_not_what_its_manifest_says(
        self, spied: Any, recorder: Any, toy_tokens: Tokens, which: int, decoding: bool
    ) -> None:
        broken = True

        def after(call: dict[str, Any], results: list[Any]) -> list[Any]:
            if broken and decoding == bool(call["past"]["past.prelude.latent"][2]):
                results[which] = np.concatenate([results[which]] * 2, axis=1)
            return results

        spied.after = after
        scheduler, listener = Scheduler(spied.engine), recorder()
        scheduler.submit(Request([1, 2], loops=2, max_new_tokens=3), listener)
        drive(scheduler)
        assert listener.end.startswith("error: the graph returned ")
        assert len(listener.tokens) == decoding
        broken, listener = False, recorder()
        scheduler.submit(Request([1, 2], loops=2, max_new_tokens=3), listener)
        drive(scheduler)
        assert listener.tokens == toy_tokens([1, 2], 2, 3)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("decoding", [False, True])
    def test_logits_that_are_not_finite_fail_their_own_sequence(
        self, spied: Any, recorder: Any, toy_tokens: Tokens, value: float, decoding: bool
    ) -> None:
        def after(call: dict[str, Any], results: list[Any]) -> list[Any]:
            if call["batch"] == 3 and decoding == bool(call["past"]["past.prelude.latent"][2]):
                results[0][1, -1, 4] = value
            return results

        spied.after = after
        scheduler = Scheduler(spied.engine)
        heard = [recorder() for _ in range(3)]
        for token, listener in enumerate(heard):
            scheduler.submit(Request([token], loops=2, max_new_tokens=6), listener)
        drive(scheduler)
        assert heard[1].end.startswith(f"error: the model produced {value} logits")
        assert len(heard[1].tokens) == decoding
        assert heard[0].tokens == toy_tokens([0], 2, 6)
        assert heard[2].tokens == toy_tokens([2], 2, 6)

    @pytest.mark.parametrize(
        ("function", "size", "message"),
        [("stack", 17, "MemoryError"), ("zeros", 5, "no memory for a cache of 1 x 17 tokens")],
        ids=["ids", "cache"],
    )
    def test_no_memory_for_a_prompt(
        self,
        spied: Any,
        recorder: Any,
        toy_tokens: Tokens,
        monkeypatch: pytest.MonkeyPatch,
        function: str,
        size: int,
        message: str,
    ) -> None:
        scheduler, heard = Scheduler(spied.engine, ServingLimits(prefill_chunk=8)), [recorder(), recorder()]
        scheduler.submit(Request([1] * 17, loops=5, max_new_tokens=3), heard[0])
        scheduler.submit(Request([1] * 2, loops=2, max_new_tokens=3), heard[1])
        make = getattr(np, function)

        def out_of_memory(given: Any, *rest: Any) -> np.ndarray:
            if size in (np.atleast_1d(given) if function == "zeros" else np.shape(given)):
                raise MemoryError
            return make(given, *rest)

        monkeypatch.setattr(np, function, out_of_memory)
        drive(scheduler)
        assert heard[0].end.startswith(f"error: {message}")
        assert heard[1].tokens == toy_tokens([1] * 2, 2, 3)


class TestListeners:
    @pytest.mark.parametrize("at", [1, 3])
    def test_one_that_raises_on_a_token(self, spied: Any, recorder: Any, toy_tokens: Tokens, at: int) -> None:
        def wants(self: Any) -> bool:
            if len(self.tokens) == at:
                raise RuntimeError("pipe\nclosed")
            return True

        scheduler, heard = Scheduler(spied.engine), [recorder(wants=wants), recorder()]
        for listener in heard:
            scheduler.submit(Request([1], loops=2, max_new_tokens=6), listener)
        drive(scheduler)
        assert heard[0].end == "error: the request's listener failed: pipe closed"
        assert len(heard[0].tokens) == at
        assert heard[1].tokens == toy_tokens([1], 2, 6)
        assert (scheduler.stats.finished, scheduler.stats.failed) == (1, 1)
        assert {call["batch"] for call in spied.decodes[at:]} == {1}

    @pytest.mark.parametrize("method", ["on_finish", "is_cancelled"])
    def test_one_that_raises_elsewhere(
        self, spied: Any, recorder: Any, toy_tokens: Tokens, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> None:
            heard[0].ends.append(method)
            raise RuntimeError("gone")

        scheduler, heard = Scheduler(spied.engine), [recorder(), recorder()]
        monkeypatch.setattr(heard[0], method, broken)
        monkeypatch.setattr(heard[0], "_end", heard[0].ends.append)
        for listener in heard:
            scheduler.submit(Request([1], loops=2, max_new_tokens=2), listener)
        drive(scheduler)
        assert heard[0].ends == [method, "error: the request's listener failed: gone"]
        assert heard[1].tokens == toy_tokens([1], 2, 2)
        assert scheduler.stats[:4] == (0, 0, 0, 0)
        assert (scheduler.stats.finished, scheduler.stats.failed) == (1, 1)

    def test_one_whose_on_error_raises_too(self, spied: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("gone")

        scheduler, listener = Scheduler(spied.engine), recorder(wants=broken)
        monkeypatch.setattr(listener, "on_error", broken)
        scheduler.submit(Request([1]), listener)
        drive(scheduler)
        assert (scheduler.stats.finished, scheduler.stats.failed) == (0, 1)

    def test_one_that_steps(self, spied: Any, recorder: Any) -> None:
        scheduler = Scheduler(spied.engine)
        listener = recorder(wants=lambda _: scheduler.step())
        scheduler.submit(Request([1]), listener)
        drive(scheduler)
        assert listener.end.endswith("a listener must not step the scheduler that calls it")

    def test_one_that_submits(self, spied: Any, recorder: Any, toy_tokens: Tokens) -> None:
        scheduler, second = Scheduler(spied.engine), recorder()

        def wants(self: Any) -> bool:
            if len(self.tokens) == 2:
                scheduler.submit(Request([4], loops=3, max_new_tokens=5), second)
            return True

        scheduler.submit(Request([1], max_new_tokens=3), recorder(wants=wants))
        drive(scheduler)
        assert second.tokens == toy_tokens([4], 3, 5)


class TestCancel:
    @pytest.mark.parametrize("where", ["waiting", "prefilling", "running"])
    def test_it_frees_at_once(self, spied: Any, recorder: Any, toy_tokens: Tokens, where: str) -> None:
        gone: list[bool] = []
        batch = 1 if where == "waiting" else 4
        scheduler = Scheduler(spied.engine, ServingLimits(prefill_chunk=4, max_batch=batch))
        other, listener = recorder(), recorder(gone=lambda _: bool(gone))
        scheduler.submit(Request([1], loops=1, max_new_tokens=20), other)
        scheduler.step()
        scheduler.submit(Request([2] * 9 if where == "prefilling" else [2], loops=6, max_new_tokens=20), listener)
        scheduler.step()
        assert getattr(scheduler.stats, where) >= 1
        heard, calls = len(listener.tokens), len(spied.calls)
        before = scheduler.stats.cache_bytes
        gone.append(True)
        scheduler.step()
        assert listener.end == "cancelled"
        assert len(listener.tokens) == heard
        assert spied.calls[calls:][0]["loops"] == [1]  # the other one, alone
        assert scheduler.stats[:3] == (1, 0, 0)
        assert (scheduler.stats.cache_bytes < before) == (where != "waiting")
        drive(scheduler)
        assert other.tokens == toy_tokens([1], 1, 20)
        assert (scheduler.stats.finished, scheduler.stats.cancelled) == (1, 1)

    def test_the_only_one(self, spied: Any, recorder: Any) -> None:
        gone: list[bool] = []
        scheduler, listener = Scheduler(spied.engine), recorder(gone=lambda _: bool(gone))
        scheduler.submit(Request([1]), listener)
        scheduler.step()
        gone.append(True)
        assert scheduler.step()
        assert scheduler.stats.cache_bytes == 0
        assert listener.end == "cancelled"
        assert not scheduler.step()


def test_an_engine_with_its_cache_on_a_device(spied: Any) -> None:
    class OnDevice:
        loops = "dynamic"

        def new_cache(self) -> None: ...

    spied.engine.load_graph = lambda file: OnDevice()
    with pytest.raises(EngineError, match="needs the cache in the host's memory"):
        Scheduler(spied.engine)
