"""Which agents a fleet has, and which host carries which: pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from tocsin.bus.enrolment import HeldToken, IssuedToken
from tocsin.contracts.decisions import MIN_PARTICIPANTS
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import AgentSpec
from tocsin.contracts.identifiers import Role, SpiffeId

MAX_AGENTS = 1000
SHARES = {
    Role.SENTINEL: 6,
    Role.GUARDIAN: 6,
    Role.DECEPTION: 6,
    Role.HUNTER: 5,
    Role.ANALYST: 5,
    Role.SPECIALIST: 5,
    Role.CANARY: 4,
    Role.ADMIN: 3,
}
"""Agents of each role among forty."""
ESSENTIAL = (Role.SENTINEL, Role.HUNTER, Role.ANALYST, Role.ADMIN, Role.GUARDIAN, Role.DECEPTION)
"""Without one of each of these the main job cannot go from an observation to a response."""


@dataclass(frozen=True, slots=True)
class PlannedAgent:
    """An agent and where it runs."""

    name: str
    role: Role
    host: str


def plan_agents(count: int, hosts: int) -> tuple[PlannedAgent, ...]:
    """Share ``count`` agents among the roles, and spread each role over the hosts.

    Essential roles come first, so that the smallest fleets can still do the main job; a fleet of fewer than
    six lacks some role, and says so by what it cannot do.

    Raises:
        InvalidInputError: ``too_few_participants``, ``too_many_agents`` or ``bad_hosts``.
    """
    if count < MIN_PARTICIPANTS:
        raise InvalidInputError(
            f"{count} agents cannot decide anything: at least {MIN_PARTICIPANTS} are needed",
            reason="too_few_participants",
        )
    if count < len(ESSENTIAL):
        raise InvalidInputError(
            f"{count} agents lack a role: the main job needs one each of {', '.join(ESSENTIAL)}",
            reason="too_few_agents",
            advice=f"use --agents {len(ESSENTIAL)} or more",
        )
    if count > MAX_AGENTS:
        raise InvalidInputError(f"at most {MAX_AGENTS} agents here, not {count}", reason="too_many_agents")
    if not 1 <= hosts <= count:
        raise InvalidInputError(f"{hosts} hosts for {count} agents", reason="bad_hosts")
    names = [f"{role.value}-{number:02d}" for role, share in _shares(count) for number in range(1, share + 1)]
    roles = [role for role, share in _shares(count) for _ in range(share)]
    return tuple(
        PlannedAgent(name, role, f"host-{index % hosts + 1}")
        for index, (name, role) in enumerate(zip(names, roles, strict=True))
    )


def name_agents(specs: Sequence[str], hosts: int) -> tuple[PlannedAgent, ...]:
    """Read ``name:role`` texts, and spread the agents over at most ``hosts`` hosts.

    Raises:
        InvalidInputError: ``bad_agent``, ``bad_identity`` or ``too_many_agents``.
    """
    agents: dict[str, PlannedAgent] = {}
    for index, spec in enumerate(specs):
        name, found, role = spec.partition(":")
        if not found or role not in set(Role) or name in agents:
            raise InvalidInputError(
                f"{spec[:80]!r} is no name:role, or names an agent again",
                reason="bad_agent",
                advice=f"roles are {', '.join(Role)}",
            )
        SpiffeId.agent("any", Role(role), name)
        agents[name] = PlannedAgent(name, Role(role), f"host-{index % min(hosts, len(specs)) + 1}")
    if len(agents) > MAX_AGENTS:
        raise InvalidInputError(
            f"at most {MAX_AGENTS} agents here, not {len(agents)}", reason="too_many_agents"
        )
    return tuple(agents.values())


def _shares(count: int) -> list[tuple[Role, int]]:
    """Largest-remainder shares, with at least one of each essential role."""
    total = sum(SHARES.values())
    shares = {role: (1 if role in ESSENTIAL else 0) for role in SHARES}
    while sum(shares.values()) < count:
        behind = max(SHARES, key=lambda role: (SHARES[role] * count / total - shares[role], role in ESSENTIAL))
        shares[behind] += 1
    return [(role, shares[role]) for role in Role if shares[role]]


def enrolment_tokens(
    agents: Sequence[PlannedAgent], host: str, seed: bytes, *, expires_ns: int | None = None
) -> list[IssuedToken]:
    """Make a host's one-time tokens: one for the host with its ordinary agents, one for each admin.

    Args:
        agents: the whole fleet.
        host: the host.
        seed: 32 random bytes, fresh for each fleet: ids and secrets of the tokens are derived from it.
        expires_ns: until when they are good, nanoseconds since the epoch. None for the installation's own hosts,
            whose tokens lie beside its other secrets and never travel.
    """
    mine = [agent for agent in agents if agent.host == host]
    groups = [(True, [agent for agent in mine if agent.role is not Role.ADMIN])]
    groups += [(False, [agent]) for agent in mine if agent.role is Role.ADMIN]
    batch = hashlib.sha256(b"batch" + seed).hexdigest()[:8]
    return [
        IssuedToken(
            token_id=f"{host}-{number}-{batch}",
            secret_hex=hashlib.sha256(b"token" + seed + f"{host}/{number}".encode()).hexdigest(),
            host=host,
            names_host=names_host,
            expires_ns=expires_ns,
            agents=tuple(AgentSpec(name=agent.name, role=agent.role) for agent in members),
        )
        for number, (names_host, members) in enumerate(groups)
    ]


def as_issued(tokens: Sequence[IssuedToken]) -> str:
    """Return the tokens file that fleet reads."""
    return json.dumps([token.model_dump(mode="json") for token in tokens])


def held_tokens(tokens: Sequence[IssuedToken], root_fingerprint: str) -> tuple[HeldToken, ...]:
    """Return tokens as the host itself holds them."""
    return tuple(
        HeldToken(
            token_id=token.token_id,
            secret_hex=token.secret_hex,
            names_host=token.names_host,
            expires_ns=token.expires_ns,
            host=token.host,
            agents=tuple(agent.name for agent in token.agents),
            root_fingerprint=root_fingerprint,
        )
        for token in tokens
    )


def as_held(tokens: Sequence[HeldToken]) -> str:
    """Return the tokens file that the host itself reads."""
    return json.dumps([token.model_dump(mode="json") for token in tokens])
