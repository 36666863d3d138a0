"""The line between a subscription and its handler: open in order, verify in threads, hand over.

Envelopes keep their order. A full verification never runs on the event loop: the line takes what has
arrived, sends the batches that were not verified yet to a worker thread in one hand-over, and goes on.
The line is bounded; when it is full the subscription's callback waits, and the client's own bounded buffer
fills (:mod:`tocsin.bus.connection`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from tocsin.bus.ending import is_ending
from tocsin.bus.opener import Arrival, Context, Inspected, Opener
from tocsin.bus.replay import DuplicateError
from tocsin.contracts.base import Message
from tocsin.contracts.errors import TocsinError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.subjects import MessageClass
from tocsin.telemetry import Metrics, get_logger

Handler: TypeAlias = Callable[[Message, Context], Awaitable[object]]
Reject: TypeAlias = Callable[[TocsinError, str, bytes], None]

LINE_LENGTH = 4096
HAND_OVER = 32
"""Envelopes verified in one hand-over to a thread."""
PARK_S = 1.0
MAX_PARKED = 64
"""A new process's first message can overtake its certificate. So many messages of unknown keys wait, so
long, for a certificate that is on its way; nothing is looked up, and those beyond are refused at once."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Parked:
    data: bytes
    arrival: Arrival
    reply: str | None
    until: float
    error: TocsinError
    """Why it was not taken so far."""


def prove_all(opener: Opener, group: list[Inspected]) -> list[TocsinError | None]:
    """Verify a group in a worker thread; the outcome of each, in order."""
    outcomes: list[TocsinError | None] = []
    for inspected in group:
        try:
            opener.prove(inspected)
            outcomes.append(None)
        except UntrustedError as error:
            outcomes.append(error)
    return outcomes


class Intake:
    """Opens what one subscription receives and calls its handler."""

    def __init__(
        self,
        opener: Opener,
        threads: ThreadPoolExecutor,
        metrics: Metrics,
        handler: Handler,
        *,
        reject: Reject,
        name: str,
        concurrency: int = 1,
        restrict: Callable[[SpiffeId], bool] | None = None,
    ) -> None:
        self._opener = opener
        self._threads = threads
        self._metrics = metrics
        self._handler = handler
        self._reject = reject
        self._restrict = restrict
        self._name = name
        self._concurrency = concurrency
        self._line: asyncio.Queue[tuple[Inspected, str | None]] = asyncio.Queue(LINE_LENGTH)
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._parked: deque[_Parked] = deque()
        self._giving_up: asyncio.TimerHandle | None = None
        self._retries: set[asyncio.Task[None]] = set()

    async def put(self, data: bytes, arrival: Arrival, reply: str | None = None) -> None:
        """Take one message: steps 1 to 8 now, the rest in order behind what came before."""
        await self._put(data, arrival, reply, until=time.monotonic() + PARK_S)

    async def _put(self, data: bytes, arrival: Arrival, reply: str | None, *, until: float) -> None:
        try:
            inspected = self._opener.inspect(data, arrival, now_ns=time.time_ns())
        except TocsinError as error:
            if error.reason == "unknown_key" and len(self._parked) < MAX_PARKED:
                self._parked.append(_Parked(data, arrival, reply, until, error))
                self._give_up_later()
            else:
                self._reject(error, arrival.subject, data)
            return
        await self._line.put((inspected, reply))

    def identities_changed(self) -> None:
        """Try again what waits for a certificate."""
        if not self._parked:
            return
        waiting = list(self._parked)
        self._parked.clear()

        async def retry() -> None:
            for one in waiting:
                await self._put(one.data, one.arrival, one.reply, until=one.until)

        task = asyncio.create_task(retry())
        self._retries.add(task)
        task.add_done_callback(self._retries.discard)

    def _give_up_later(self) -> None:
        """One timer for all that wait: nothing is tried again before a certificate has come."""
        if self._giving_up is None:
            pause_s = max(0.0, min(one.until for one in self._parked) - time.monotonic())
            self._giving_up = asyncio.get_running_loop().call_later(pause_s, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        now = time.monotonic()
        over = [one for one in self._parked if one.until <= now]
        self._parked = deque(one for one in self._parked if one.until > now)
        for one in over:
            self._reject(one.error, one.arrival.subject, one.data)
        if self._parked:
            self._give_up_later()

    async def run(self) -> None:
        """Serve the line until cancelled."""
        while True:
            group = [await self._line.get()]
            while len(group) < HAND_OVER and not self._line.empty():
                group.append(self._line.get_nowait())
            outcomes = await self._prove([inspected for inspected, _ in group])
            for (inspected, reply), error in zip(group, outcomes, strict=True):
                if error is not None:
                    self._reject(error, inspected.arrival.subject, inspected.data)
                else:
                    await self._accept(inspected, reply)
                self._line.task_done()

    async def idle(self) -> None:
        """Wait until everything that came has been handled."""
        await self._line.join()
        if self._running:
            await asyncio.wait(self._running)

    async def _prove(self, group: list[Inspected]) -> list[TocsinError | None]:
        unproven = [inspected for inspected in group if not self._opener.is_proven(inspected)]
        if not unproven:
            return [None] * len(group)
        loop = asyncio.get_running_loop()
        failed = await loop.run_in_executor(self._threads, prove_all, self._opener, unproven)
        by_envelope = {id(inspected): error for inspected, error in zip(unproven, failed, strict=True)}
        return [by_envelope.get(id(inspected)) for inspected in group]

    async def _accept(self, inspected: Inspected, reply: str | None) -> None:
        try:
            body, context = self._opener.accept(
                inspected, now_ns=time.time_ns(), reply=reply, restrict=self._restrict
            )
        except DuplicateError:
            self._metrics.count(f"duplicates.{inspected.kind.name}")
            return
        except TocsinError as error:
            self._reject(error, inspected.arrival.subject, inspected.data)
            return
        self._metrics.count("envelopes_verified")
        if self._concurrency == 1:
            await self._handle(body, context)
            return
        await self._slots.acquire()
        task = asyncio.create_task(self._handle(body, context))
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()

    async def _handle(self, body: Message, context: Context) -> None:
        stored = context.kind.message_class is MessageClass.STORED
        begun = time.perf_counter()
        try:
            await self._handler(body, context)
        except TocsinError as error:
            self._metrics.count(f"handler_refusals.{error.reason}")
            log.warning("handler_refused", line=self._name, reason=error.reason, detail=str(error))
            if stored:
                self._opener.ledger.release(context.leaf)
        except (Exception, asyncio.CancelledError):  # the line outlives a handler's bug, logged with its trace
            if is_ending():
                raise
            self._metrics.count("handler_failures")
            log.exception("handler_failed", line=self._name, type=context.kind.name)
            if stored:
                self._opener.ledger.release(context.leaf)
        else:
            if stored:
                self._opener.ledger.done(context.leaf)
        finally:
            self._metrics.observe_ms(f"handle.{context.kind.name}", (time.perf_counter() - begun) * 1e3)
