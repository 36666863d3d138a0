"""The worker's side: a process that the program starts, and that sends and receives for it.

Lines of JSON: its plan comes first on standard input; it says ``ready``; a start moment comes; it says how far
it is, four times a second; ``finish`` comes; it says its outcome and ends. A plane that signs ahead gets a start
moment twice: first the planned one, for which it signs until it says ``signed``. When its input ends the program
is gone, and so is the worker.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar, runtime_checkable

import uvloop
from _alerts import Heard
from _traffic import Arrivals, Outcome, Schedule, Sending, outcome_of, send_on_time
from pydantic import BaseModel, ConfigDict

from tocsin.telemetry import set_aside

PROGRESS_S = 0.25


class TrafficPlan(BaseModel):
    """What every worker is told."""

    model_config = ConfigDict(frozen=True)

    nats_url: str
    nats_token_file: str
    schedule: Schedule
    sender: int
    """Which share of the schedule is this worker's."""
    agents: tuple[str, ...]
    """Those that it carries."""
    everyone: tuple[str, ...]
    body_bytes: int
    seed: int


class Start(BaseModel):
    """From the program: when message 0 is due, by the monotonic clock."""

    start_ns: int


class Said(BaseModel):
    """From a worker: how far it is."""

    state: Literal["ready", "signed", "running", "sent", "done"]
    received: int = 0
    sent: int = 0
    outcome: Outcome | None = None
    heard: Heard | None = None
    """What a host of :mod:`_listening` says instead of an outcome."""


P_co = TypeVar("P_co", bound=TrafficPlan, covariant=True)


class Plane(Protocol):
    """One way for messages to travel: through Tocsin, or through a plain relay."""

    arrivals: Arrivals

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, number: int, sender: str, recipient: str) -> Awaitable[None] | None:
        """Send message ``number`` from one agent to another."""
        ...

    def counters(self) -> dict[str, int]:
        """Return what the process has counted so far."""
        ...


@runtime_checkable
class SignsAhead(Protocol):
    """A plane that makes its messages before the traffic starts."""

    async def sign_ahead(self, start_ns: int, messages: Iterator[tuple[int, str, str]]) -> None:
        """Make every message (number, sender, recipient), issued when it is due.

        Args:
            start_ns: when message 0 is planned to be due, by the monotonic clock.
            messages: this worker's share, in order.
        """
        ...


def work(plan_model: type[P_co], plane_of: Callable[[P_co], Plane]) -> None:
    """Run a worker to its end."""
    plan = plan_model.model_validate_json(sys.stdin.readline())
    set_aside()
    uvloop.run(_work(plan, plane_of(plan)))


async def _work(plan: TrafficPlan, plane: Plane) -> None:
    async with plane:
        say(Said(state="ready"))
        before = plane.counters()
        share = plan.schedule.share(plan.sender)
        if isinstance(plane, SignsAhead):
            messages = ((number, *pair) for number, pair in zip(share, pairs(plan), strict=False))
            await plane.sign_ahead(Start.model_validate_json(await hear()).start_ns, messages)
            say(Said(state="signed"))
        start_ns = Start.model_validate_json(await hear()).start_ns
        plane.arrivals.start_ns = start_ns
        sending = Sending()
        traffic = asyncio.create_task(
            send_on_time(plan.schedule, share, start_ns, sender_of(plan, plane), sending)
        )
        finish = asyncio.create_task(hear())
        while not finish.done():
            await asyncio.wait({finish}, timeout=PROGRESS_S)
            if traffic.done():
                traffic.result()
            say(
                Said(
                    state="sent" if traffic.done() else "running",
                    received=len(plane.arrivals.numbers),
                    sent=len(sending.sent),
                )
            )
        finish.result()
        counted = {name: count - before.get(name, 0) for name, count in plane.counters().items()}
        say(Said(state="done", outcome=outcome_of(sending, plane.arrivals, counted)))


def pairs(plan: TrafficPlan) -> Iterator[tuple[str, str]]:
    """Draw who writes to whom, again and again: from one of this worker's agents to any other agent."""
    chance = random.Random(plan.seed)  # a seed fixes who writes to whom
    while True:
        sender = chance.choice(plan.agents)
        recipient = sender
        while recipient == sender:
            recipient = chance.choice(plan.everyone)
        yield sender, recipient


def sender_of(plan: TrafficPlan, plane: Plane) -> Callable[[int], Awaitable[None] | None]:
    """Return what sends message ``number``; called in the order of the numbers."""
    drawn = pairs(plan)

    def send(number: int) -> Awaitable[None] | None:
        return plane.send(number, *next(drawn))

    return send


def say(said: Said) -> None:
    """Tell the program."""
    print(said.model_dump_json(), flush=True)


async def hear() -> str:
    """Return what the program says next.

    Raises:
        EOFError: it is gone.
    """
    line: str = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        raise EOFError("the program is gone")
    return line
