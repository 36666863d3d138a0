"""What the catalogue is made of: message types, subjects, requests, streams and buckets.

A :class:`MessageType` joins a name on the wire with its model, its class (how long it is good for) and its
senders; a :class:`Subject` says which types may arrive there, for which audience, and which stream keeps it; a
:class:`Request` is a question to a service and its answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Kind, Priority, Role, ServiceName, SpiffeId

# Covariant, so that one table holds messages of every model: what is frozen is only read.
M_co = TypeVar("M_co", bound=Message, covariant=True)
Q_co = TypeVar("Q_co", bound=Message, covariant=True)
R_co = TypeVar("R_co", bound=Message, covariant=True)

PREFIX = "tocsin.v1"
MAX_LIVE_TTL_MS = 30_000
"""Longest time to live of a live message (envelope.md, classes)."""

KIB = 1024

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


class MessageClass(StrEnum):
    """How long a message is good for; the rules are in tocsin.bus.envelope and tocsin.bus.opener."""

    LIVE = "live"
    STORED = "stored"
    RECORD = "record"
    EVIDENCE = "evidence"
    ENROL = "enrol"
    CHANNEL = "channel"
    """No envelope: a frame, opened by the keys of its channel (ADR 0011)."""


KEPT_SUBJECTS = 8192
"""Concrete subjects kept: to make one anew for every message costs as much as to encode it."""

ANY_AUDIENCE = "*"
"""Any audience that the router's policy allows."""
READER_AUDIENCE = "@reader"
"""Any audience that includes the reader: ``all``, its role, its name, a mission of its."""
EVENT_AUDIENCE = "event"
"""Facts for whoever listens."""


@dataclass(frozen=True, slots=True)
class Senders:
    """Who may send a type: agents of some roles, some services, hosts, authorities."""

    roles: frozenset[Role] = frozenset()
    services: frozenset[ServiceName] = frozenset()
    kinds: frozenset[Kind] = frozenset()

    def admit(self, sender: SpiffeId) -> bool:
        """Return whether ``sender`` may send."""
        # By the group's text, which equals the member of the enumeration: this runs for every message.
        if sender.kind is Kind.AGENT:
            return sender.group in self.roles or Kind.AGENT in self.kinds
        if sender.kind is Kind.SERVICE:
            return sender.group in self.services or Kind.SERVICE in self.kinds
        return sender.kind in self.kinds

    def __str__(self) -> str:
        roles = ["any agent"] if self.roles == frozenset(Role) else sorted(self.roles)
        services = ["any service"] if self.services == frozenset(ServiceName) else sorted(self.services)
        return ", ".join([*roles, *services, *sorted(self.kinds)])


def senders(*who: Role | ServiceName | Kind) -> Senders:
    """Build :class:`Senders` from a mixed list."""
    return Senders(
        frozenset(w for w in who if isinstance(w, Role)),
        frozenset(w for w in who if isinstance(w, ServiceName)),
        frozenset(w for w in who if isinstance(w, Kind)),
    )


@dataclass(frozen=True, eq=False)
class MessageType(Generic[M_co]):
    """One type of message."""

    name: str
    model: type[M_co]
    message_class: MessageClass
    senders: Senders
    max_bytes: int = 64 * KIB
    """Largest envelope of this type."""
    ttl_ms: int = 5_000
    """Default time to live; 0 where the class has no clock."""
    doc: str = ""
    cleared: frozenset[Role] = frozenset()
    """The roles that have a need to know, and to whose keys alone its body is sealed; empty where it may be open."""
    effects_from: Priority | None = None
    """Messages of this priority and above bring about effects outside: they are refused by whoever does not
    know which keys are revoked now. None: this type has no effects."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One family of subjects: a template whose ``{tokens}`` are filled in."""

    name: str
    template: str
    types: tuple[MessageType[Message], ...]
    audience: str
    """Template of the one admissible audience, or one of the two wildcards above."""
    doc: str
    stream: str | None = None
    sender_in: str | None = None
    """The token that must equal the sender's name (its last path element)."""

    @cached_property
    def by_name(self) -> dict[str, MessageType[Message]]:
        """Types by their wire name."""
        return {t.name: t for t in self.types}

    @cached_property
    def max_bytes(self) -> int:
        """Largest envelope on these subjects."""
        return max(t.max_bytes for t in self.types)

    def audience_at(self, tokens: Mapping[str, str]) -> str | None:
        """Return the one admissible audience for these tokens; None where a wildcard stands."""
        if self.audience in {ANY_AUDIENCE, READER_AUDIENCE}:
            return None
        return self.audience.format(**tokens)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.template))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(
            re.escape(PREFIX) + r"\." + re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.*>\\s]+)", re.escape(self.template))
        )

    def at(self, **tokens: str) -> str:
        """Return one concrete subject; every token must be given and be a single legal token."""
        return _concrete(self, tuple(tokens.items()))

    def _make(self, tokens: dict[str, str]) -> str:
        if set(tokens) != set(self._tokens):
            raise InvalidInputError(
                f"{self.name} needs {self._tokens}, got {tuple(tokens)}", reason="bad_subject"
            )
        for key, value in tokens.items():
            if not _TOKEN.fullmatch(value):
                raise InvalidInputError(f"{self.name}: bad token {key}={value[:80]!r}", reason="bad_subject")
        return f"{PREFIX}.{self.template.format(**tokens)}"

    def pattern(self, **tokens: str) -> str:
        """Return a subscription pattern: tokens that are not given become ``*``."""
        return f"{PREFIX}.{self.template.format(**{t: tokens.get(t, '*') for t in self._tokens})}"

    def everything(self) -> str:
        """Return the pattern of whatever begins as these subjects do, well formed or not."""
        return f"{PREFIX}.{self.template.partition('{')[0]}>"

    def parse(self, subject: str) -> dict[str, str]:
        """Return the tokens of a concrete subject."""
        match = self._regex.fullmatch(subject)
        if match is None:
            raise InvalidInputError(f"{subject[:120]!r} is no subject of {self.name}", reason="bad_subject")
        return match.groupdict()


@lru_cache(maxsize=KEPT_SUBJECTS)
def _concrete(subject: Subject, tokens: tuple[tuple[str, str], ...]) -> str:
    return subject._make(dict(tokens))


@dataclass(frozen=True, eq=False)
class Request(Generic[Q_co, R_co]):
    """A question to a service and its answer; served by a queue group of that service's instances."""

    verb: str
    question: type[Q_co]
    answer: type[R_co]
    service: ServiceName
    callers: Senders
    max_bytes: int = 256 * KIB
    message_class: MessageClass = MessageClass.LIVE
    doc: str = ""
    server_kind: Kind = Kind.SERVICE
    """Who answers: the service's instances, one agent (``observe``), or one host (``agent.ping``)."""
    asks: tuple[Subject, MessageType[Q_co]] | None = None
    """Subject and type of the question, where it is a message that travels anyway: an emergency."""
    subject: Subject = field(init=False)
    request_type: MessageType[Q_co] = field(init=False)
    reply_type: MessageType[R_co] = field(init=False)

    def __post_init__(self) -> None:
        # The last token of the subject names the one agent or host that answers.
        one = {Kind.AGENT: "agent", Kind.HOST: "host"}.get(self.server_kind)
        template = f"{self.verb}.{{{one}}}" if one else self.verb
        question: MessageType[Q_co] = MessageType(
            self.verb, self.question, self.message_class, self.callers, self.max_bytes, doc=self.doc
        )
        server = {Kind.AGENT: senders(*Role), Kind.HOST: senders(Kind.HOST)}.get(
            self.server_kind, senders(self.service)
        )
        answer: MessageType[R_co] = MessageType(
            f"{self.verb}.reply", self.answer, MessageClass.LIVE, server, 900 * KIB, doc=self.doc
        )
        audience = f"{one}.{{{one}}}" if one else f"service.{self.service.value}"
        subject = Subject(self.verb.upper().replace(".", "_"), template, (question,), audience, self.doc)
        if self.asks is not None:
            subject, question = self.asks
        object.__setattr__(self, "subject", subject)
        object.__setattr__(self, "request_type", question)
        object.__setattr__(self, "reply_type", answer)


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream, bounded in bytes and age. When it is full the oldest go (``limits``), or new
    work is refused (``workqueue``).
    """

    name: str
    subjects: tuple[str, ...]
    retention: str
    max_age_s: int
    max_bytes: int
    doc: str


@dataclass(frozen=True, eq=False)
class Bucket(Generic[M_co]):
    """A KV bucket of signed records."""

    name: str
    model: type[M_co]
    writers: Senders
    doc: str
    max_bytes: int = 64 * KIB
    """Largest record."""
    max_age_s: int = 0
    """A record that nobody wrote for so long is forgotten; 0 for never."""
    own: bool = False
    """Whether everyone writes a record of their own, under their own token, and none under another's."""

    @cached_property
    def message_type(self) -> MessageType[Message]:
        """The envelope's type of its records."""
        return MessageType(
            f"record.{self.name}", RecordBody, MessageClass.RECORD, self.writers, self.max_bytes, 0, self.doc
        )


class RecordBody(Message):
    """Body of a record: it names where it stands, so that it can be neither moved nor rolled back."""

    bucket: str
    key: str
    revision: int
    value: bytes
    """msgpack of the bucket's model."""
