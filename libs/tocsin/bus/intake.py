"""The line between a subscription and its handler: open in order, verify in groups, hand over.

Envelopes keep their order. A full verification never runs on the event loop: the process's one
:class:`~tocsin.bus.proving.Prover` makes it. A handler that is a plain function is called at once; one that is a
coroutine has the line's own task, so that what it waits for holds up nobody else. The line is bounded: what comes
when it is full is refused as ``line_full``, counted and audited.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction, isroutine
from typing import TypeAlias

from tocsin.bus.ending import is_ending
from tocsin.bus.opener import Arrival, Context, Inspected, Opener
from tocsin.bus.proving import Needed, Prover
from tocsin.bus.replay import DuplicateError, NotNeededError
from tocsin.contracts.base import Message
from tocsin.contracts.errors import ExhaustedError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.subjects import MessageClass
from tocsin.telemetry import Metrics, get_logger

Handler: TypeAlias = Callable[[Message, Context], Awaitable[object] | None]
Reject: TypeAlias = Callable[[TocsinError, str, bytes], None]

LINE_LENGTH = 16_384
"""Messages that one line holds, from their arrival until they are handled: 70 MB of ordinary envelopes."""
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


async def call(handler: Handler, body: Message, context: Context) -> None:
    """Call a handler, and wait for it if it waits."""
    waiting = handler(body, context)
    if waiting is not None:
        await waiting


class Intake:
    """Opens what one subscription receives and calls its handler."""

    def __init__(
        self,
        opener: Opener,
        prover: Prover,
        metrics: Metrics,
        handler: Handler,
        *,
        reject: Reject,
        name: str,
        concurrency: int = 1,
        restrict: Callable[[SpiffeId], bool] | None = None,
        needed: Needed | None = None,
    ) -> None:
        self._opener = opener
        self._prover = prover
        self._metrics = metrics
        self._handler = handler
        self._reject = reject
        self._restrict = restrict
        self._needed = needed
        self._name = name
        self._concurrency = concurrency
        self._on_proven = self._proven
        self._waits = iscoroutinefunction(handler) or not isroutine(handler)
        self._inside = 0
        self._idle, self._ready = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._accepted: deque[tuple[Message, Context]] = deque()
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._parked: deque[_Parked] = deque()
        self._giving_up: asyncio.TimerHandle | None = None

    def put(self, data: bytes, arrival: Arrival, reply: str | None = None) -> None:
        """Take one message: steps 1 to 8 now, the rest in order behind what came before."""
        if self._needed is not None and not self._needed(arrival.subject):
            self._metrics.count(f"not_needed.{self._name}")
            return
        self._put(data, arrival, reply, until=0.0)

    def _put(self, data: bytes, arrival: Arrival, reply: str | None, *, until: float) -> None:
        try:
            if self._inside >= LINE_LENGTH:
                raise ExhaustedError(f"{LINE_LENGTH} messages wait in this line", reason="line_full")
            inspected = self._opener.inspect(data, arrival, now_ns=time.time_ns())
        except TocsinError as error:
            if error.reason == "unknown_key" and len(self._parked) < MAX_PARKED:
                self._parked.append(_Parked(data, arrival, reply, until or time.monotonic() + PARK_S, error))
                self._give_up_later()
            else:
                self._reject(error, arrival.subject, data)
            return
        self._inside += 1
        self._idle.clear()
        self._prover.put(inspected, reply, self._on_proven, self._needed)

    def identities_changed(self) -> None:
        """Try again what waits for a certificate."""
        if not self._parked:
            return
        waiting = list(self._parked)
        self._parked.clear()
        for one in waiting:
            self._put(one.data, one.arrival, one.reply, until=one.until)

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
        """Call a handler that is a coroutine, message after message, until cancelled."""
        while self._waits:
            if not self._accepted:
                self._ready.clear()
                await self._ready.wait()
            body, context = self._accepted.popleft()
            if self._concurrency == 1:
                await self._handle(body, context)
                self._left()
            else:
                await self._slots.acquire()
                task = asyncio.create_task(self._handle(body, context))
                self._running.add(task)
                task.add_done_callback(self._finished)

    async def idle(self) -> None:
        """Wait until everything that came has been handled."""
        await self._idle.wait()

    def _left(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._idle.set()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()
        self._left()

    def _proven(self, inspected: Inspected, reply: str | None, error: TocsinError | None) -> None:
        """Take an envelope whose signature was verified: steps 10 to 12, then the handler."""
        try:
            if error is not None:
                raise error
            body, context = self._opener.accept(
                inspected, now_ns=time.time_ns(), reply=reply, restrict=self._restrict
            )
        except DuplicateError:
            self._metrics.count(f"duplicates.{inspected.kind.name}")
            self._left()
        except NotNeededError:
            self._metrics.count(f"not_needed.{self._name}")
            self._left()
        except TocsinError as refused:
            self._reject(refused, inspected.arrival.subject, inspected.data)
            self._left()
        else:
            self._metrics.count("envelopes_verified")
            if self._waits:
                self._accepted.append((body, context))
                self._ready.set()
            else:
                self._call(body, context)
                self._left()

    def _call(self, body: Message, context: Context) -> None:
        """Call a handler that is a plain function."""
        begun = time.perf_counter()
        try:
            self._handler(body, context)
        except Exception as error:  # noqa: BLE001 - the line outlives a handler's bug, which is logged
            self._failed(error, context)
        else:
            self._done(context, begun)

    async def _handle(self, body: Message, context: Context) -> None:
        begun = time.perf_counter()
        try:
            self._opener.require_trusted(context.kind, context.key_id)
        except UntrustedError as refused:
            self._reject(refused, context.subject, context.data)
            self._failed(refused, context)
            return
        try:
            await call(self._handler, body, context)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_ending():
                raise
            self._failed(error, context)
        else:
            self._done(context, begun)

    def _done(self, context: Context, begun: float) -> None:
        if context.kind.message_class is MessageClass.STORED:
            self._opener.ledger.done(context.leaf)
        self._metrics.observe_ms(f"handle.{context.kind.name}", (time.perf_counter() - begun) * 1e3)

    def _failed(self, error: BaseException, context: Context) -> None:
        """Count a refusal, log a bug with its trace, and give a stored message back."""
        if isinstance(error, TocsinError):
            self._metrics.count(f"handler_refusals.{error.reason}")
            log.warning("handler_refused", line=self._name, reason=error.reason, detail=str(error))
        else:
            self._metrics.count("handler_failures")
            log.error("handler_failed", line=self._name, type=context.kind.name, exc_info=error)
        if context.kind.message_class is MessageClass.STORED:
            self._opener.ledger.release(context.leaf)
