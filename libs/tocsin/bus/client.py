"""The bus: the one way in and out of a process.

    async with Bus(settings, credentials, metrics) as bus:
        await bus.event(EVENT_STAGE, stage)
        placement = await bus.request(BALANCER_PLACE, operation, timeout_s=0.5)
        await bus.subscribe(HEARTBEAT, self.on_heartbeat)

What goes out is a model made into an envelope by the batch signer; what comes in has passed all twelve
steps of :mod:`tocsin.bus.opener` before a handler sees it. Rejections are counted and audited, with their
reason and never their body.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar, cast

import nats.errors
import nats.js.errors
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api

from tocsin.bus import certificates
from tocsin.bus.audit import RejectionLog
from tocsin.bus.connection import Connection, Taker, translate
from tocsin.bus.consumer import Consumer
from tocsin.bus.credentials import Credentials
from tocsin.bus.ending import end_tasks
from tocsin.bus.envelope import Content, encode_body, encode_content, make_content
from tocsin.bus.frames import FrameIntake, FrameOpener
from tocsin.bus.history import History
from tocsin.bus.identities import IdentityDirectory
from tocsin.bus.intake import Handler, Intake, Reject
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.bus.outbox import Outbox, check_size
from tocsin.bus.priorities import URGENT, Admit, PriorityLines
from tocsin.bus.proving import Needed, Prover
from tocsin.bus.raw import RawStream
from tocsin.bus.reader import StreamReader
from tocsin.bus.records import Records
from tocsin.bus.renewal import CertificateKeeper
from tocsin.bus.replay import Ledger
from tocsin.bus.requests import RESEND_S, URGENT_RESEND_S, Replies, error_reply
from tocsin.bus.revocations import NS_PER_S, RevocationBook, RevocationFollower
from tocsin.bus.sealing import check_sealing, seal_content
from tocsin.bus.settings import BusSettings
from tocsin.bus.signing import BatchSigner, SigningThreads
from tocsin.bus.standings import Standings
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AUDIT,
    AUDIT_REJECTED,
    EMERGENCY,
    EVENT,
    METRICS,
    METRICS_TYPE,
    THREAT_ALERT,
)
from tocsin.contracts.errors import (
    DeniedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Kind, Priority, SpiffeId
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.contracts.subjects import Bucket, MessageClass, MessageType, Request, Subject
from tocsin.crypto import LocalKey, TrustStore, leaf_hash, select_backend
from tocsin.crypto.sealing import SealingPublicKey
from tocsin.telemetry import Metrics, get_logger

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)
F = TypeVar("F")

Tokens: TypeAlias = Mapping[str, str]
"""The tokens of a subject, by name."""
NO_TOKENS: Tokens = MappingProxyType({})

MAX_SIGNING_THREADS = 8
"""Most threads that sign for a process's agents with keys of their own."""
ENDING_POLL_S = 0.005
"""How often a bus that ends looks whether what was queued has gone out."""

log = get_logger(__name__)


class Sent(NamedTuple):
    """What was sent: enough to recognise answers and receipts."""

    id: bytes
    leaf: bytes
    data: bytes
    issued_at: int

    @staticmethod
    def of(context: Context) -> Sent:
        """Return what a received message was sent as, to forward it in the sender's own bytes."""
        return Sent(context.id, context.leaf, context.data, context.content.issued_at)


class Bus:
    """One process's bus. Use with ``async with``; the constructor does not connect."""

    def __init__(self, settings: BusSettings, credentials: Credentials, metrics: Metrics) -> None:
        self.settings = settings
        self.credentials = credentials
        self.metrics = metrics
        self.id = credentials.id
        self.backend = select_backend(settings.signature_backend)
        self.trust = TrustStore(credentials.root_pem, self.backend)
        started_ns = time.time_ns()
        book = RevocationBook(max_age_ns=int(settings.revocations_max_age_s * NS_PER_S), started_ns=started_ns)
        self.opener = Opener(self.trust, self.backend, started_ns=started_ns, revocations=book)
        self.revocations = RevocationFollower(self, book)
        self.standings = Standings(self)
        """Who is quarantined; empty until the process follows it."""
        self.audiences: frozenset[str] = frozenset({"all", credentials.id.token})
        """What this process's readers may read from subjects that several share."""
        self._threads = ThreadPoolExecutor(settings.verify_threads, thread_name_prefix="verify-other")
        self._prover = Prover(self.opener, threads=settings.verify_threads)
        self._signers: dict[str, BatchSigner] = {}
        self._agents_threads: SigningThreads | None = None
        self._main_signer = self.add_key(credentials.key, ())
        self._outbox = Outbox(self.metrics)
        self._rejections = RejectionLog(self.metrics)
        self._tasks: set[asyncio.Task[None]] = set()
        self._intakes: list[Intake] = []
        self._lines: dict[Subscription, Intake] = {}
        self._running_lines: dict[Intake, asyncio.Task[None]] = {}
        self._subscriptions: list[Subscription] = []
        self._on_identities: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._on_reject: list[Reject] = []
        self._consumers: list[Consumer] = []
        self._connection: Connection | None = None
        self._second: Connection | None = None
        self._replies: Replies | None = None
        self._directory: IdentityDirectory | None = None

    # --- Life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        connection = await Connection.open(self.settings, self.metrics, name=self.id.token)
        self._connection = connection
        try:
            for signer in {id(s): s for s in self._all_signers()}.values():
                self.spawn(signer.run(), "signer")
            self.spawn(self._prover.run(), "prover")
            self.spawn(self._outbox.run(connection), "outbox")
            self._replies = Replies(connection, self.opener, self._threads, self.id, reject=self.reject)
            await self._replies.start()
            self._directory = IdentityDirectory(
                connection, self.trust, self.metrics, self._threads, on_learned=self._identities_changed
            )
            if self.credentials.chain:
                self.trust.add_chain(self.credentials.chain)
            await self._directory.start(self.spawn, timeout_s=self.settings.connect_timeout_s)
            if self.credentials.chain:
                # What the bucket has may be a renewal that this process could not write down.
                self.adopt_latest()
                await self._directory.publish(self.id, self.credentials.chain)
            await self.revocations.start()
            # A revoked authority's renewal gives way to what the root itself has certified.
            self.adopt_latest()
            self.require_not_revoked(self.id, self.credentials.key)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        if self.credentials.chain:
            self.start_reporting()
        if self.credentials.source is not None and self.id.kind is Kind.SERVICE:
            keeper = CertificateKeeper(self, self.credentials.source)
            self.spawn(keeper.run(), "certificate")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for consumer in self._consumers:
            await consumer.stop()
        try:
            async with asyncio.timeout(5.0):
                await self._end_subscriptions()
                for intake in self._intakes:
                    await intake.idle()
                while self._outbox or any(signer.unsigned for signer in self._all_signers()):  # noqa: ASYNC110
                    await asyncio.sleep(ENDING_POLL_S)
        except TimeoutError:
            self.metrics.count("intake_abandoned")
        for connection in (self._second, self._connection):
            if connection is not None:
                await connection.close()
        if abandoned := await end_tasks(self._tasks):
            log.error("tasks_abandoned", tasks=[task.get_name() for task in abandoned])
        for signer in self._all_signers():
            signer.close()
        if self._agents_threads is not None:
            self._agents_threads.close()
        self._prover.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _end_subscriptions(self) -> None:
        """Take nothing more; what the broker has sent already is in its line when this returns."""
        if self.connected:
            ending = (
                one.drain()  # type: ignore[no-untyped-call]  # the client has no type there
                for one in self._subscriptions
            )
            await asyncio.gather(*ending, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task for as long as the bus; a task that fails is logged, never silent."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.metrics.count("task_failures")
                log.error("task_failed", task=task.get_name(), exc_info=error)

        task.add_done_callback(ended)
        return task

    def start_reporting(self) -> None:
        """Begin to publish figures and rejections: once this process has an identity."""
        self.spawn(self._report(), "report")

    @property
    def connection(self) -> Connection:
        """The main connection."""
        if self._connection is None:
            raise UnavailableError("the bus is not open", reason="not_open")
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether the broker is there now, on every connection that this process has."""
        if self._connection is None or not self._connection.connected:
            return False
        return self._second is None or self._second.connected

    @property
    def certified(self) -> bool:
        """Whether this process has a certificate that is valid now: else nobody believes it."""
        identity = self.trust.identity(self.credentials.key.signer.key_id)
        return identity is not None and identity.valid_at(time.time_ns())

    def require_not_revoked(self, spiffe_id: SpiffeId, key: LocalKey) -> None:
        """Check that a key of this process's own still counts: with a revoked one nobody would believe it.

        Raises:
            UntrustedError: ``revoked``.
        """
        if self.trust.is_revoked(key.signer.key_id):
            raise UntrustedError(
                f"the key of {spiffe_id} was revoked",
                reason="revoked",
                advice="give it a new key: docs/how-to/revoke-a-key.md",
            )

    def adopt_latest(self) -> None:
        """Take the latest chain that is known of the own key as this process's own."""
        identity = self.trust.identity(self.credentials.key.signer.key_id)
        if identity is not None and identity.chain != self.credentials.chain:
            self.credentials = replace(self.credentials, chain=identity.chain)

    def add_key(self, key: LocalKey, ids: tuple[SpiffeId, ...]) -> BatchSigner:
        """Let this process sign as ``ids`` with ``key`` (an agent with a key of its own)."""
        if ids and self._agents_threads is None:
            # Some for all of them: a thread for each of a thousand keys is a thousand threads.
            self._agents_threads = SigningThreads(min(MAX_SIGNING_THREADS, os.cpu_count() or 1))
        signer = BatchSigner(key.signer, self.metrics, threads=self._agents_threads if ids else None)
        for spiffe_id in ids:
            self._signers[str(spiffe_id)] = signer
        if getattr(self, "_connection", None) is not None:
            self.spawn(signer.run(), "signer")
        return signer

    # --- Out ----------------------------------------------------------------------------------

    async def make(
        self,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str,
        priority: Priority = Priority.NORMAL,
        ttl_ms: int | None = None,
        correlation: bytes | None = None,
        trace: str | None = None,
        sender: SpiffeId | None = None,
        now_ns: int | None = None,
        seal_to: Sequence[SealingPublicKey] | None = None,
    ) -> Sent:
        """Make an envelope: the only function that does. It is signed, not sent.

        ``now_ns`` is when it is issued, for one that is made ahead; it holds by the clock rules of its class.
        """
        content = self._content(
            kind,
            body,
            audience=audience,
            priority=priority,
            ttl_ms=ttl_ms,
            correlation=correlation,
            trace=trace,
            sender=sender,
            now_ns=now_ns,
            sealed=seal_to is not None,
        )
        if seal_to is not None:
            content = await asyncio.to_thread(seal_content, content, seal_to)
        content_bytes = encode_content(content)
        signer = self._signers.get(content.sender, self._main_signer)
        data = await signer.envelope(content_bytes, urgent=priority is Priority.CRITICAL)
        check_size(kind, data)
        return Sent(content.id, leaf_hash(content_bytes), data, content.issued_at)

    def _content(
        self,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str,
        priority: Priority,
        ttl_ms: int | None = None,
        correlation: bytes | None = None,
        trace: str | None = None,
        sender: SpiffeId | None = None,
        now_ns: int | None = None,
        sealed: bool = False,
    ) -> Content:
        sender = sender or self.id
        if not kind.senders.admit(sender):
            raise DeniedError(f"{sender} may not send {kind.name}", reason="sender_not_allowed")
        if not isinstance(body, kind.model):
            raise InvalidInputError(f"{kind.name} carries {kind.model.__name__}", reason="bad_body")
        if kind.message_class is MessageClass.CHANNEL:
            raise InvalidInputError(f"{kind.name} travels in no envelope", reason="bad_body")
        check_sealing(kind, sealed=sealed)
        return make_content(
            type_name=kind.name,
            sender=str(sender),
            audience=audience,
            body=encode_body(body),
            now_ns=time.time_ns() if now_ns is None else now_ns,
            ttl_ms=kind.ttl_ms if ttl_ms is None else ttl_ms,
            priority=priority,
            correlation=correlation,
            trace=trace,
        )

    def publish_nowait(
        self,
        subject: Subject,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str | None = None,
        priority: Priority = Priority.NORMAL,
        sender: SpiffeId | None = None,
        at: Tokens = NO_TOKENS,
    ) -> None:
        """Queue a message to be signed and published: for whoever sends thousands a second.

        It costs half of what :meth:`publish` does, which gives every message a task's turn. Order is kept among
        the messages that one key signs. A message that cannot be sent after all is counted
        (``unsent.<reason>``), and nobody is told.

        Raises:
            ExhaustedError: ``signer_full``: too many wait for their signature.
            InvalidInputError: it cannot be made.
            DeniedError: the sender may not send this type.
        """
        where = subject.at(**at)
        audience = audience or subject.audience_at(at)
        if audience is None:
            raise InvalidInputError(f"{subject.name} needs an audience", reason="bad_subject")
        content = self._content(kind, body, audience=audience, priority=priority, sender=sender)
        signer = self._signers.get(content.sender, self._main_signer)
        signer.put(encode_content(content), partial(self._outbox.put, kind, where))

    async def publish(
        self,
        subject: Subject,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str | None = None,
        durable: bool = False,
        priority: Priority = Priority.NORMAL,
        ttl_ms: int | None = None,
        correlation: bytes | None = None,
        trace: str | None = None,
        sender: SpiffeId | None = None,
        seal_to: Sequence[SealingPublicKey] | None = None,
        at: Tokens = NO_TOKENS,
    ) -> Sent:
        """Make an envelope and publish it.

        Args:
            subject: where.
            kind: the message's type.
            body: its model.
            audience: needed only where the subject does not fix it.
            durable: wait until the subject's stream has it.
            priority: CRITICAL is signed alone, at once.
            ttl_ms: instead of the type's own.
            correlation: id of the message that this one answers.
            trace: W3C traceparent.
            sender: one of this process's agents, instead of the process itself.
            seal_to: the keys of those who alone shall read the body, at most 64; None leaves it open.
            at: the subject's tokens.
        """
        where = subject.at(**at)
        audience = audience or subject.audience_at(at)
        if audience is None:
            raise InvalidInputError(f"{subject.name} needs an audience", reason="bad_subject")
        sent = await self.make(
            kind,
            body,
            audience=audience,
            priority=priority,
            ttl_ms=ttl_ms,
            correlation=correlation,
            trace=trace,
            sender=sender,
            seal_to=seal_to,
        )
        await self.send(where, sent, stream=subject.stream if durable else None)
        return sent

    async def event(
        self, kind: MessageType[Message], body: Message, *, sender: SpiffeId | None = None, durable: bool = True
    ) -> Sent:
        """Publish a fact on ``event.<service>.<kind>``, by default into its stream."""
        _, service, name = kind.name.split(".")
        return await self.publish(
            EVENT, kind, body, durable=durable, sender=sender, at={"service": service, "kind": name}
        )

    async def send(self, subject: str, sent: Sent, *, stream: str | None = None) -> None:
        """Send bytes that are an envelope already: a router's forward, a retry with identical bytes."""
        if stream is None:
            await self.connection.publish(subject, sent.data)
        else:
            await self._store(subject, sent, stream)
        self.metrics.count("envelopes_sent")

    async def send_frame(self, subject: str, frame: bytes) -> None:
        """Send a channel's frame, sealed already, to a subject of class channel."""
        await self.connection.publish(subject, frame)
        self.metrics.count("frames_sent")

    async def store_again(self, subject: Subject, context: Context) -> None:
        """Put a message that was taken back into its subject's stream, which has lost it."""
        sent = Sent(context.id, context.leaf, context.data, context.content.issued_at)
        await self.send(subject.at(), sent, stream=subject.stream)

    async def _store(self, subject: str, sent: Sent, stream: str) -> None:
        """Publish into a stream and wait for its acknowledgement."""
        js = self.connection.js
        async with self.connection.storing(stream):
            try:
                ack = await js.publish(
                    subject, sent.data, headers={"Nats-Msg-Id": sent.leaf.hex()}, stream=stream
                )
                if ack.duplicate and await _stored_at(js, stream, ack.seq) != (subject, sent.data):
                    # Whoever knows the id can come first with other bytes, or on a subject that nobody reads, or
                    # take ours out again, and the broker swallows these. Without an id it cannot; bytes that stand
                    # there twice readers drop once.
                    self.metrics.count("poisoned_ids")
                    await js.publish(subject, sent.data, stream=stream)
            except (TimeoutError, nats.errors.Error) as error:
                raise translate(error, subject) from error

    async def request(
        self,
        request: Request[Q, R],
        body: Q,
        *,
        timeout_s: float,
        sender: SpiffeId | None = None,
        patient: bool = True,
        at: Tokens = NO_TOKENS,
    ) -> R:
        """Ask a service and return its answer.

        The envelope is sent again, in identical bytes, while no answer comes: who had it already drops it.

        Raises:
            TocsinError: of the family that the service raised.
            UnavailableError: ``no_answer`` within ``timeout_s``; ``no_responders``, at once, unless ``patient``: the
                broker knows of nobody who listens there.
        """
        if self._replies is None:
            raise UnavailableError("the bus is not open", reason="not_open")
        subject = request.subject.at(**at)
        audience = request.subject.audience_at(at) or ""
        kind: MessageType[Message] = request.request_type
        ttl_ms = min(int(timeout_s * 1000), 30_000) if kind.ttl_ms else 0

        async def make() -> Sent:
            return await self.make(kind, body, audience=audience, ttl_ms=ttl_ms, sender=sender)

        begun = time.perf_counter()
        answer = await self._replies.ask(
            cast("Request[Message, Message]", request),
            subject,
            make,
            sender or self.id,
            timeout_s=timeout_s,
            patient=patient,
        )
        self.metrics.observe_ms(f"request.{request.verb}", (time.perf_counter() - begun) * 1e3)
        return cast("R", answer)

    async def emergency(
        self, sent: Sent, sender: SpiffeId, *, timeout_s: float, kind: MessageType[Any] = THREAT_ALERT
    ) -> None:
        """Send what is CRITICAL, in identical bytes again and again, until a router says that its stream has it.

        It is an alert, or of the ``kind`` that is named.

        Raises:
            UnavailableError: ``no_answer`` within ``timeout_s``: it may be delivered all the same.
            TocsinError: a router refuses it.
        """
        at = {"type": kind.name, "priority": Priority.CRITICAL.token, "agent": sender.name}
        await self.ask_with(EMERGENCY, sent, sender, timeout_s=timeout_s, resend_s=URGENT_RESEND_S, at=at)

    async def ask_with(
        self,
        request: Request[Q, R],
        sent: Sent,
        asker: SpiffeId,
        *,
        timeout_s: float,
        resend_s: tuple[float, ...] = RESEND_S,
        at: Tokens = NO_TOKENS,
    ) -> R:
        """Ask with an envelope that is made already: the root's epoch, a host's enrolment, an emergency."""
        if self._replies is None:
            raise UnavailableError("the bus is not open", reason="not_open")

        async def made() -> Sent:
            return sent

        answer = await self._replies.ask(
            cast("Request[Message, Message]", request),
            request.subject.at(**at),
            made,
            asker,
            timeout_s=timeout_s,
            resend_s=resend_s,
        )
        return cast("R", answer)

    # --- In -----------------------------------------------------------------------------------

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

    def reject(self, error: TocsinError, subject: str, data: bytes) -> None:
        """Count and audit an envelope that was refused."""
        self._rejections.add(error, subject, data)
        for told in self._on_reject:
            told(error, subject, data)

    def on_reject(self, told: Reject) -> None:
        """Call ``told`` with every envelope that is refused: its error, subject and bytes, nothing verified."""
        self._on_reject.append(told)

    # --- State --------------------------------------------------------------------------------

    def records(self, bucket: Bucket[M], *, sender: SpiffeId | None = None) -> Records[M]:
        """Return the signed records of a bucket, written by the process or by one of its agents."""
        return Records(self, bucket, sender=sender)

    def on_identities(self, again: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call ``again`` whenever a certificate has become known: for whoever keeps what waits for one."""
        self._on_identities.append(again)

    async def put_identity(self, spiffe_id: SpiffeId, chain: tuple[bytes, ...]) -> None:
        """Make a certificate chain known to everyone."""
        if self._directory is None:
            raise UnavailableError("the bus is not open", reason="not_open")
        await self._directory.publish(spiffe_id, chain)

    async def put_certificate(self, name: str, data: bytes) -> None:
        """Keep a decision's certificate in the object store."""
        await certificates.put(self.connection.js, name, data)

    async def get_certificate(self, name: str) -> bytes:
        """Fetch a decision's certificate; whoever acts on it verifies it. See :func:`certificates.get`."""
        return await certificates.get(self.connection.js, name)

    async def flush(self) -> None:
        """Wait until the broker has seen everything sent so far, subscriptions included."""
        await self.connection.flush()

    # --- Inside -------------------------------------------------------------------------------

    def _identities_changed(self) -> None:
        for intake in self._intakes:
            intake.identities_changed()
        if self._replies is not None:
            self.spawn(self._replies.identities_changed(), "identities changed")
        for again in self._on_identities:
            self.spawn(again(), "identities changed")

    def _all_signers(self) -> list[BatchSigner]:
        return [self._main_signer, *self._signers.values()]

    async def _second_connection(self) -> Connection:
        if self._second is None:
            self._second = await Connection.open(
                self.settings, self.metrics, name=self.id.token, label="second"
            )
        return self._second

    async def _snapshot(self) -> MetricsSnapshot:
        """Return the figures, with what the backend itself counts: full signatures and verifications."""
        snapshot = await asyncio.to_thread(self.metrics.snapshot, self.id.token)
        counted = self.backend.counters
        full = {"full_signatures": counted.signatures, "full_verifications": counted.verifications}
        return snapshot.model_copy(update={"counters": snapshot.counters | full})

    async def _report(self) -> None:
        """Publish this process's figures and what it rejected, again and again."""
        process = self.id.token.replace(".", "-")
        while True:
            await asyncio.sleep(self.settings.metrics_interval_s)
            try:
                await self.publish(METRICS, METRICS_TYPE, await self._snapshot(), at={"process": process})
                for rejected in self._rejections.sums(self.id.token):
                    await self.publish(AUDIT, AUDIT_REJECTED, rejected, at={"kind": "rejected"})
                    self._rejections.told(rejected)
            except TocsinError as error:
                self.metrics.count(f"report_failures.{error.reason}")


async def _stored_at(js: JetStreamContext, stream: str, seq: int) -> tuple[str | None, bytes | None]:
    """Return the subject and the bytes at a place of a stream; of nothing, if it was taken out again."""
    try:
        stands = await js.get_msg(stream, seq)
    except nats.js.errors.NotFoundError:
        return None, None
    return stands.subject, stands.data
