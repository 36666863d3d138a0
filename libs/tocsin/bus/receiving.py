"""What comes in: it has passed all twelve steps of :mod:`tocsin.bus.opener` before a handler sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import TypeVar, cast

import nats.errors
from nats.aio.subscription import Subscription
from nats.js import api

from tocsin.bus.connection import Taker
from tocsin.bus.consumer import Consumer
from tocsin.bus.credentials import Credentials
from tocsin.bus.frames import FrameIntake, FrameOpener
from tocsin.bus.history import History
from tocsin.bus.intake import Handler, Intake
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.bus.priorities import URGENT, Admit, PriorityLines
from tocsin.bus.proving import Needed, Prover
from tocsin.bus.raw import RawStream
from tocsin.bus.reader import StreamReader
from tocsin.bus.replay import Ledger
from tocsin.bus.requests import error_reply
from tocsin.bus.sending import NO_TOKENS, Sending, Sent, Tokens
from tocsin.bus.settings import BusSettings
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError, TocsinError
from tocsin.contracts.identifiers import Priority, SpiffeId
from tocsin.contracts.subjects import MessageClass, Request, Subject
from tocsin.telemetry import Metrics, get_logger

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
F = TypeVar("F")

log = get_logger(__name__)


class Receiving(Sending):
    """The part of the bus that receives, and answers."""

    def __init__(self, settings: BusSettings, credentials: Credentials, metrics: Metrics) -> None:
        super().__init__(settings, credentials, metrics)
        self.audiences: frozenset[str] = frozenset({"all", credentials.id.token})
        """What this process's readers may read from subjects that several share."""
        self._prover = Prover(self.opener, threads=settings.verify_threads)
        self._intakes: list[Intake] = []
        self._lines: dict[Subscription, Intake] = {}
        self._running_lines: dict[Intake, asyncio.Task[None]] = {}
        self._subscriptions: list[Subscription] = []
        self._consumers: list[Consumer] = []

    async def subscribe(
        self,
        subject: Subject,
        handler: Callable[[M, Context], Awaitable[object] | None],
        *,
        queue: str = "",
        concurrency: int = 1,
        restrict: Callable[[SpiffeId], bool] | None = None,
        again: bool = False,
        needed: Needed | None = None,
        at: Tokens = NO_TOKENS,
    ) -> Subscription:
        """Handle every message on a subject (or on part of it, by ``at``); order kept if ``concurrency`` is 1.

        With ``again`` a stored message that was handled before is handed over again: the handler knows it.
        With ``needed`` what arrives on a subject for which it says no is dropped and counted, unverified.

        A handler that never waits is best a plain function: it is called without a task switch.
        A handler that raises one of our errors refuses the message; any other exception is logged. The
        broker knows of the subscription when this returns.
        """
        if any(kind.message_class is MessageClass.CHANNEL for kind in subject.types):
            raise InvalidInputError(f"{subject.name} carries no envelopes", reason="bad_subject")
        intake = self._intake(
            subject.name, cast("Handler", handler), concurrency, restrict, again=again, needed=needed
        )

        def receive(data: bytes, concrete: str, reply: str) -> None:
            try:
                arrival = Arrival.on(subject, concrete, self.audiences)
            except InvalidInputError as error:
                self.reject(error, concrete, data)
            else:
                intake.put(data, arrival, reply or None)

        subscription = await self.connection.take(subject.pattern(**at), receive, queue=queue)
        self._subscriptions.append(subscription)
        self._lines[subscription] = intake
        await self.flush()
        return subscription

    async def subscribe_frames(
        self,
        subject: Subject,
        opener: FrameOpener[F],
        handler: Callable[[F], None],
        *,
        at: Tokens,
    ) -> Subscription:
        """Handle every frame of channels on a subject, opened by who has their keys: see :class:`FrameIntake`."""
        intake = FrameIntake(subject, opener, handler, self.metrics, reject=self.reject)
        subscription = await self.connection.take(subject.pattern(**at), intake.receive)
        self._subscriptions.append(subscription)
        await self.flush()
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription that :meth:`subscribe` made; what has come by then is still handled, if it is quick."""
        intake = self._lines.pop(subscription, None)
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        try:
            await subscription.unsubscribe()
        except nats.errors.Error as error:
            self.metrics.count(f"unsubscribe_failures.{type(error).__name__}")
        if intake is not None:
            self._intakes.remove(intake)
            if (running := self._running_lines.pop(intake, None)) is not None:
                running.cancel()

    async def subscribe_by_priority(
        self,
        subject: Subject,
        handler: Callable[[M, Context], Awaitable[object] | None],
        *,
        queue: str,
        admit: Admit,
    ) -> None:
        """Handle every message of a subject that names its priority, emergencies by the second connection.

        What is published under the subject's beginning and is no such subject is refused. See
        :class:`PriorityLines`. An emergency that was handled before is handed over again: its sender may not
        have got the answer.
        """
        intakes = {
            one.token: self._intake(
                f"{subject.name} {one.token}",
                cast("Handler", handler),
                1,
                None,
                again=one is Priority.CRITICAL,
            )
            for one in Priority
        }
        lines = PriorityLines(subject, intakes, admit=admit, reject=self.reject)
        second = await self._second_connection()
        # Of a queue group a message reaches one member, by whichever pattern: so each has a group of its own.
        self._subscriptions += [
            await self.connection.take(subject.everything(), lines.take, queue=queue),
            await second.take(subject.pattern(priority=URGENT), lines.take_urgent, queue=f"{queue}-{URGENT}"),
        ]
        await self.flush()
        await second.flush()

    async def serve(
        self,
        request: Request[Q, R],
        handler: Callable[[Q, Context], Awaitable[R]],
        *,
        queue: str = "",
        concurrency: int = 16,
        sender: SpiffeId | None = None,
        at: Tokens = NO_TOKENS,
    ) -> Taker:
        """Answer a request with ``handler``; its errors travel back as the same family.

        Returns:
            the function that takes raw requests, for the micro service that exposes them.
        """
        me = sender or self.id

        async def answer(body: Message, context: Context) -> None:
            reply = await self._answer(cast("Request[Message, Message]", request), handler, body, context, me)  # type: ignore[arg-type]
            if context.reply:
                await self.connection.publish(context.reply, reply.data)

        intake = self._intake(request.verb, answer, concurrency, None)

        def receive(data: bytes, subject: str, reply: str) -> None:
            try:
                arrival = Arrival.on(request.subject, subject)
            except InvalidInputError as error:
                self.reject(error, subject, data)
            else:
                intake.put(data, arrival, reply)

        if queue or at:
            subscription = await self.connection.take(request.subject.pattern(**at), receive, queue=queue)
            self._subscriptions.append(subscription)
            await self.flush()
        return receive

    async def _answer(
        self,
        request: Request[Message, Message],
        handler: Callable[[Message, Context], Awaitable[Message]],
        body: Message,
        context: Context,
        me: SpiffeId,
    ) -> Sent:
        audience = f"reply.{context.sender.token}"
        try:
            result = await handler(body, context)
        except TocsinError as error:
            self.metrics.count(f"handler_refusals.{error.reason}")
            kind, result = error_reply(error)
        except Exception as error:
            self.metrics.count("handler_failures")
            log.exception("handler_failed", line=request.verb)
            kind, result = error_reply(error)
        else:
            kind = request.reply_type
        try:
            return await self.make(kind, result, audience=audience, correlation=context.id, sender=me)
        except InvalidInputError as error:
            # An answer that cannot travel: the asker is told so, rather than left to wait.
            self.metrics.count("handler_failures")
            log.exception("answer_refused", line=request.verb)
            kind, result = error_reply(InvariantBrokenError(str(error), reason=error.reason))
            return await self.make(kind, result, audience=audience, correlation=context.id, sender=me)

    async def consume(
        self,
        subject: Subject,
        handler: Callable[[M, Context], Awaitable[object]],
        *,
        durable: str,
        concurrency: int = 1,
        ack_wait_s: float = 30.0,
        max_deliver: int = 5,
        only_new: bool = False,
        second_connection: bool = False,
        in_order: bool = False,
        again: bool = False,
        at: Tokens = NO_TOKENS,
    ) -> Consumer:
        """Consume a subject's stream under a durable name: at least once, acknowledged when handled.

        Args:
            subject: a subject with a stream.
            handler: of each message.
            durable: the consumer's name.
            concurrency: messages that are handled at once.
            ack_wait_s: when a message that a process held when it died comes again, in seconds.
            max_deliver: how often a message comes at most.
            only_new: begin with what comes from now on, if the consumer is new.
            second_connection: read over a connection of its own.
            in_order: nothing comes before what came before it is acknowledged, even across a crash.
            again: hand over what was handled before by another channel, too: the handler knows it.
            at: the subject's tokens.
        """
        connection = await self._second_connection() if second_connection else self.connection
        consumer = Consumer(
            connection,
            self._forgetful() if again else self.opener,
            self._threads,
            self.metrics,
            subject,
            cast("Handler", handler),
            reader=lambda: self.audiences,
            reject=self.reject,
            concurrency=concurrency,
        )
        config = api.ConsumerConfig(
            durable_name=durable,
            filter_subject=subject.pattern(**at),
            ack_wait=ack_wait_s,
            max_deliver=max_deliver,
            max_ack_pending=1 if in_order else max(concurrency * 2, 64),
            deliver_policy=api.DeliverPolicy.NEW if only_new else api.DeliverPolicy.ALL,
        )
        await consumer.start(config, self.spawn)
        self._consumers.append(consumer)
        return consumer

    async def last(self, subject: Subject, *, at: Tokens = NO_TOKENS) -> tuple[Message, Context] | None:
        """Return the last message of a subject in its stream that holds, or None: see :class:`History`."""
        return await self._history().last(subject, subject.pattern(**at))

    async def since(
        self, subject: Subject, *, start_ns: int, at: Tokens = NO_TOKENS
    ) -> list[tuple[Message, Context]]:
        """Return what a subject's stream holds since a moment, the oldest first: see :class:`History`."""
        return await self._history().since(subject, subject.pattern(**at), start_ns=start_ns)

    def reader(self, subject: Subject, *, start_ns: int, at: Tokens = NO_TOKENS) -> StreamReader:
        """Return a reader of a subject's stream from a moment on, for whoever accounts for others' messages."""
        opener, pattern = self._forgetful(), subject.pattern(**at)
        # Who only accounts acts on nothing, and what it does not read now it never does.
        opener.revocations = opener.standings = None
        return StreamReader(self.connection, opener, subject, pattern, start_ns=start_ns, reject=self.reject)

    def raw(self, subject: Subject) -> RawStream:
        """Return a reader of a subject's stream that opens nothing: for what is evidence by itself, of any age."""
        return RawStream(self.connection.js, subject)

    async def reopen(self, subject: Subject, where: str, data: bytes) -> tuple[Message, Context]:
        """Open bytes that this process, or the one before it, has taken and kept.

        Raises:
            TocsinError: they do not hold, or not any more.
        """
        opener = self._forgetful()
        arrival = Arrival.on(subject, where, self.audiences)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: opener.open(data, arrival, now_ns=time.time_ns())
        )

    def _history(self) -> History:
        # An opener of its own: what is looked at there was, or will be, taken as a message elsewhere.
        opener = Opener(self.trust, self.backend, started_ns=self.opener.started_ns)
        opener.bodies = self.opener.bodies
        return History(self.connection.js, opener, self.audiences, reject=self.reject)

    def _forgetful(self) -> Opener:
        """Return the opener, but one that hands over again what was handed over before."""
        opener = copy(self.opener)
        opener.ledger = Ledger(max_done=0)
        return opener

    def _intake(
        self,
        name: str,
        handler: Handler,
        concurrency: int,
        restrict: Callable[[SpiffeId], bool] | None,
        *,
        again: bool = False,
        needed: Needed | None = None,
    ) -> Intake:
        intake = Intake(
            self._forgetful() if again else self.opener,
            self._prover,
            self.metrics,
            handler,
            reject=self.reject,
            name=name,
            concurrency=concurrency,
            restrict=restrict,
            needed=needed,
        )
        self._intakes.append(intake)
        running = self.spawn(intake.run(), f"intake {name}")
        self._running_lines[intake] = running
        running.add_done_callback(lambda _: self._running_lines.pop(intake, None))
        return intake

    async def _end_subscriptions(self) -> None:
        """Take nothing more; what the broker has sent already is in its line when this returns."""
        if self.connected:
            ending = (
                one.drain()  # type: ignore[no-untyped-call]  # the client has no type there
                for one in self._subscriptions
            )
            await asyncio.gather(*ending, return_exceptions=True)
