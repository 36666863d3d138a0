"""What goes out: a model made into an envelope by the batch signer, published, stored, or asked with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from tocsin.bus.base import BusBase
from tocsin.bus.connection import translate
from tocsin.bus.credentials import Credentials
from tocsin.bus.envelope import Content, encode_body, encode_content, make_content
from tocsin.bus.opener import Context
from tocsin.bus.outbox import Outbox, check_size
from tocsin.bus.requests import RESEND_S, URGENT_RESEND_S, Replies
from tocsin.bus.sealing import check_sealing, seal_content
from tocsin.bus.settings import BusSettings
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import EMERGENCY, EVENT, THREAT_ALERT
from tocsin.contracts.errors import DeniedError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Priority, SpiffeId
from tocsin.contracts.subjects import MessageClass, MessageType, Request, Subject
from tocsin.crypto import leaf_hash
from tocsin.crypto.sealing import SealingPublicKey
from tocsin.telemetry import Metrics

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

Tokens: TypeAlias = Mapping[str, str]
"""The tokens of a subject, by name."""
NO_TOKENS: Tokens = MappingProxyType({})


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


class Sending(BusBase):
    """The part of the bus that sends."""

    def __init__(self, settings: BusSettings, credentials: Credentials, metrics: Metrics) -> None:
        super().__init__(settings, credentials, metrics)
        self._outbox = Outbox(metrics)
        self._replies: Replies | None = None

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


async def _stored_at(js: JetStreamContext, stream: str, seq: int) -> tuple[str | None, bytes | None]:
    """Return the subject and the bytes at a place of a stream; of nothing, if it was taken out again."""
    try:
        stands = await js.get_msg(stream, seq)
    except nats.js.errors.NotFoundError:
        return None, None
    return stands.subject, stands.data
