"""Who could be given work now: the healthy agents, with what their hosts say they can do.

A host speaks for the agents that it carries by fleet's record, and for no others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tocsin.contracts.fleet import AgentState
from tocsin.contracts.missions import AgentProfile, HostProfile
from tocsin.fleet.assignment import Candidate
from tocsin.fleet.health import HealthBook
from tocsin.fleet.states import UNFIT


class Profiles:
    """What hosts say of their agents. Bounded by the number of enrolled hosts: each writes one record of its own."""

    def __init__(self, book: HealthBook) -> None:
        self._book = book
        self._zones: dict[str, str] = {}
        self._agents: dict[tuple[str, str], AgentProfile] = {}
        self._by_host: dict[str, tuple[str, ...]] = {}
        self._started_ns: dict[str, int] = {}

    def learn(self, key: str, profile: HostProfile) -> tuple[str, ...]:
        """Take a host's record; its key is the host's token, and the host has signed it.

        Returns:
            its agents, if it is known from an earlier start: what they had in hand is lost.
        """
        host = key.partition(".")[2]
        before_ns = self._started_ns.get(host, profile.started_ns)
        self._started_ns[host] = profile.started_ns
        for name in self._by_host.pop(host, ()):
            self._agents.pop((host, name), None)
        self._zones[host] = profile.zone
        self._by_host[host] = tuple(one.agent for one in profile.agents)
        self._agents.update({(host, one.agent): one for one in profile.agents})
        return self._by_host[host] if before_ns != profile.started_ns else ()

    def knows(self, host: str) -> bool:
        """Tell whether a host has said what its agents can do."""
        return host in self._by_host

    def host_of(self, agent: str) -> str | None:
        """Return where an agent is enrolled."""
        record = self._book.record(agent)
        return record.host if record is not None else None

    def is_unfit(self, agent: str) -> bool:
        """Tell whether it is known that an agent does no work now."""
        return self._book.state(agent, now_ns=time.time_ns()) in UNFIT

    def candidates(self, load: Mapping[str, float], *, now_ns: int) -> dict[str, Candidate]:
        """Return who is healthy and takes objectives, by name. O(agents)."""
        found: dict[str, Candidate] = {}
        for name in self._book.names():
            record = self._book.record(name)
            if record is None or self._book.state(name, now_ns=now_ns) is not AgentState.HEALTHY:
                continue
            profile = self._agents.get((record.host, name))
            if profile is None or not profile.slots:
                continue
            found[name] = Candidate(
                name,
                record.role,
                record.host,
                self._zones[record.host],
                frozenset(profile.capabilities),
                load.get(name, 0.0),
                profile.slots,
            )
        return found
