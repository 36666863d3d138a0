"""Open an envelope: the one function between received bytes and a handler.

The twelve steps of ``envelope.md`` in their order, cheap before costly, each refusal with its own reason:

    inspect()   1 size  2 version  3 shape  4 key and certificate  5 sender  6 clock  7 audience  8 inclusion
    prove()     9 signature: the only costly step, made for a worker thread
    accept()    10 sender may send this type here  11 replay  12 body

Nothing here does I/O or reads a clock: ``now_ns`` is passed in. Nothing before step 9 is held against the
*claimed* sender.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tocsin.bus.envelope import Content, Envelope, decode_body, decode_envelope
from tocsin.bus.replay import Ledger, ReplayWindow
from tocsin.bus.revocations import RevocationBook
from tocsin.bus.sealing import Bodies
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ERROR_REPLY
from tocsin.contracts.errors import DeniedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Priority, SpiffeId
from tocsin.contracts.subjects import (
    MAX_LIVE_TTL_MS,
    READER_AUDIENCE,
    Bucket,
    MessageClass,
    MessageType,
    Request,
    Subject,
)
from tocsin.crypto import Algorithm, BatchVerifier, SignatureBackend, TrustStore, Verifier, key_id

if TYPE_CHECKING:
    from tocsin.bus.standings import Standings

CLOCK_SKEW_NS = 30_000_000_000
"""How far clocks may differ (envelope.md, class live)."""
NS_PER_MS = 1_000_000
MAX_ENROLMENTS = 100_000
"""Enrolment requests that are remembered, of all keys together: 20 MB."""
KEPT_ARRIVALS = 4096
"""Arrivals kept, of one subject each (the broker's subjects have at most 4 kB): to read a subject anew for every
message costs a tenth of opening it. Subjects that are none of the catalogue's are not kept."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where an envelope arrived, and what is admissible there."""

    subject: str
    types: Mapping[str, MessageType[Message]]
    max_bytes: int
    audience: str | None = None
    """The one admissible audience."""
    audiences: frozenset[str] | None = None
    """The reader's audiences, where any that includes the reader is admissible."""
    sender_name: str | None = None
    """The sender's name as the subject gives it."""
    type_name: str | None = None
    priority: str | None = None
    correlation: bytes | None = None

    @staticmethod
    def on(spec: Subject, subject: str, reader: frozenset[str] = frozenset()) -> Arrival:
        """Describe an arrival on a subject of the catalogue."""
        return _arrival_on(spec, subject, reader)

    @classmethod
    def reply(
        cls,
        subject: str,
        request: Request[Message, Message],
        me: str,
        correlation: bytes,
        *,
        server: str | None = None,
    ) -> Arrival:
        """Describe an arrival on a reply inbox: only answers to this very request are admissible.

        Args:
            subject: the inbox.
            request: what was asked; who may answer it may refuse it too, and nobody else.
            me: token of the asker.
            correlation: id of the request.
            server: name of the agent or host that was asked, where the request goes to one.
        """
        refusal = replace(ERROR_REPLY, senders=request.reply_type.senders)
        types = {t.name: t for t in (request.reply_type, refusal)}
        return cls(
            subject,
            types,
            max(t.max_bytes for t in types.values()),
            audience=f"reply.{me}",
            sender_name=server,
            correlation=correlation,
        )

    @classmethod
    def record(cls, bucket: Bucket[Message], key: str) -> Arrival:
        """Describe a record read from a bucket."""
        kind = bucket.message_type
        return cls(f"{bucket.name}/{key}", {kind.name: kind}, kind.max_bytes, audience=f"record.{bucket.name}")


@lru_cache(maxsize=KEPT_ARRIVALS)
def _arrival_on(spec: Subject, subject: str, reader: frozenset[str]) -> Arrival:
    tokens = spec.parse(subject)
    type_name = tokens.get("type")
    if "service" in tokens and "kind" in tokens:
        type_name = f"event.{tokens['service']}.{tokens['kind']}"
    elif "kind" in tokens:
        type_name = f"audit.{tokens['kind']}"
    return Arrival(
        subject,
        spec.by_name,
        spec.max_bytes,
        audience=spec.audience_at(tokens),
        audiences=reader if spec.audience == READER_AUDIENCE else None,
        sender_name=tokens[spec.sender_in] if spec.sender_in else None,
        type_name=type_name,
        priority=tokens.get("priority") or tokens.get("severity"),
    )


class Inspected(NamedTuple):
    """An envelope after steps 1 to 8: everything holds if its signature does."""

    data: bytes
    envelope: Envelope
    arrival: Arrival
    kind: MessageType[Message]
    sender: SpiffeId
    verifier: Verifier
    root: bytes


class Context(NamedTuple):
    """What a handler may know about the message besides its body."""

    sender: SpiffeId
    envelope: Envelope
    subject: str
    data: bytes
    """The envelope's own bytes, to forward or to keep as evidence."""
    kind: MessageType[Message]
    now_ns: int
    reply: str | None = None

    @property
    def content(self) -> Content:
        """What was signed."""
        return self.envelope.content

    @property
    def leaf(self) -> bytes:
        """Leaf hash of the content: names the message."""
        return self.envelope.leaf

    @property
    def key_id(self) -> bytes:
        """The key that signed it."""
        return self.envelope.key_id

    @property
    def id(self) -> bytes:
        """Id of the message."""
        return self.content.id

    @property
    def priority(self) -> Priority:
        """Priority of the message."""
        return Priority(self.content.priority)

    @property
    def deadline_ns(self) -> int:
        """When the message ceases to be good; 0 where its class has no clock."""
        return self.content.issued_at + self.content.ttl_ms * NS_PER_MS if self.content.ttl_ms else 0


class Opener:
    """Opens envelopes for one process: its trust, its windows, its start."""

    def __init__(
        self,
        trust: TrustStore,
        backend: SignatureBackend,
        *,
        started_ns: int,
        batches: BatchVerifier | None = None,
        replay: ReplayWindow | None = None,
        ledger: Ledger | None = None,
        revocations: RevocationBook | None = None,
    ) -> None:
        self.trust = trust
        self.backend = backend
        self.started_ns = started_ns
        self.batches = BatchVerifier() if batches is None else batches
        self.replay = ReplayWindow() if replay is None else replay
        self.ledger = Ledger() if ledger is None else ledger
        self.enrolments = ReplayWindow(MAX_ENROLMENTS)
        self.bodies = Bodies()
        self.standings: Standings | None = None
        """None for a reader that asks for nobody's standing."""
        self.revocations = revocations
        """None for a reader that acts on nothing: it does not ask how fresh its knowledge of revoked keys is."""

    def inspect(self, data: bytes, arrival: Arrival, *, now_ns: int) -> Inspected:
        """Steps 1 to 8.

        Raises:
            TocsinError: of the family and with the reason of the step that failed.
        """
        envelope = decode_envelope(data, max_bytes=arrival.max_bytes)
        content = envelope.content
        kind = arrival.types.get(content.type)
        if kind is None:
            raise InvalidInputError(f"type {content.type!r} has no place here", reason="unknown_type")
        if len(data) > kind.max_bytes:
            raise InvalidInputError(
                f"{len(data)} bytes, limit of {kind.name} {kind.max_bytes}", reason="too_large"
            )
        sender = SpiffeId.parse(content.sender)
        if kind.message_class is MessageClass.ENROL:
            verifier = self._brought_key(envelope, kind)
        else:
            verifier = self._known_key(envelope, kind, now_ns=now_ns)
        _check_clock(content, kind, started_ns=self.started_ns, now_ns=now_ns)
        _check_audience(content, sender, arrival)
        return Inspected(data, envelope, arrival, kind, sender, verifier, self._root(envelope))

    def is_proven(self, inspected: Inspected) -> bool:
        """Tell whether this batch's signature was verified before."""
        return self.batches.known(inspected.envelope.key_id, inspected.root, inspected.envelope.proof)

    def prove(self, inspected: Inspected) -> None:
        """Step 9, in full; safe in a worker thread."""
        if not self.is_proven(inspected):
            self.batches.check(inspected.verifier, inspected.root, inspected.envelope.proof)
            self.batches.remember(inspected.envelope.key_id, inspected.root, inspected.envelope.proof)

    def accept(
        self,
        inspected: Inspected,
        *,
        now_ns: int,
        reply: str | None = None,
        restrict: Callable[[SpiffeId], bool] | None = None,
    ) -> tuple[Message, Context]:
        """Steps 10 to 12, for an envelope that was proven.

        A stored message is claimed in the ledger: the caller says done or gives it back.
        """
        content, kind, sender = inspected.envelope.content, inspected.kind, inspected.sender
        if not kind.senders.admit(sender) or (restrict is not None and not restrict(sender)):
            raise DeniedError(f"{sender} may not send {kind.name} here", reason="sender_not_allowed")
        self.require_trusted(kind, inspected.envelope.key_id)
        if self.standings is not None:
            self.standings.require_fit(kind, sender)
        if kind.effects_from is not None and self.revocations is not None:
            self.revocations.check_effects(kind, content.priority, now_ns=now_ns)
        # Step 12 before 11 where 11 leaves a mark: a body that is refused claims nothing.
        body = self.bodies.read(inspected.envelope, kind)
        until_ns = content.issued_at + content.ttl_ms * NS_PER_MS + CLOCK_SKEW_NS
        if kind.message_class is MessageClass.LIVE:
            key_id, leaf = inspected.envelope.key_id, inspected.envelope.leaf
            self.replay.record(key_id, content.id, leaf, until_ns=until_ns, now_ns=now_ns)
        elif kind.message_class is MessageClass.ENROL:
            # Anybody can bring any number of keys, so all share one window; by leaf, which nobody can take first.
            leaf = inspected.envelope.leaf
            self.enrolments.record(b"", leaf, leaf, until_ns=until_ns, now_ns=now_ns)
        elif kind.message_class is MessageClass.STORED:
            self.ledger.claim(inspected.envelope.leaf)
        context = Context(
            sender,
            inspected.envelope,
            inspected.arrival.subject,
            inspected.data,
            kind,
            now_ns,
            reply,
        )
        return body, context

    def require_trusted(self, kind: MessageType[Message], key: bytes) -> None:
        """Check once more that a key was not revoked as compromised while its message waited in a line.

        Raises:
            UntrustedError: ``revoked``.
        """
        # Who enrols with such a key is answered by fleet.
        if self.trust.is_compromised(key) and kind.message_class is not MessageClass.ENROL:
            raise revoked(key)

    def open(self, data: bytes, arrival: Arrival, *, now_ns: int) -> tuple[Message, Context]:
        """All twelve steps in a row, for tools and records; the bus runs step 9 in threads."""
        inspected = self.inspect(data, arrival, now_ns=now_ns)
        self.prove(inspected)
        return self.accept(inspected, now_ns=now_ns)

    def _known_key(self, envelope: Envelope, kind: MessageType[Message], *, now_ns: int) -> Verifier:
        root = self.trust.root
        identity = root if envelope.key_id == root.key_id else self.trust.identity(envelope.key_id)
        if identity is None:
            if self.trust.is_revoked(envelope.key_id):
                raise revoked(envelope.key_id)
            raise UntrustedError(f"key {envelope.key_id.hex()[:16]} is not known here", reason="unknown_key")
        # Live: valid now. Stored: valid when it was issued. Records and evidence are not judged by time.
        at_ns = None
        if kind.message_class is MessageClass.LIVE:
            at_ns = now_ns
        elif kind.message_class is MessageClass.STORED:
            at_ns = envelope.content.issued_at
        if at_ns is not None and not identity.not_before_ns <= at_ns <= identity.not_after_ns:
            if self.trust.is_revoked(envelope.key_id):
                raise revoked(envelope.key_id)
            raise UntrustedError("the certificate is not valid at that time", reason="certificate_expired")
        if not identity.names(envelope.content.sender):
            raise UntrustedError("the certificate does not name this sender", reason="wrong_sender")
        return identity.verifier

    def _brought_key(self, envelope: Envelope, kind: MessageType[Message]) -> Verifier:
        body = decode_body(kind.model, envelope.content.body)
        public_key = getattr(body, "public_key", b"")
        if key_id(public_key) != envelope.key_id:
            raise UntrustedError("the key id is not that of the key it brings", reason="unknown_key")
        return self.backend.verifier(Algorithm(getattr(body, "algorithm", 0)), public_key)

    def _root(self, envelope: Envelope) -> bytes:
        return self.batches.root_of(envelope.leaf, envelope.proof)


def revoked(key: bytes) -> UntrustedError:
    """Return the refusal of a message by a key that was revoked."""
    return UntrustedError(f"key {key.hex()[:16]} was revoked", reason="revoked")


def _check_clock(content: Content, kind: MessageType[Message], *, started_ns: int, now_ns: int) -> None:
    """Step 6: the clock rules of the class."""
    if kind.message_class is MessageClass.RECORD or kind.message_class is MessageClass.EVIDENCE:
        return
    if content.issued_at > now_ns + CLOCK_SKEW_NS:
        raise UntrustedError("issued in the future", reason="issued_in_future")
    until_ns = content.issued_at + content.ttl_ms * NS_PER_MS
    if kind.message_class is MessageClass.STORED:
        if content.ttl_ms > kind.ttl_ms:
            raise UntrustedError(f"ttl {content.ttl_ms} ms, at most {kind.ttl_ms}", reason="ttl_too_long")
        if until_ns + CLOCK_SKEW_NS < now_ns:
            raise UntrustedError("too old for its stream", reason="expired")
        return
    if content.ttl_ms > MAX_LIVE_TTL_MS:
        raise UntrustedError(f"ttl {content.ttl_ms} ms, at most {MAX_LIVE_TTL_MS}", reason="ttl_too_long")
    if until_ns + CLOCK_SKEW_NS < now_ns:
        raise UntrustedError("expired", reason="expired")
    if content.issued_at < started_ns:
        # What was issued before this process started may have been handled by the one before it.
        raise UntrustedError("issued before this process started", reason="issued_before_start")


_PRIORITY_TOKENS = tuple(priority.token for priority in Priority)
"""By value, which the decoder has bounded to 0 to 3."""


def _check_audience(content: Content, sender: SpiffeId, arrival: Arrival) -> None:
    """Step 7: the audience, and whatever else the subject says, is admissible where it arrived."""
    if arrival.audience is not None and content.audience != arrival.audience:
        raise UntrustedError(
            f"for {content.audience!r}, arrived for {arrival.audience!r}", reason="wrong_audience"
        )
    if arrival.audiences is not None and content.audience not in arrival.audiences:
        raise UntrustedError(f"{content.audience!r} does not include the reader", reason="wrong_audience")
    if arrival.sender_name is not None and sender.name != arrival.sender_name:
        raise UntrustedError("the subject names another sender", reason="wrong_subject")
    if arrival.type_name is not None and content.type != arrival.type_name:
        raise UntrustedError("the subject names another type", reason="wrong_subject")
    if arrival.priority is not None and _PRIORITY_TOKENS[content.priority] != arrival.priority:
        raise UntrustedError("the subject names another priority", reason="wrong_subject")
    if arrival.correlation is not None and content.correlation != arrival.correlation:
        raise UntrustedError("answers another request", reason="wrong_correlation")
