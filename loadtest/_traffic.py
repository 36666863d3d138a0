"""Open-loop traffic: what is due when, sending it on time, and what arrived.

Message ``n`` is due at ``start + n / rate`` whatever became of the others, and its latency counts from that
moment, not from when a busy sender got round to it (coordinated omission). Clocks are ``time.monotonic_ns``,
which the processes of one machine share.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from tocsin.bus.envelope import encode_body
from tocsin.contracts.base import Message
from tocsin.contracts.errors import TocsinError

LATE_MS = 5.0
"""A send that begins later than this after it was due is counted as late: the sender, not the system, is slow.
Event loops keep time to a millisecond."""
MAX_IN_FLIGHT = 16_384
"""Sends that one process has begun and not ended; beyond it the sender waits, and its sends become late."""
TICK_NS = 2_000_000
"""Senders wake at most this often. The loop's clock has milliseconds, and four senders that wake at each of them
take a tenth of a core from the system; a message is sent up to 2 ms late by it, which is in its latency."""
TURN = 64
"""Overdue sends begun before the event loop does anything else."""
MAX_TEXT = 512
"""Longest text that the models hold (tocsin.contracts.base)."""


class Schedule(BaseModel):
    """Which messages there are, and when each is due."""

    model_config = ConfigDict(frozen=True)

    rate: float
    """Messages per second, of all senders together."""
    warmup: int
    """Messages at the beginning that are sent like the others and not measured."""
    measured: int
    senders: int

    @property
    def total(self) -> int:
        """All messages, warm-up included."""
        return self.warmup + self.measured

    def due_ns(self, number: int) -> int:
        """Return when a message is due, in nanoseconds after the start."""
        return round(number * 1e9 / self.rate)

    def share(self, sender: int) -> range:
        """Return the numbers of one sender's messages: they take turns."""
        return range(sender, self.total, self.senders)


def schedule(*, rate: float, warmup_s: float, seconds: float, senders: int) -> Schedule:
    """Return the schedule of a run."""
    return Schedule(
        rate=rate,
        warmup=math.ceil(rate * warmup_s),
        measured=max(1, round(rate * seconds)),
        senders=senders,
    )


@dataclass(slots=True)
class Sending:
    """What one sender did."""

    begun: int = 0
    sent: list[int] = field(default_factory=list)
    """Numbers of the messages whose sending succeeded."""
    failures: Counter[str] = field(default_factory=Counter)
    lags_ms: array[float] = field(default_factory=lambda: array("d"))
    """How late each send began, warm-up included, in order."""
    took_ms: array[float] = field(default_factory=lambda: array("d"))
    """How long each successful send took, in the order of ``sent``."""


@dataclass(slots=True)
class Arrivals:
    """What one process received: a number and a latency each, in order, duplicates included."""

    schedule: Schedule
    start_ns: int = 0
    numbers: array[int] = field(default_factory=lambda: array("q"))
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    last_ns: int = 0

    def arrived(self, number: int) -> None:
        """Record an arrival, now."""
        now_ns = time.monotonic_ns()
        self.numbers.append(number)
        self.latencies_ms.append((now_ns - self.start_ns - self.schedule.due_ns(number)) / 1e6)
        self.last_ns = now_ns


async def send_on_time(
    plan: Schedule,
    share: Iterable[int],
    start_ns: int,
    send: Callable[[int], Awaitable[None] | None],
    done: Sending,
) -> None:
    """Begin each send when it is due, whether or not those before it have ended.

    Args:
        plan: when each message is due.
        share: the numbers of this sender's messages.
        start_ns: the moment from which the due moments count.
        send: sends one message; what it returns, if anything, is awaited by a task of its own.
        done: where it is recorded.
    """
    room = asyncio.Semaphore(MAX_IN_FLIGHT)
    in_flight: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        in_flight.discard(task)
        room.release()

    for number in share:
        due_ns = start_ns + plan.due_ns(number)
        while (wait_ns := due_ns - time.monotonic_ns()) > 0:  # noqa: ASYNC110 - time passes, nobody sets an event
            await asyncio.sleep(math.ceil(wait_ns / TICK_NS) * TICK_NS / 1e9)
        if done.begun % TURN == 0:
            await asyncio.sleep(0)
        if (sending := _begin(number, due_ns, send, done)) is not None:
            await room.acquire()
            task = asyncio.create_task(sending)
            in_flight.add(task)
            task.add_done_callback(ended)
    # A task that failed with anything but an error of ours fails the run.
    await asyncio.gather(*in_flight)


def _begin(
    number: int, due_ns: int, send: Callable[[int], Awaitable[None] | None], done: Sending
) -> Coroutine[Any, Any, None] | None:
    """Begin one send; return what is left of it, if anything."""
    done.begun += 1
    begun_ns = time.monotonic_ns()
    done.lags_ms.append((begun_ns - due_ns) / 1e6)

    def ended() -> None:
        done.sent.append(number)
        done.took_ms.append((time.monotonic_ns() - begun_ns) / 1e6)

    async def rest(sending: Awaitable[None]) -> None:
        try:
            await sending
        except TocsinError as error:
            done.failures[error.reason] += 1
        else:
            ended()

    try:
        sending = send(number)
    except TocsinError as error:
        done.failures[error.reason] += 1
        return None
    if sending is not None:
        return rest(sending)
    ended()
    return None


class Outcome(BaseModel):
    """What one process sent and received; travels from a worker to the program."""

    sent: list[int]
    failures: dict[str, int]
    lags_ms: list[float]
    took_ms: list[float]
    numbers: list[int]
    latencies_ms: list[float]
    last_ns: int
    counters: dict[str, int]
    """What the process counted while the traffic ran, warm-up included."""


def outcome_of(sending: Sending, arrivals: Arrivals, counters: dict[str, int]) -> Outcome:
    """Make one process's outcome."""
    return Outcome(
        sent=sending.sent,
        failures=dict(sending.failures),
        lags_ms=sending.lags_ms.tolist(),
        took_ms=sending.took_ms.tolist(),
        numbers=arrivals.numbers.tolist(),
        latencies_ms=arrivals.latencies_ms.tolist(),
        last_ns=arrivals.last_ns,
        counters=counters,
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """The measured messages of a run, over all processes."""

    sent: int
    received: int
    lost: int
    duplicates: int
    not_sent: int
    late_sends: int
    latencies_ms: Sequence[float]
    """Of each message's first arrival."""
    lags_ms: Sequence[float]
    took_ms: Sequence[float]
    """From a send's begin until it was handed to the broker's connection: signing is in it."""
    achieved_per_s: float
    """Messages received over the time from the first due moment to the last arrival."""


def tally(plan: Schedule, start_ns: int, outcomes: Sequence[Outcome]) -> Tally:
    """Join what the processes sent and received; the warm-up is left out."""
    sent = {number for one in outcomes for number in one.sent if number >= plan.warmup}
    arrivals = [pair for one in outcomes for pair in zip(one.numbers, one.latencies_ms, strict=True)]
    first: dict[int, float] = {}
    duplicates = 0
    for number, latency_ms in arrivals:
        if number < plan.warmup:
            continue
        duplicates += number in first
        first[number] = min(latency_ms, first.get(number, math.inf))
    # Each process's warm-up comes first in its own order: sender i has numbers i, i + senders, ...
    lags = [
        lag
        for sender, one in enumerate(outcomes)
        for number, lag in zip(plan.share(sender), one.lags_ms, strict=False)
        if number >= plan.warmup
    ]
    begun_ns = start_ns + plan.due_ns(plan.warmup)
    took_s = (max((one.last_ns for one in outcomes), default=0) - begun_ns) / 1e9
    return Tally(
        sent=len(sent),
        received=len(first),
        lost=len(sent - first.keys()),
        duplicates=duplicates,
        not_sent=plan.measured - len(sent),
        late_sends=sum(lag > LATE_MS for lag in lags),
        latencies_ms=list(first.values()),
        lags_ms=lags,
        took_ms=[
            took_ms
            for one in outcomes
            for number, took_ms in zip(one.sent, one.took_ms, strict=True)
            if number >= plan.warmup
        ],
        achieved_per_s=round(len(first) / took_s, 1) if took_s > 0 else 0.0,
    )


def padded(make: Callable[[str], Message], size: int) -> str:
    """Return the text with which ``make`` gives a body of ``size`` bytes, or as near as 512 characters come."""
    text = ""
    for _ in range(3):  # a longer text can have a longer header, once or twice
        length = len(text) + size - len(encode_body(make(text)))
        text = "x" * min(max(length, 0), MAX_TEXT)
    return text


def sum_counters(outcomes: Iterable[dict[str, Any]]) -> Counter[str]:
    """Add the counters of several processes."""
    total: Counter[str] = Counter()
    for one in outcomes:
        total.update(one)
    return total
