"""Who can speak: roles, services and the SPIFFE-style ids that certificates carry.

``spiffe://<trust-domain>/agent/<role>/<name>``, ``/service/<service>/<instance>``, ``/host/<name>`` (a
process that carries agents) and ``/authority/<name>`` (a certificate authority). The *token* of an id is
its form without the domain and, for an agent, without the role: ``agent.<name>``,
``service.<service>.<instance>``, ``host.<name>``. Tokens appear in subjects and audiences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import NewType

from tocsin.contracts.errors import InvalidInputError

AgentName = NewType("AgentName", str)
"""Name of one agent, unique in its trust domain."""

HostName = NewType("HostName", str)
"""Name of one agent host process."""

NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""A DNS label (RFC 1123 section 2.1): legal in SPIFFE paths, NATS subject tokens and KV keys alike."""

PARSED_IDS = 4096
"""Ids kept parsed, at most 512 characters each: every envelope names its sender, and a parse costs as much as
twenty look-ups. What does not parse is not kept."""

_NAME = re.compile(NAME_PATTERN)
_DOMAIN = re.compile(rf"{NAME_PATTERN}(?:\.{NAME_PATTERN})*")


class Role(StrEnum):
    """What an agent is for."""

    SENTINEL = "sentinel"
    HUNTER = "hunter"
    GUARDIAN = "guardian"
    ANALYST = "analyst"
    DECEPTION = "deception"
    ADMIN = "admin"
    CANARY = "canary"
    SPECIALIST = "specialist"


class ServiceName(StrEnum):
    """The deployables. ``worker`` executes classical tasks; ``cli`` is a person's command."""

    ROUTER = "router"
    FLEET = "fleet"
    CONSENSUS = "consensus"
    QPU_MANAGER = "qpu-manager"
    WORKFLOW = "workflow"
    BALANCER = "balancer"
    WORKER = "worker"
    MONITOR = "monitor"
    GATEWAY = "gateway"
    CLI = "cli"


class Kind(StrEnum):
    """The four kinds of principal."""

    AGENT = "agent"
    SERVICE = "service"
    HOST = "host"
    AUTHORITY = "authority"


class Priority(IntEnum):
    """Priority of a message. CRITICAL is an emergency: both channels, receipts, no batching delay."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3

    @property
    def token(self) -> str:
        """The subject token, e.g. ``critical``."""
        return _PRIORITY_TOKENS[self]


_PRIORITY_TOKENS = tuple(priority.name.lower() for priority in Priority)


class Severity(StrEnum):
    """Severity of an alert, lowest first."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A parsed id. ``group`` is the role, the service or empty; ``name`` the agent, instance or host."""

    domain: str
    kind: Kind
    group: str
    name: str

    @staticmethod
    def parse(text: str) -> SpiffeId:
        """Parse an id; any other text raises :class:`InvalidInputError`."""
        return _parse(text)

    @classmethod
    def agent(cls, domain: str, role: Role, name: str) -> SpiffeId:
        """Return the id of an agent."""
        return cls.parse(f"spiffe://{domain}/agent/{role.value}/{name}")

    @classmethod
    def service(cls, domain: str, service: ServiceName, instance: str) -> SpiffeId:
        """Return the id of one instance of a service."""
        return cls.parse(f"spiffe://{domain}/service/{service.value}/{instance}")

    @classmethod
    def host(cls, domain: str, name: str) -> SpiffeId:
        """Return the id of an agent host."""
        return cls.parse(f"spiffe://{domain}/host/{name}")

    @classmethod
    def authority(cls, domain: str, name: str) -> SpiffeId:
        """Return the id of a certificate authority."""
        return cls.parse(f"spiffe://{domain}/authority/{name}")

    def __str__(self) -> str:
        path = f"{self.group}/{self.name}" if self.group else self.name
        return f"spiffe://{self.domain}/{self.kind}/{path}"

    @property
    def token(self) -> str:
        """The form used in audiences: ``agent.<name>``, ``service.<service>.<instance>``, ``host.<name>``."""
        if self.kind is Kind.SERVICE:
            return f"service.{self.group}.{self.name}"
        return f"{self.kind.value}.{self.name}"

    @property
    def role(self) -> Role | None:
        """The role, for an agent."""
        return Role(self.group) if self.kind is Kind.AGENT else None

    @property
    def service_name(self) -> ServiceName | None:
        """The service, for a service."""
        return ServiceName(self.group) if self.kind is Kind.SERVICE else None


@lru_cache(maxsize=PARSED_IDS)
def _parse(text: str) -> SpiffeId:
    if len(text) > 512 or not text.startswith("spiffe://"):
        raise InvalidInputError(f"not a SPIFFE id: {text[:80]!r}", reason="bad_identity")
    domain, *path = text[len("spiffe://") :].split("/")
    if not _DOMAIN.fullmatch(domain) or len(path) not in {2, 3} or not all(map(_NAME.fullmatch, path)):
        raise InvalidInputError(f"not a SPIFFE id of this system: {text[:80]!r}", reason="bad_identity")
    groups: dict[str, type[StrEnum]] = {"agent": Role, "service": ServiceName}
    kind, group, name = path[0], path[1] if len(path) == 3 else "", path[-1]
    known = groups.get(kind)
    if kind not in set(Kind) or (known is None) != (group == "") or (known and group not in set(known)):
        raise InvalidInputError(f"unknown kind, role or service in {text[:80]!r}", reason="bad_identity")
    return SpiffeId(domain, Kind(kind), group, name)
