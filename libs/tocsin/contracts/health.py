"""How agents are: changes of state, attestation, standing, and what operators ask and order about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Digest, Message, Name, Nanoseconds, Text
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST, AgentState, RosterEntry

MAX_CHANGES = 512
"""In one event: with names and hosts of 63 characters 100 kB."""
MAX_ALLOWED = 4
"""Measurements that are allowed of one agent at once: the present one and those before it; the oldest goes."""
MAX_ORDERED = 1024
"""Agents that one order names."""

Score = Annotated[float, Field(ge=0, le=100)]
"""100: nothing is held against the agent; see docs/reference/agent-states.md."""
Principal = Annotated[str, Field(max_length=160)]
"""The token of an id, e.g. ``service.cli.0``."""
Reason = Annotated[str, Field(max_length=64)]


class StateChange(Message):
    """One agent's change of state."""

    agent: Name
    host: Name
    before: AgentState
    after: AgentState


class AgentStates(Message):
    """Agents whose state has changed together, and why: event ``fleet.agent_state``."""

    why: Text
    changes: Annotated[tuple[StateChange, ...], Field(min_length=1, max_length=MAX_CHANGES)]


# --- Attestation --------------------------------------------------------------------------------


class Challenge(Message):
    """Fleet asks a host to prove what it runs, now."""

    nonce: Digest
    """Random, and never used before."""


class Measurement(Message):
    """What an agent runs, as its own host measures it: see :mod:`tocsin.agent.measurement`."""

    code: Digest
    """SHA-256 over the source files of the agents' floor and of the agent's class."""
    configuration: Digest
    """SHA-256 over the agent's name, role and host, and the settings that shape what it does."""


class MeasuredAgent(Message):
    """One agent's measurement."""

    agent: Name
    measurement: Measurement


class Attestation(Message):
    """A host's answer to a challenge: the same nonce, and all of its agents."""

    nonce: Digest
    agents: Annotated[tuple[MeasuredAgent, ...], Field(max_length=MAX_AGENTS_PER_HOST)]


class AllowedMeasurements(Message):
    """What one agent may run."""

    agent: Name
    key_id: Digest
    """The key that it was enrolled with: with another one, the first measurement is taken anew."""
    allowed: Annotated[tuple[Measurement, ...], Field(max_length=MAX_ALLOWED)]


class MeasurementRecord(Message):
    """Value of the ``measurements`` bucket: what the agents of one host may run."""

    host: Name
    agents: Annotated[tuple[AllowedMeasurements, ...], Field(max_length=MAX_AGENTS_PER_HOST)]


class AttestationRefused(Message):
    """An attestation that does not hold: ``audit.attestation``."""

    host: Name
    agents: Annotated[tuple[Name, ...], Field(max_length=MAX_CHANGES)]
    reason: Reason


# --- Standing -----------------------------------------------------------------------------------


class Standing(Message):
    """Value of the ``standings`` bucket: an agent that something was, or is, held against."""

    agent: Name
    quarantined: bool
    why: Text
    by: Principal
    """Who said so: fleet itself, or an operator."""
    since_ns: Nanoseconds
    score: Score
    score_ns: Nanoseconds
    """When that was the score; it has recovered since, see docs/reference/agent-states.md."""


class StandingAction(StrEnum):
    """What an operator orders, or fleet does by itself."""

    QUARANTINE = "quarantine"
    RELEASE = "release"
    APPROVE = "approve"


class StandingOrder(Message):
    """Quarantine or release some agents."""

    action: StandingAction
    agents: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_ORDERED)]
    why: Text


class Approval(Message):
    """Allow some agents a measurement each: what the operator has seen, not whatever they present by then."""

    agents: Annotated[tuple[MeasuredAgent, ...], Field(min_length=1, max_length=MAX_ORDERED)]


class StandingDone(Message):
    """What became of an order."""

    changed: Annotated[tuple[Name, ...], Field(max_length=MAX_ORDERED)]
    unchanged: Annotated[tuple[Name, ...], Field(max_length=MAX_ORDERED)] = ()
    """Agents for whom it was so already."""


class StandingChanged(Message):
    """Who was quarantined, released or approved, by whom and why: ``audit.standing``."""

    action: StandingAction
    agents: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_ORDERED)]
    by: Principal
    why: Text


class AgentQuestion(Message):
    """Ask for all that fleet knows of one agent."""

    agent: Name


class AgentDetail(Message):
    """All that fleet knows of one agent."""

    entry: RosterEntry
    standing: Standing | None
    doubts: Annotated[tuple[Reason, ...], Field(max_length=8)]
    """Why it is suspect."""
    presented: Measurement | None
    """What its last attestation said; None if this fleet has had none."""
    attested_ns: Nanoseconds | None
    """When an attestation of it held last."""
    allowed: Annotated[tuple[Measurement, ...], Field(max_length=MAX_ALLOWED)]
    held_against: dict[Annotated[str, Field(max_length=128)], Annotated[float, Field(ge=0)]]
    """Points that are held against it now, by what and whom."""
