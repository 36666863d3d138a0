"""Which bounds a growing fleet comes up against, and how much of each it uses: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from _enrolled import Usage

from tocsin.bus.enrolment import MAX_TOKENS
from tocsin.crypto import TrustStore
from tocsin.crypto.trust import MAX_KNOWN_NAMES

CONNECTIONS = 65_536
"""Of nats-server, where its configuration says nothing else (``max_connections``)."""
CONNECTIONS_OF_A_HOST = 2
MAX_IDENTITIES: int = signature(TrustStore).parameters["max_identities"].default


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound, and what a fleet uses of it."""

    what: str
    where: str
    used: float
    most: float
    agents: int
    """With how many agents."""

    @property
    def share(self) -> float:
        """Of the bound, how much is used."""
        return self.used / self.most

    def told(self) -> dict[str, Any]:
        """Return it for the report; the last figure takes it that use grows as the fleet does."""
        return {
            "what": self.what,
            "where": self.where,
            "used": round(self.used, 3),
            "most": round(self.most, 3),
            "share": round(self.share, 4),
            "agents_there": round(self.agents / self.share) if self.share else 0,
        }


def limits(
    *,
    agents: int,
    hosts: int,
    keys: int,
    cpu_cores: float,
    cores: int,
    uss_mib: float,
    memory_mib: float,
    usage: Mapping[str, Usage],
) -> Sequence[Limit]:
    """Return every bound that grows with the fleet, the one that is used most first.

    Args:
        agents: how many there are.
        hosts: in how many processes.
        keys: identities that a process's trust store holds.
        cpu_cores: that the idle system keeps busy.
        cores: that there are.
        uss_mib: memory of the whole.
        memory_mib: that there is.
        usage: of each group of processes.
    """
    found = [
        ("cores, idle", "this machine", cpu_cores, float(cores)),
        ("memory, MiB", "this machine", uss_mib, memory_mib),
        ("certified keys", "crypto/trust.py: max_identities", keys, MAX_IDENTITIES),
        ("certified names", "crypto/trust.py: MAX_KNOWN_NAMES", agents + hosts, MAX_KNOWN_NAMES),
        ("enrolment tokens", "bus/enrolment.py: MAX_TOKENS", hosts, MAX_TOKENS),
        ("broker connections", "nats-server: max_connections", hosts * CONNECTIONS_OF_A_HOST, CONNECTIONS),
    ]
    found += [
        (f"open files, {name}", "RLIMIT_NOFILE of one process", used.files, used.files_most)
        for name, used in usage.items()
    ]
    made = [Limit(what, where, used, most, agents) for what, where, used, most in found]
    return sorted(made, key=lambda one: one.share, reverse=True)


def first(found: Sequence[Limit]) -> Limit:
    """Return the bound that is reached first."""
    return found[0]
