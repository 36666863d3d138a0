"""Consume a stream under a durable name: at least once, never more than there are free hands.

A message is acknowledged when its handler is done. One that is malformed, untrusted or refused is
terminated, never retried; one whose handler failed is given back and comes again after a pause that
doubles, at most ``max_deliver`` times: with five, for 7.5 seconds. While a handler works, the broker is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from tocsin.bus.connection import Connection, translate
from tocsin.bus.ending import end_tasks
from tocsin.bus.intake import Handler, Reject, call
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.bus.replay import ClaimedError, DuplicateError
from tocsin.contracts.base import Message
from tocsin.contracts.errors import (
    DeniedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.subjects import READER_AUDIENCE, MessageClass, Subject
from tocsin.telemetry import Metrics, get_logger

FETCH_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 0.5
MAX_DOUBLINGS = 6
UNKNOWN_KEY_S = 10.0
"""How long a message waits in its stream for its sender's certificate. Without an end, one message of a made-up key
would hold up all behind it where order is kept, for as long as the stream keeps it."""
CATCH_UP_POLL_S = 0.02
TERMINAL = (InvalidInputError, UntrustedError, DeniedError)

log = get_logger(__name__)


class Consumer:
    """Hands a durable consumer's messages to a handler, ``concurrency`` at a time."""

    def __init__(
        self,
        connection: Connection,
        opener: Opener,
        threads: ThreadPoolExecutor,
        metrics: Metrics,
        subject: Subject,
        handler: Handler,
        *,
        reader: Callable[[], frozenset[str]],
        reject: Reject,
        concurrency: int,
    ) -> None:
        self._connection = connection
        self._opener = opener
        self._threads = threads
        self._metrics = metrics
        self._subject = subject
        self._handler = handler
        self._reader = reader
        self._reject = reject
        self._concurrency = concurrency
        self._busy: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._subscription: JetStreamContext.PullSubscription | None = None
        self._ack_wait_s = 30.0

    async def start(
        self, config: api.ConsumerConfig, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    ) -> None:
        """Create or find the durable consumer and begin."""
        self._ack_wait_s = config.ack_wait or 30.0
        assert self._subject.stream is not None  # noqa: S101 - the catalogue gives consumed subjects a stream
        try:
            subscription = await self._connection.js.pull_subscribe(
                config.filter_subject or "",
                durable=config.durable_name,
                stream=self._subject.stream,
                config=config,
            )
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, f"consumer {config.durable_name}") from error
        self._subscription = subscription
        self._loop = spawn(self._run(subscription), f"consumer {config.durable_name}")

    async def caught_up(self, *, timeout_s: float) -> bool:
        """Wait until everything that the stream holds has been handled; False if the time is over first."""
        if self._subscription is None:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    info = await self._subscription.consumer_info()
                    if not info.num_pending and not info.num_ack_pending:
                        return True
                    await asyncio.sleep(CATCH_UP_POLL_S)
        except (TimeoutError, nats.errors.Error):
            return False

    async def stop(self) -> None:
        """Fetch no more, and let what runs come to its end (at most five seconds)."""
        if self._loop is not None:
            await end_tasks((self._loop,))
        if self._busy:
            await asyncio.wait(self._busy, timeout=5.0)
        for task in self._busy:
            task.cancel()
        if self._subscription is not None:
            # Left to the connection's drain, a pull subscription would hold it up until its timeout.
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()

    async def _run(self, subscription: JetStreamContext.PullSubscription) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        while True:
            await slots.acquire()
            message = await self._fetch(subscription)
            if message is None:
                slots.release()
                continue
            task = asyncio.create_task(self._one(message))
            self._busy.add(task)

            def ended(task: asyncio.Task[None]) -> None:
                self._busy.discard(task)
                slots.release()

            task.add_done_callback(ended)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> Msg | None:
        """Fetch one message; None if none came.

        One at a time on purpose: a fetch of several that finds fewer can leave a request behind on the server,
        and what that takes is only seen when the next fetch has timed out, up to five seconds later.
        """
        try:
            (message,) = await subscription.fetch(1, timeout=FETCH_TIMEOUT_S)
        except (nats.errors.TimeoutError, TimeoutError):
            return None
        except nats.errors.Error as error:
            # The broker is away or restarts; the durable consumer is on its disk.
            self._metrics.count(f"fetch_failures.{type(error).__name__}")
            await asyncio.sleep(RETRY_PAUSE_S)
            return None
        return message

    async def _one(self, message: Msg) -> None:
        with contextlib.suppress(nats.errors.Error):
            # An acknowledgement that is lost brings the message again: the ledger drops it.
            try:
                body, context = await self._open(message)
            except ClaimedError:
                # The other copy's handler may yet fail: then this one is needed.
                await message.nak(delay=_pause_s(message))
                return
            except DuplicateError:
                self._metrics.count(f"duplicates.{self._subject.name}")
                await message.ack()
                return
            except TERMINAL as error:
                if error.reason == "wrong_audience" and self._subject.audience == READER_AUDIENCE:
                    # A stream that several read: what is for others is no offence.
                    self._metrics.count(f"for_others.{self._subject.name}")
                    await message.ack()
                    return
                self._reject(error, message.subject, message.data)
                await message.term()
                return
            except TocsinError as error:
                self._reject(error, message.subject, message.data)
                await message.nak(delay=_pause_s(message))
                return
            await self._handle(message, body, context)

    async def _open(self, message: Msg) -> tuple[Message, Context]:
        arrival = Arrival.on(self._subject, message.subject, self._reader())
        try:
            inspected = self._opener.inspect(message.data, arrival, now_ns=time.time_ns())
        except UntrustedError as error:
            if error.reason == "unknown_key" and _age_s(message) < UNKNOWN_KEY_S:
                # Its certificate may be on its way to us: stored messages can wait for it.
                raise UnavailableError(str(error), reason="unknown_key") from error
            raise
        if not self._opener.is_proven(inspected):
            await asyncio.get_running_loop().run_in_executor(self._threads, self._opener.prove, inspected)
        return self._opener.accept(inspected, now_ns=time.time_ns())

    async def _handle(self, message: Msg, body: Message, context: Context) -> None:
        self._metrics.count("envelopes_verified")
        stored = context.kind.message_class is MessageClass.STORED
        alive = asyncio.create_task(self._keep_alive(message))
        begun = time.perf_counter()
        try:
            await call(self._handler, body, context)
        except asyncio.CancelledError:
            if stored:
                self._opener.ledger.release(context.leaf)
            await message.nak()
            raise
        except TERMINAL as error:
            log.warning("handler_refused", line=self._subject.name, reason=error.reason, detail=str(error))
            self._metrics.count(f"handler_refusals.{error.reason}")
            if stored:
                self._opener.ledger.done(context.leaf)
            await message.term()
        except Exception as error:
            reason = f"handler_retries.{error.reason}" if isinstance(error, TocsinError) else "handler_failures"
            self._metrics.count(reason)
            log.exception("handler_failed", line=self._subject.name, type=context.kind.name)
            if stored:
                self._opener.ledger.release(context.leaf)
            await message.nak(delay=_pause_s(message))
        else:
            if stored:
                self._opener.ledger.done(context.leaf)
            await message.ack()
        finally:
            alive.cancel()
            self._metrics.observe_ms(f"handle.{context.kind.name}", (time.perf_counter() - begun) * 1e3)

    async def _keep_alive(self, message: Msg) -> None:
        """Tell the broker that the handler still works."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            with contextlib.suppress(nats.errors.Error):
                await message.in_progress()


def _age_s(message: Msg) -> float:
    """Return how long the stream has had a message, in seconds, by the broker's clock at its arrival."""
    return (datetime.now(UTC) - message.metadata.timestamp).total_seconds()


def _pause_s(message: Msg) -> float:
    """Return the pause before the next delivery: it doubles, or a short absence would use up all of them."""
    deliveries = min(message.metadata.num_delivered or 1, MAX_DOUBLINGS)
    return RETRY_PAUSE_S * 2.0 ** (deliveries - 1)
