"""Who may send what to whom, at which priority: a table, and one function that applies it.

The routers apply it before they forward, and every host applies it again to what arrives, since who can publish
on ``deliver`` subjects bypasses the routers. Pure: the message's outside, its body and a look-up of agents' roles
come in; the parsed audience or one refusal comes out. The table is :data:`POLICY`; a row says who may send (the
catalogue's own senders), which kinds of audience are admissible, the highest priority, and how it travels.

Rules that are not in the table, each with its reason code:

* ``severity_mismatch``: an alert's severity is CRITICAL if and only if its priority is. People act on the
  severity, the bus acts on the priority. Were they to differ, either a catastrophe would travel on one channel
  without receipts, or an ordinary alert would take the path that is kept free for emergencies.
* ``order_not_allowed``: only an admin's CRITICAL alert carries an order, since guardians act on it.
* ``wish_not_allowed``: only an operator's alert (of a service, not of an agent) carries a wish: it counts as a
  warning of somebody else than the proposer, which an agent could otherwise give itself.
* ``not_itself``: a discovery describes its own sender.
* ``content_not_allowed``: what is coordinated is what the sender's role produces (:data:`PRODUCERS`), so a
  captured canary cannot hand an admin an assessment.
* ``no_such_recipient``: one agent as the audience is an enrolled one. An emergency goes out all the same, since a
  list can be late; its account then says that nobody was due.
* ``proposer_not_allowed``: what is proposed is for the sender's role to propose (:mod:`tocsin.contracts.proposers`).
* ``no_need_to_know``: intelligence goes to authorised roles, and to agents of them.

Example::

    check("threat_alert", sender, "all", Priority.CRITICAL, body, role_of) == Audience(Reach.ALL, "")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    CONSENSUS_PROPOSAL,
    COORDINATION,
    DECISION_RESULT,
    DISCOVERY,
    INTELLIGENCE,
    THREAT_ALERT,
)
from tocsin.contracts.decisions import Proposal
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.identifiers import NAME_PATTERN, Kind, Priority, Role, Severity, SpiffeId
from tocsin.contracts.observations import Incident, Observations
from tocsin.contracts.proposers import check_proposer
from tocsin.contracts.routing import Coordination, Discovery, ThreatAlert
from tocsin.contracts.subjects import Senders

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
    travels: str
    """By which channels, and how often, in words."""
    senders: Senders
    reach: frozenset[Reach]
    top: Priority
    """Highest admissible priority; CRITICAL is the emergency path."""


@dataclass(frozen=True, slots=True)
class Audience:
    """A parsed audience; ``name`` is empty for ``all``."""

    reach: Reach
    name: str


POLICY: Mapping[str, Rule] = MappingProxyType(
    {
        DISCOVERY.name: Rule(
            "admins, and the sender's groups of the topology",
            "core and stream DISCOVERIES",
            DISCOVERY.senders,
            frozenset({Reach.ROLE, Reach.GROUP}),
            Priority.HIGH,
        ),
        THREAT_ALERT.name: Rule(
            "all agents, or those of one role, or one agent",
            "core; CRITICAL also by stream ALERTS on a second connection, with receipts and retries",
            THREAT_ALERT.senders,
            frozenset({Reach.ALL, Reach.ROLE, Reach.AGENT}),
            Priority.CRITICAL,
        ),
        COORDINATION.name: Rule(
            "the relevant: one agent, a role, a mission or a group, never everyone",
            "core, one publication",
            COORDINATION.senders,
            frozenset({Reach.AGENT, Reach.ROLE, Reach.MISSION, Reach.GROUP}),
            Priority.HIGH,
        ),
        INTELLIGENCE.name: Rule(
            "authorised roles, and agents of them",
            "core",
            INTELLIGENCE.senders,
            frozenset({Reach.ROLE, Reach.AGENT}),
            Priority.HIGH,
        ),
        CONSENSUS_PROPOSAL.name: Rule(
            "all participants of the epoch",
            "core, broadcast",
            CONSENSUS_PROPOSAL.senders,
            frozenset({Reach.ALL}),
            Priority.HIGH,
        ),
        DECISION_RESULT.name: Rule(
            "all agents",
            "as an emergency: core and stream ALERTS, with receipts and retries",
            DECISION_RESULT.senders,
            frozenset({Reach.ALL}),
            Priority.CRITICAL,
        ),
    }
)

CLEARED = INTELLIGENCE.cleared
"""Roles that may read intelligence: those that may write it."""

PRODUCERS: Mapping[type[Message], frozenset[Role]] = MappingProxyType(
    {
        Observations: frozenset({Role.SENTINEL, Role.DECEPTION, Role.CANARY, Role.SPECIALIST}),
        Incident: frozenset({Role.HUNTER, Role.ANALYST, Role.SPECIALIST, Role.ADMIN}),
        Assessment: frozenset({Role.ANALYST, Role.SPECIALIST, Role.ADMIN}),
    }
)
"""Which roles hand on which content of a coordination."""

_NAME = re.compile(NAME_PATTERN)
KEPT_OUTSIDES = 8192
"""Outsides that passed, kept: nearly all messages go to whom others went to."""


def check(
    type_name: str, sender: SpiffeId, audience: str, priority: Priority, body: Message, role_of: RoleOf
) -> Audience:
    """Apply the policy to one message; return whom it is for. O(1).

    Raises:
        InvalidInputError: ``unknown_type``, ``bad_audience``, ``severity_mismatch``, ``no_such_recipient``.
        DeniedError: ``sender_not_allowed``, ``audience_not_allowed``, ``priority_not_allowed``,
            ``order_not_allowed``, ``wish_not_allowed``, ``not_itself``, ``content_not_allowed``,
            ``proposer_not_allowed``, ``no_need_to_know``.
    """
    rule = POLICY.get(type_name)
    if rule is None:
        raise InvalidInputError(f"{type_name[:64]!r} is not routed", reason="unknown_type")
    if not rule.senders.admit(sender):
        raise DeniedError(f"{sender} may not send {type_name}", reason="sender_not_allowed")
    to = _check_outside(type_name, audience, priority)
    _check_body(sender, priority, body)
    if to.reach is Reach.AGENT and priority < Priority.CRITICAL and role_of(to.name) is None:
        raise InvalidInputError(f"no agent {to.name} is enrolled", reason="no_such_recipient")
    if type_name == INTELLIGENCE.name:
        _check_need_to_know(to, role_of)
    return to


@lru_cache(maxsize=KEPT_OUTSIDES)
def _check_outside(type_name: str, audience: str, priority: Priority) -> Audience:
    """Apply what the table says of a message's outside, whoever sends it."""
    rule = POLICY[type_name]
    to = parse_audience(audience)
    if to.reach not in rule.reach or (type_name == DISCOVERY.name and not _may_discover(to)):
        raise DeniedError(f"{type_name} may not go to {audience!r}", reason="audience_not_allowed")
    if priority > rule.top:
        raise DeniedError(f"{type_name} may not be {priority.token}", reason="priority_not_allowed")
    return to


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
    elif isinstance(body, Proposal):
        check_proposer(sender, body)
    elif isinstance(body, Coordination) and sender.role not in PRODUCERS[type(body.content)]:
        raise DeniedError(f"{sender} does not produce {body.content.kind}", reason="content_not_allowed")


def _check_alert(sender: SpiffeId, priority: Priority, alert: ThreatAlert) -> None:
    if (alert.severity is Severity.CRITICAL) is not (priority is Priority.CRITICAL):
        raise InvalidInputError(
            f"an alert of severity {alert.severity.value} with priority {priority.token}",
            reason="severity_mismatch",
        )
    if alert.wish is not None and sender.kind is not Kind.SERVICE:
        raise DeniedError("only an operator's alert carries a wish", reason="wish_not_allowed")
    if alert.order is not None and (sender.role is not Role.ADMIN or priority is not Priority.CRITICAL):
        raise DeniedError("only an admin's critical alert carries an order", reason="order_not_allowed")


def _check_need_to_know(to: Audience, role_of: RoleOf) -> None:
    role = Role(to.name) if to.reach is Reach.ROLE else role_of(to.name)
    if role not in CLEARED:
        raise DeniedError(f"{role or to.name} has no need to know", reason="no_need_to_know")
