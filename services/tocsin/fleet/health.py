"""Which agents live: heartbeats against the enrolled, with the time passed in. Pure.

A heartbeat counts for an agent only if it comes from the host that the agent is enrolled on: a host cannot
vouch for another's agents. An agent that was never heard, or not within the period, is silent. What an
agent does is not judged here, only that its host says it runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from tocsin.contracts.fleet import AgentRecord, AgentState, RosterEntry


class HealthBook:
    """The enrolled agents and when each was heard last. Bounded by the number of enrolled agents.

    Args:
        silent_after_ns: nanoseconds without a heartbeat after which an agent is silent.
    """

    def __init__(self, *, silent_after_ns: int) -> None:
        self._silent_after_ns = silent_after_ns
        self._agents: dict[str, AgentRecord] = {}
        self._seen_ns: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def enrol(self, record: AgentRecord) -> None:
        """Take a record; an agent that has moved to another host must be heard from there."""
        held = self._agents.get(record.name)
        if held is not None and held.host != record.host:
            self._seen_ns.pop(record.name, None)
        self._agents[record.name] = record

    def beat(self, host: str, agents: Iterable[str], *, at_ns: int) -> int:
        """Take a heartbeat; return for how many agents it counted."""
        counted = 0
        for name in agents:
            record = self._agents.get(name)
            if record is not None and record.host == host:
                self._seen_ns[name] = max(at_ns, self._seen_ns.get(name, 0))
                counted += 1
        return counted

    def state(self, name: str, *, now_ns: int) -> AgentState:
        """Return an agent's state; one that is not enrolled is silent."""
        seen_ns = self._seen_ns.get(name)
        if seen_ns is None or now_ns - seen_ns > self._silent_after_ns:
            return AgentState.SILENT
        return AgentState.HEALTHY

    def roster(self, *, now_ns: int) -> tuple[RosterEntry, ...]:
        """Return all agents by name."""
        return tuple(
            RosterEntry(
                agent=self._agents[name],
                state=self.state(name, now_ns=now_ns),
                last_seen_ns=self._seen_ns.get(name),
            )
            for name in sorted(self._agents)
        )
