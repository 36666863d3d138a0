"""The inbox: bounded, emergencies first, one agent's bugs its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tocsin.agent.inbox import Inbox, Job
from tocsin.contracts.errors import ExhaustedError
from tocsin.telemetry import Metrics


def noting(done: list[str], what: str) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        done.append(what)

    return work


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        raise error

    return work


def inbox(length: int = 3) -> tuple[Inbox, Metrics]:
    metrics = Metrics()
    return Inbox("a", metrics, length=length), metrics


async def test_emergencies_go_first_and_the_others_keep_their_order() -> None:
    box, _ = inbox()
    done: list[str] = []
    box.put(Job("x", noting(done, "one")))
    box.put(Job("x", noting(done, "two")))
    box.put(Job("x", noting(done, "now"), urgent=True))
    box.close()
    await box.run()
    assert done == ["now", "one", "two"]
    assert box.handled == 3


async def test_when_it_is_full_the_oldest_ordinary_message_goes_and_is_told() -> None:
    box, metrics = inbox()
    done: list[str] = []
    dropped: list[str] = []
    for name in ("one", "two", "three"):
        box.put(Job("x", noting(done, name), dropped=lambda name=name: dropped.append(name)))  # type: ignore[misc]  # bound now
    assert box.put(Job("x", noting(done, "now"), urgent=True))
    assert box.put(Job("x", noting(done, "four")))
    box.close()
    await box.run()
    assert (done, dropped) == (["now", "three", "four"], ["one", "two"])
    assert metrics.counter("inbox_dropped.x") == 2


async def test_an_emergency_is_never_dropped_for_another_message() -> None:
    box, metrics = inbox()
    done: list[str] = []
    for name in ("one", "two", "three"):
        assert box.put(Job("x", noting(done, name), urgent=True))
    assert not box.put(Job("y", noting(done, "late")))
    assert not box.put(Job("y", noting(done, "later"), urgent=True))
    box.close()
    await box.run()
    assert done == ["one", "two", "three"]
    assert metrics.counter("inbox_refused.y") == 2


async def test_a_handler_that_raises_is_counted_and_the_next_one_runs() -> None:
    box, metrics = inbox()
    done: list[str] = []
    box.put(Job("x", failing(RuntimeError("a bug"))))
    box.put(Job("x", failing(ExhaustedError("no room", reason="buffer_full"))))
    box.put(Job("x", noting(done, "after")))
    box.close()
    await box.run()
    assert (done, box.handled, box.failed) == (["after"], 1, 2)
    assert metrics.counter("agent_failures.x") == 2


async def test_nothing_is_taken_after_closing() -> None:
    box, _ = inbox()
    box.close()
    assert not box.put(Job("x", noting([], "late")))


async def test_it_says_how_long_its_handler_has_been_running() -> None:
    box, _ = inbox()
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    assert box.busy_s() == 0
    box.put(Job("x", hang))
    task = asyncio.create_task(box.run())
    await begun.wait()
    await asyncio.sleep(0)
    assert box.busy_s() > 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert box.busy_s() == 0


async def test_a_handler_whose_inner_work_was_cancelled_leaves_its_agent_able_to_hear() -> None:
    box, metrics = inbox()
    done: list[str] = []

    async def cancelled_within() -> None:
        inner = asyncio.ensure_future(asyncio.sleep(9))
        inner.cancel()
        await inner

    box.put(Job("x", cancelled_within))
    box.put(Job("x", noting(done, "after")))
    box.close()
    await box.run()
    assert (done, box.failed) == (["after"], 1)
    assert metrics.counter("agent_failures.x") == 1


async def test_an_agent_that_is_told_to_end_ends_within_its_handler() -> None:
    box, metrics = inbox()
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(60)

    box.put(Job("x", slow))
    task = asyncio.create_task(box.run())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert metrics.counter("agent_failures.x") == 0
