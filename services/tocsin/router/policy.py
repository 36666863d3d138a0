"""Decide where a routed message may go: a table, and one function that reads it.

Pure: the message's outside, its body and a look-up of agents' roles come in; a :class:`Route` or one refusal
comes out. The table is :data:`POLICY`; a row says who may send (the catalogue's own senders, which every
recipient applies too), which kinds of audience are admissible, and the highest priority.

Rules that are not in the table, each with its reason code:

* ``severity_mismatch``: an alert's severity is CRITICAL if and only if its priority is. People act on the
  severity, the bus acts on the priority. Were they to differ, either a catastrophe would travel on one channel
  without receipts, or an ordinary alert would take the path that is kept free for emergencies.
* ``order_not_allowed``: only an admin's CRITICAL alert carries an order, since guardians act on it.
* ``not_itself``: a discovery describes its own sender.
* ``content_not_allowed``: what is coordinated is what the sender's role produces (:data:`PRODUCERS`), so a
  captured canary cannot hand an admin an assessment.
* ``no_need_to_know``, ``no_such_recipient``: intelligence goes to authorised roles, and to agents of them.

Example::

    route("threat_alert", sender, "all", Priority.CRITICAL, body, role_of).subject == DELIVER_ALL.at()
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    CONSENSUS_PROPOSAL,
    COORDINATION,
    DELIVER_AGENT,
    DELIVER_ALL,
    DELIVER_GROUP,
    DELIVER_MISSION,
    DELIVER_ROLE,
    DISCOVERY,
    INTELLIGENCE,
    THREAT_ALERT,
)
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.identifiers import NAME_PATTERN, Priority, Role, Severity, SpiffeId
from tocsin.contracts.observations import Incident, Observations
from tocsin.contracts.routing import Coordination, Discovery, ThreatAlert
from tocsin.contracts.subjects import Senders, Subject

RoleOf: TypeAlias = Callable[[str], Role | None]
"""The role of an enrolled agent by its name; None for a name that nobody has."""


class Reach(StrEnum):
    """The kinds of audience: ``all``, or ``<kind>.<name>``."""

    ALL = "all"
    AGENT = "agent"
    ROLE = "role"
    MISSION = "mission"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    receives: str
    """Who gets it, in words, for the reference."""
    senders: Senders
    reach: frozenset[Reach]
    top: Priority
    """Highest admissible priority; CRITICAL is the emergency path."""


@dataclass(frozen=True, slots=True)
class Audience:
    """A parsed audience; ``name`` is empty for ``all``."""

    reach: Reach
    name: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes."""

    subject: str
    """Core subject, one publication."""
    backup: str | None
    """Subject in stream ALERTS for an emergency, which is also tracked; None below CRITICAL."""
    audience: Audience


POLICY: Mapping[str, Rule] = MappingProxyType(
    {
        DISCOVERY.name: Rule(
            "admins, and the sender's groups of the topology",
            DISCOVERY.senders,
            frozenset({Reach.ROLE, Reach.GROUP}),
            Priority.HIGH,
        ),
        THREAT_ALERT.name: Rule(
            "all agents, or those of one role, or one agent; CRITICAL on both channels with receipts",
            THREAT_ALERT.senders,
            frozenset({Reach.ALL, Reach.ROLE, Reach.AGENT}),
            Priority.CRITICAL,
        ),
        COORDINATION.name: Rule(
            "the relevant: one agent, a role, a mission or a group, never everyone",
            COORDINATION.senders,
            frozenset({Reach.AGENT, Reach.ROLE, Reach.MISSION, Reach.GROUP}),
            Priority.HIGH,
        ),
        INTELLIGENCE.name: Rule(
            "authorised roles, and agents of them",
            INTELLIGENCE.senders,
            frozenset({Reach.ROLE, Reach.AGENT}),
            Priority.HIGH,
        ),
        CONSENSUS_PROPOSAL.name: Rule(
            "all participants of the epoch",
            CONSENSUS_PROPOSAL.senders,
            frozenset({Reach.ALL}),
            Priority.HIGH,
        ),
    }
)

PRODUCERS: Mapping[type[Message], frozenset[Role]] = MappingProxyType(
    {
        Observations: frozenset({Role.SENTINEL, Role.DECEPTION, Role.CANARY, Role.SPECIALIST}),
        Incident: frozenset({Role.HUNTER, Role.ANALYST, Role.SPECIALIST, Role.ADMIN}),
        Assessment: frozenset({Role.ANALYST, Role.SPECIALIST, Role.ADMIN}),
    }
)
"""Which roles hand on which content of a coordination."""

_SUBJECTS: Mapping[Reach, Subject] = MappingProxyType(
    {
        Reach.ALL: DELIVER_ALL,
        Reach.AGENT: DELIVER_AGENT,
        Reach.ROLE: DELIVER_ROLE,
        Reach.MISSION: DELIVER_MISSION,
        Reach.GROUP: DELIVER_GROUP,
    }
)
_NAME = re.compile(NAME_PATTERN)


def route(
    type_name: str, sender: SpiffeId, audience: str, priority: Priority, body: Message, role_of: RoleOf
) -> Route:
    """Return where the message goes.

    Raises:
        InvalidInputError: ``unknown_type``, ``bad_audience``, ``severity_mismatch``, ``no_such_recipient``.
        DeniedError: ``sender_not_allowed``, ``audience_not_allowed``, ``priority_not_allowed``,
            ``order_not_allowed``, ``not_itself``, ``content_not_allowed``, ``no_need_to_know``.
    """
    rule = POLICY.get(type_name)
    if rule is None:
        raise InvalidInputError(f"{type_name[:64]!r} is not routed", reason="unknown_type")
    if not rule.senders.admit(sender):
        raise DeniedError(f"{sender} may not send {type_name}", reason="sender_not_allowed")
    to = parse_audience(audience)
    if to.reach not in rule.reach or (type_name == DISCOVERY.name and not _may_discover(to)):
        raise DeniedError(f"{type_name} may not go to {audience!r}", reason="audience_not_allowed")
    if priority > rule.top:
        raise DeniedError(f"{type_name} may not be {priority.token}", reason="priority_not_allowed")
    _check_body(sender, priority, body)
    if type_name == INTELLIGENCE.name:
        _check_need_to_know(to, role_of)
    return Route(
        subject=_SUBJECTS[to.reach].at(**({to.reach.value: to.name} if to.name else {})),
        backup=ALERT_BACKUP.at(severity=priority.token) if priority is Priority.CRITICAL else None,
        audience=to,
    )


def parse_audience(text: str) -> Audience:
    """Parse an audience of agents.

    Raises:
        InvalidInputError: ``bad_audience``.
    """
    kind, dot, name = text.partition(".")
    if kind not in set(Reach) or (kind == Reach.ALL) is bool(dot):
        raise InvalidInputError(f"{text[:80]!r} names no agents", reason="bad_audience")
    if dot and not _NAME.fullmatch(name):
        raise InvalidInputError(f"{text[:80]!r} holds no name", reason="bad_audience")
    if kind == Reach.ROLE and name not in set(Role):
        raise InvalidInputError(f"{name[:80]!r} is no role", reason="bad_audience")
    return Audience(Reach(kind), name)


def _may_discover(to: Audience) -> bool:
    return to.reach is Reach.GROUP or to.name == Role.ADMIN


def _check_body(sender: SpiffeId, priority: Priority, body: Message) -> None:
    """Apply the rules that look into the body."""
    if isinstance(body, ThreatAlert):
        _check_alert(sender, priority, body)
    elif isinstance(body, Discovery):
        if (body.agent, body.role) != (sender.name, sender.role):
            raise DeniedError(f"{sender} describes {body.role.value} {body.agent}", reason="not_itself")
    elif isinstance(body, Coordination) and sender.role not in PRODUCERS[type(body.content)]:
        raise DeniedError(f"{sender} does not produce {body.content.kind}", reason="content_not_allowed")


def _check_alert(sender: SpiffeId, priority: Priority, alert: ThreatAlert) -> None:
    if (alert.severity is Severity.CRITICAL) is not (priority is Priority.CRITICAL):
        raise InvalidInputError(
            f"an alert of severity {alert.severity.value} with priority {priority.token}",
            reason="severity_mismatch",
        )
    if alert.order is not None and (sender.role is not Role.ADMIN or priority is not Priority.CRITICAL):
        raise DeniedError("only an admin's critical alert carries an order", reason="order_not_allowed")


def _check_need_to_know(to: Audience, role_of: RoleOf) -> None:
    role = Role(to.name) if to.reach is Reach.ROLE else role_of(to.name)
    if role is None:
        raise InvalidInputError(f"no agent {to.name} is enrolled", reason="no_such_recipient")
    if role not in INTELLIGENCE.cleared:
        raise DeniedError(f"{role.value} has no need to know", reason="no_need_to_know")
