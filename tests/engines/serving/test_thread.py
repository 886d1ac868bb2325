"""The scheduler in a thread of its own: starting, sleeping, closing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engines import Engine, EngineError
from engines.serving import QueueFull, Request, Scheduler, ServingLimits

Tokens = Callable[..., list[int]]
PATIENCE = 60  # seconds until a test that hangs fails


def test_many_threads_submit(toy_engine: Engine, recorder: Any, many: Any, alone: Any) -> None:
    requests = many(64, 16, 20, 6, 20)
    heard = [recorder() for _ in requests]
    with Scheduler(toy_engine, ServingLimits(max_batch=8)) as scheduler:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(scheduler.submit, requests, heard))
        assert all(each.ended.wait(PATIENCE) for each in heard)
        assert scheduler.stats[:4] == (0, 0, 0, 0)
        assert scheduler.stats.finished == 64
    assert [each.tokens for each in heard] == [alone(toy_engine, request) for request in requests]
    [thread] = set().union(*(each.threads for each in heard))
    assert thread != threading.get_ident()


def test_figures_agree_with_each_other_at_any_moment(toy_engine: Engine, recorder: Any, many: Any) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        heard = [recorder() for _ in range(40)]
        taken = 0
        with Scheduler(toy_engine, ServingLimits(max_batch=4, max_queue=5)) as scheduler:
            for request, listener in zip(many(40, 16, 9, 4, 9), heard):
                while not listener.ended.is_set():
                    try:
                        scheduler.submit(request, listener)
                        taken += 1
                        break
                    except QueueFull:
                        stats = scheduler.stats
                        assert sum((*stats[:3], stats.finished, stats.cancelled, stats.failed)) == taken
                        assert stats.waiting <= 5 and stats.running + stats.prefilling <= 4
            assert all(each.ended.wait(PATIENCE) for each in heard)
        assert scheduler.stats.refused > 0
    finally:
        sys.setswitchinterval(interval)


def test_it_sleeps_while_there_is_nothing_to_do(toy_engine: Engine, recorder: Any) -> None:
    steps: list[bool] = []
    scheduler = Scheduler(toy_engine)
    step, idle = scheduler.step, threading.Event()

    def counted() -> bool:
        steps.append(step())
        if not scheduler.stats.running:
            idle.set()
        return steps[-1]

    scheduler.step = counted  # type: ignore[method-assign]
    with scheduler:
        listener = recorder()
        scheduler.submit(Request([1], max_new_tokens=3), listener)
        assert listener.ended.wait(PATIENCE) and idle.wait(PATIENCE)
        assert not threading.Event().wait(0.2)
        assert len(steps) == 2  # whoever never sleeps would have made thousands
    assert steps[:2] == [True, True]


def test_close_cancels_whatever_is_there(toy_engine: Engine, recorder: Any) -> None:
    reached, hold = threading.Event(), threading.Event()

    def wants(_: Any) -> bool:
        reached.set()
        return hold.wait(PATIENCE)

    scheduler = Scheduler(toy_engine, ServingLimits(max_batch=1))
    scheduler.start()
    heard = [recorder(wants=wants), recorder(), recorder()]
    for listener in heard:
        scheduler.submit(Request([1], max_new_tokens=30), listener)
    assert reached.wait(PATIENCE)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    hold.set()
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert [each.end for each in heard] == ["cancelled"] * 3
    assert not any("scheduler" in thread.name for thread in threading.enumerate())
    assert len(set().union(*(each.threads for each in heard))) == 1  # all from the scheduler's thread
    assert scheduler.stats[:4] == (0, 0, 0, 0)
    with pytest.raises(EngineError, match="the scheduler is closed and takes no more requests"):
        scheduler.submit(Request([1]), recorder())
    with pytest.raises(EngineError, match="the scheduler is closed"):
        scheduler.start()
    scheduler.close()
    assert not scheduler.step()


def test_it_starts_once(toy_engine: Engine) -> None:
    with Scheduler(toy_engine) as scheduler, pytest.raises(EngineError, match="the scheduler is running already"):
        scheduler.start()


@pytest.mark.parametrize("threaded", [False, True])
def test_a_listener_may_close(toy_engine: Engine, recorder: Any, threaded: bool) -> None:
    scheduler = Scheduler(toy_engine)
    heard = [recorder(wants=lambda _: scheduler.close() or True), recorder()]
    for listener in heard:
        scheduler.submit(Request([1, 2], max_new_tokens=30), listener)
    if threaded:
        scheduler.start()
        assert all(each.ended.wait(PATIENCE) for each in heard)
        scheduler.close()
    else:
        scheduler.step()
    assert [each.end for each in heard] == ["cancelled"] * 2


def test_closing_one_that_was_never_started(toy_engine: Engine, recorder: Any) -> None:
    scheduler, listener = Scheduler(toy_engine), recorder()
    scheduler.submit(Request([1]), listener)
    scheduler.close()
    assert listener.end == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_leaves_nobody_waiting(toy_engine: Engine, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = [recorder(), recorder()]
    scheduler = Scheduler(toy_engine, ServingLimits(max_batch=1))
    monkeypatch.setattr(scheduler, "_decode", lambda joining: 1 // 0)
    for listener in heard:
        scheduler.submit(Request([1]), listener)
    scheduler.start()
    assert all(each.ended.wait(PATIENCE) for each in heard)
    assert {each.end for each in heard} == {
        "error: the scheduler broke down, by a defect of its own; start the server again"
    }
    with pytest.raises(EngineError, match="closed"):
        scheduler.submit(Request([1]), recorder())
    scheduler.close()
