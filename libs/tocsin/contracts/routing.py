"""What agents send one another through the router, and the proof of its delivery."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Digest, Message, MessageId, Name, Nanoseconds, Text
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.observations import Finding, Incident, Observations
from tocsin.contracts.response import ResponseOrder


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


class Coordination(Message):
    """Work handed from agent to agent."""

    content: Annotated[Observations | Incident | Assessment, Field(discriminator="kind")]


class Intelligence(Message):
    """Need-to-know information for some roles."""

    summary: Text
    finding: Finding | None = None


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


class Delivery(Message):
    """The tracker's account of one emergency: event ``router.delivery``."""

    message: MessageId
    leaf: Digest
    due: Annotated[int, Field(ge=0)]
    delivered: Annotated[int, Field(ge=0)]
    by_core: Annotated[int, Field(ge=0)]
    by_stream: Annotated[int, Field(ge=0)]
    undelivered: Annotated[tuple[Name, ...], Field(max_length=4096)]
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
