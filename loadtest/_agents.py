"""Which agents there are to measure with, and what the command line says of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from _host import TYPES
from common import not_negative, positive_float, positive_int

from tocsin.contracts.catalogue import COORDINATION
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Algorithm, SignatureBackend, select_backend

DOMAIN = "load.tocsin"
SENSORS = (Role.SENTINEL, Role.DECEPTION, Role.CANARY, Role.SPECIALIST)
"""Roles that the router's policy lets hand on observations."""
ORDINARY = tuple(role for role in Role if role is not Role.ADMIN)
"""An admin never shares a key, whatever the scope; so that the scope alone says how many keys there are."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What is to be measured."""

    agents: int
    hosts: int
    key_scope: str
    algorithm: Algorithm
    backend: SignatureBackend
    type_name: str
    body_bytes: int
    admin: bool = False
    """The first agent is an admin."""

    def __post_init__(self) -> None:
        """Refuse a fleet that cannot be.

        Raises:
            InvalidInputError: ``bad_hosts`` or ``too_few_agents``.
        """
        if self.agents < 2:
            raise InvalidInputError(
                "one agent has nobody to write to: use --agents 2 or more", reason="too_few_agents"
            )
        if not 1 <= self.hosts <= self.agents:
            raise InvalidInputError(f"{self.hosts} hosts for {self.agents} agents", reason="bad_hosts")

    @classmethod
    def of(cls, options: argparse.Namespace, *, type_name: str = "", admin: bool = False) -> Self:
        """Take them from a command line that has :func:`add_options`, or :func:`add_fleet_options` and a type."""
        return cls(
            agents=options.agents,
            hosts=options.hosts,
            key_scope=options.key_scope,
            algorithm=Algorithm.named(options.algorithm),
            backend=select_backend(options.backend),
            type_name=type_name or options.type,
            body_bytes=0 if type_name else options.body_bytes,
            admin=admin,
        )


def add_fleet_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about agents, with what is usual."""
    add = parser.add_argument
    add("--agents", type=positive_int, default=40, help="agents, all together")
    add("--hosts", type=positive_int, default=4, help="host processes that carry the agents")
    add("--key-scope", choices=["host", "agent"], default="host", help="who has a signing key")
    add("--algorithm", choices=[one.label for one in Algorithm], default=Algorithm.ML_DSA_65.label)
    add("--backend", choices=["auto", "openssl", "liboqs"], default="auto", help="who computes signatures")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about agents and their traffic, with what is usual."""
    add_fleet_options(parser)
    add = parser.add_argument
    add("--seconds", type=positive_float, default=10.0, help="how long is measured")
    add("--warmup", type=not_negative, default=2.0, help="seconds of the same traffic before, not measured")
    add("--type", choices=sorted(TYPES), default="coordination", help="the messages' type")
    add("--body-bytes", type=positive_int, default=400, help="size of a message's body")
    add("--seed", type=int, default=1, help="fixes who writes to whom")


@dataclass(frozen=True, slots=True)
class PlannedAgent:
    """An agent and the host that carries it."""

    id: SpiffeId
    host: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.id.name


def plan_agents(options: FleetOptions) -> tuple[PlannedAgent, ...]:
    """Share agents among the roles that may send this type, and among the hosts, in turn."""
    roles = SENSORS if options.type_name == COORDINATION.name else ORDINARY
    return tuple(
        PlannedAgent(
            SpiffeId.agent(
                DOMAIN,
                Role.ADMIN if options.admin and number == 0 else roles[number % len(roles)],
                f"agent-{number + 1:04d}",
            ),
            f"host-{number % options.hosts + 1}",
        )
        for number in range(options.agents)
    )


def host_names(agents: Sequence[PlannedAgent]) -> tuple[str, ...]:
    """Return the hosts, each once, in order."""
    return tuple(dict.fromkeys(agent.host for agent in agents))
