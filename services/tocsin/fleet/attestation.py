"""Whether an attestation holds: the nonce that was sent, and what each agent may run. Pure.

The answer's signature and sender are the bus's business: only the host that was asked can have given it. Here it is
compared with what is allowed. The first measurement after an enrolment is believed (trust on first use); afterwards
only what an operator has approved. Each way to fail has its own reason, :data:`REASONS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.health import (
    MAX_ALLOWED,
    AllowedMeasurements,
    Attestation,
    Measurement,
    MeasurementRecord,
)

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "no_answer": "the host beats, and did not answer two challenges in a row",
        "wrong_nonce": "the answer holds another nonce than the one that was sent: an old answer",
        "not_measured": "the answer leaves the agent out",
        "measurement_of_another": "the measurement is that of another agent",
        "wrong_measurement": "none that is allowed: upgraded or reconfigured without approval, or changed",
    }
)
FORGED = frozenset({"wrong_nonce", "measurement_of_another"})
"""What no honest host's program answers: quarantined at once. The others make suspect: an operator judges them."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from one attestation."""

    held: tuple[str, ...] = ()
    """Agents that have proven what they run."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The others, and the reason."""
    first: tuple[AllowedMeasurements, ...] = ()
    """Measurements to be believed from now on, since they are the first after an enrolment."""


def judge(
    agents: Iterable[AgentRecord],
    record: MeasurementRecord | None,
    nonce: bytes,
    answer: Attestation,
    owner_of: Mapping[Measurement, str],
) -> Judgement:
    """Judge a host's attestation. O(agents of the host).

    Args:
        agents: those that are enrolled on the host.
        record: what they may run, as far as that is known.
        nonce: the one that was sent.
        answer: the host's.
        owner_of: whose each known measurement is, of all hosts.
    """
    agents = list(agents)
    if answer.nonce != nonce:
        return Judgement(refused={one.name: "wrong_nonce" for one in agents})
    presented = {one.agent: one.measurement for one in answer.agents}
    known = {one.agent: one for one in record.agents} if record is not None else {}
    held, refused, first = [], {}, []
    for agent in agents:
        shown, allowed = presented.get(agent.name), known.get(agent.name)
        if shown is None:
            refused[agent.name] = "not_measured"
        elif owner_of.get(shown, agent.name) != agent.name:
            refused[agent.name] = "measurement_of_another"
        elif allowed is None or allowed.key_id != agent.key_id:
            first.append(AllowedMeasurements(agent=agent.name, key_id=agent.key_id, allowed=(shown,)))
            held.append(agent.name)
        elif shown in allowed.allowed:
            held.append(agent.name)
        else:
            refused[agent.name] = "wrong_measurement"
    return Judgement(tuple(held), refused, tuple(first))


def with_first(
    host: str, present: MeasurementRecord | None, first: Iterable[AllowedMeasurements]
) -> MeasurementRecord | None:
    """Return the record with first measurements in it; None if it knows all of these agents by their keys already."""
    known = {one.agent: one for one in present.agents} if present is not None else {}
    fresh = {one.agent: one for one in first if one.agent not in known or known[one.agent].key_id != one.key_id}
    if not fresh:
        return None
    return MeasurementRecord(host=host, agents=tuple((known | fresh).values()))


def with_approved(
    host: str,
    present: MeasurementRecord | None,
    approved: Mapping[str, tuple[bytes, Measurement]],
) -> MeasurementRecord | None:
    """Return the record with approved measurements in it, by agent and with its key; None if it has them already."""
    known = {one.agent: one for one in present.agents} if present is not None else {}
    changed = False
    for agent, (key_id, measurement) in approved.items():
        held = known.get(agent)
        before = held.allowed if held is not None and held.key_id == key_id else ()
        if measurement in before:
            continue
        changed = True
        allowed = (*before, measurement)[-MAX_ALLOWED:]
        known[agent] = AllowedMeasurements(agent=agent, key_id=key_id, allowed=allowed)
    return MeasurementRecord(host=host, agents=tuple(known.values())) if changed else None
