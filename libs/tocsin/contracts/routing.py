"""What agents send one another through the router, and the proof of its delivery."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Digest, Message, MessageId, Name, Nanoseconds, Text
from tocsin.contracts.decisions import QuestionWish
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.inventory import MAX_EXPOSURES, CryptoExposure
from tocsin.contracts.observations import Finding, Incident, Observations
from tocsin.contracts.response import ResponseOrder, ResponseWish

MAX_DEADLINE_S = 300.0
"""Longest deadline of an emergency, in seconds: routers look back so far when they start."""
MAX_LISTED_BYTES = 160 * 1024
"""Of the names in an account: with the rest it fits its event, whatever the names."""


class Discovery(Message):
    """An agent makes itself known."""

    agent: Name
    role: Role
    host: Name
    capabilities: Annotated[tuple[Name, ...], Field(max_length=32)] = ()


class ThreatAlert(Message):
    """Something is wrong, or (CRITICAL, with an order) something must now be done."""

    severity: Severity
    summary: Text
    finding: Finding | None = None
    order: ResponseOrder | None = None
    wish: ResponseWish | QuestionWish | None = None
    """An operator's: the command, or the question, that an admin is to propose."""
    deadline_s: Annotated[float, Field(ge=0.05, le=MAX_DEADLINE_S)] | None = None
    """For how long an emergency is pursued before its account is closed, in seconds; None: as the router is set."""


class Coordination(Message):
    """Work handed from agent to agent."""

    content: Annotated[Observations | Incident | Assessment, Field(discriminator="kind")]


class Intelligence(Message):
    """Need-to-know information for some roles."""

    summary: Text
    finding: Finding | None = None
    exposures: Annotated[tuple[CryptoExposure, ...], Field(max_length=MAX_EXPOSURES)] = ()
    """Of a specialist: endpoints, worst first."""


class SealedBody(Message):
    """What a process that forwards has in place of a body that is sealed to others."""

    recipients: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=64)]
    """Ids of the keys that it is sealed to."""


class Receipt(Message):
    """One message that a host has taken for some of its agents."""

    leaf: Digest
    """Leaf hash of the message's content: names these bytes and no others."""
    agents: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    channel: Annotated[str, Field(pattern="^(core|stream)$")]
    """The channel that brought the first copy."""
    taken_ns: Nanoseconds


class Receipts(Message):
    """A host's receipts, many in one envelope."""

    host: Name
    receipts: Annotated[tuple[Receipt, ...], Field(min_length=1, max_length=64)]


class Accepted(Message):
    """A router's answer to the sender of an emergency: stream ALERTS has it."""

    message: MessageId


class Confirmed(Message):
    """Agents of one host that took an emergency together."""

    host: Name
    channel: Annotated[str, Field(pattern="^(core|stream)$")]
    """The channel that brought their first copy."""
    ms: float
    """Milliseconds from the sender's ``issued_at``; across machines with the difference of their clocks."""
    agents: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]


class Delivery(Message):
    """The tracker's account of one emergency: event ``router.delivery``.

    Every agent that was due is named once, under ``undelivered`` or ``confirmed``, as far as the names have
    ``MAX_LISTED_BYTES``; beyond, ``unlisted`` counts.
    """

    message: MessageId
    leaf: Digest
    due: Annotated[int, Field(ge=0)]
    delivered: Annotated[int, Field(ge=0)]
    by_core: Annotated[int, Field(ge=0)]
    by_stream: Annotated[int, Field(ge=0)]
    undelivered: Annotated[tuple[Name, ...], Field(max_length=65_536)]
    confirmed: Annotated[tuple[Confirmed, ...], Field(max_length=65_536)] = ()
    unlisted: Annotated[int, Field(ge=0)] = 0
    first_ms: float | None
    last_ms: float | None
    """Milliseconds from the sender's ``issued_at`` to the first and the last agent's copy."""
    complete: bool


class Refusal(Message):
    """The router's answer to a sender whose message it did not forward: event ``router.refusal``."""

    message: MessageId | None
    """None where the message was not read: ``rate_limited``."""
    agent: Name
    reason: Annotated[str, Field(max_length=64)]
    detail: Text
