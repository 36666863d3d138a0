"""Agents and hosts: enrolment, heartbeats, the roster."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Digest, Message, Name, Nanoseconds
from tocsin.contracts.identifiers import Role

MAX_AGENTS_PER_HOST = 1024


class AgentSpec(Message):
    """An agent that a host wants to carry."""

    name: Name
    role: Role


class EnrolRequest(Message):
    """A host asks for a certificate; signed by the key that it brings.

    ``mac`` is HMAC-SHA-256 under the token, see :func:`tocsin.bus.enrolment.enrol_mac`: the token itself
    never travels.
    """

    host: Name
    agents: Annotated[tuple[AgentSpec, ...], Field(max_length=MAX_AGENTS_PER_HOST)]
    """May be empty where ``names_host``: a host whose agents all have keys of their own."""
    algorithm: Annotated[int, Field(ge=1, le=3)]
    public_key: Annotated[bytes, Field(min_length=1312, max_length=2592)]
    names_host: bool = True
    """Whether the certificate names the host too. False for a key of one agent alone: an admin never shares."""
    token_id: Name
    mac: Digest


class Enrolled(Message):
    """The host's certificate chain: leaf first, without the root, DER."""

    chain: Annotated[tuple[Annotated[bytes, Field(max_length=262_144)], ...], Field(min_length=1, max_length=4)]


class Enrolment(Message):
    """Value of the ``enrolments`` bucket: the key that was certified for one id."""

    id: Annotated[str, Field(max_length=512)]
    token_id: Name
    """The one-time token that it was certified under; it is good for this key alone from then on."""
    used_before: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    """Tokens of earlier keys of this id: spent."""
    key_id: Digest
    generation: Annotated[int, Field(ge=1, le=2**62)]
    enrolled_ns: Nanoseconds


class AgentState(StrEnum):
    """How an agent is, as fleet sees it: see docs/reference/agent-states.md."""

    ENROLLED = "enrolled"
    HEALTHY = "healthy"
    SILENT = "silent"
    GONE = "gone"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    REVOKED = "revoked"


class AgentRecord(Message):
    """Value of the ``agents`` bucket: one enrolled agent."""

    name: Name
    role: Role
    host: Name
    key_id: Digest
    enrolled_ns: Nanoseconds


class SealingKeyRecord(Message):
    """Value of the ``sealing_keys`` bucket: the key that whoever its signer's certificate names opens bodies with."""

    public_key: Annotated[bytes, Field(min_length=1216, max_length=1216)]
    """ML-KEM-768 public key, then X25519 public key."""


MAX_PAGE = 2_048
"""Agents in one answer: with names of 63 characters 800 kB, below the broker's 1 MB."""


class RosterRequest(Message):
    """Ask for agents by name, a page at a time."""

    role: Role | None = None
    state: AgentState | None = None
    host: Name | None = None
    after: Name | None = None
    """The last name of the page before."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE


class RosterEntry(Message):
    """An agent and how it is."""

    agent: AgentRecord
    state: AgentState
    last_seen_ns: Nanoseconds | None
    score: Annotated[float, Field(ge=0, le=100)] = 100.0
    """100: nothing is held against it."""


class Roster(Message):
    """A page of the enrolled agents."""

    entries: Annotated[tuple[RosterEntry, ...], Field(max_length=16_384)]
    total: Annotated[int, Field(ge=0)] = 0
    """Agents that the question asks for, on whichever page."""
    states: dict[AgentState, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """How many of them are in which state."""
    more: bool = False
    """Whether another page follows."""


class Heartbeat(Message):
    """A host says that its agents live: many agents in one."""

    host: Name
    agents: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_AGENTS_PER_HOST)]
    handled: Annotated[int, Field(ge=0)]
    """Messages that the host's agents have handled since its start."""
    failed: Annotated[int, Field(ge=0)]
    """Handlers of agents that raised."""
