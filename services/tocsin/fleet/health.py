"""How the enrolled agents are: what is known of each, and what happens to it, with the time passed in. Pure.

A heartbeat counts for an agent only if it comes from the host that the agent is enrolled on: a host cannot vouch for
another's agents. The states themselves are :mod:`tocsin.fleet.states`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tocsin.contracts.fleet import AgentRecord, AgentState, RosterEntry
from tocsin.contracts.health import StateChange
from tocsin.fleet.states import Happening, after

LATE_NS = 500_000_000
"""A heartbeat that was sent before its host was gone can be handled so much later, since its signature is verified
meanwhile. Only within this time are the clocks of two machines compared."""


@dataclass(slots=True)
class _Health:
    record: AgentRecord
    state: AgentState = AgentState.ENROLLED
    seen_ns: int | None = None
    lost_ns: int = 0
    doubted: bool = False


class HealthBook:
    """The enrolled agents and how each is. Bounded by the number of enrolled agents.

    Args:
        silent_after_ns: nanoseconds without a heartbeat after which an agent is silent.
    """

    def __init__(self, *, silent_after_ns: int) -> None:
        self._silent_after_ns = silent_after_ns
        self._agents: dict[str, _Health] = {}
        self._by_host: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def enrol(self, record: AgentRecord) -> list[StateChange]:
        """Take a record; an agent that has moved, or has another key, must be heard anew."""
        held = self._agents.get(record.name)
        if held is None:
            self._agents[record.name] = _Health(record)
        else:
            self._by_host[held.record.host].discard(record.name)
        self._by_host.setdefault(record.host, set()).add(record.name)
        if held is None:
            return []
        is_new = (held.record.host, held.record.key_id) != (record.host, record.key_id)
        held.record = record
        if not is_new:
            return []
        held.seen_ns, held.doubted = None, False
        return self._happen(Happening.ENROLLED, [record.name])

    def record(self, name: str) -> AgentRecord | None:
        """Return an agent's record."""
        held = self._agents.get(name)
        return held.record if held is not None else None

    def carried_by(self, host: str) -> tuple[str, ...]:
        """Return the names of a host's agents, sorted."""
        return tuple(sorted(self._by_host.get(host, ())))

    def beat(
        self, host: str, agents: Iterable[str], *, at_ns: int, sent_ns: int | None = None
    ) -> tuple[int, list[StateChange]]:
        """Take a heartbeat; return for how many agents it counted, and whose state it changed.

        Args:
            host: who sent it.
            agents: whom it names.
            at_ns: when it came.
            sent_ns: when it was sent, by the host's clock; None: when it came.
        """
        counted, fresh = 0, []
        for name in agents:
            held = self._agents.get(name)
            if held is None or held.record.host != host:
                continue
            counted += 1
            if not _too_late(held, at_ns, at_ns if sent_ns is None else sent_ns):
                held.seen_ns = max(at_ns, held.seen_ns or 0)
                fresh.append(name)
        return counted, self._happen(Happening.HEARD, fresh)

    def lose(self, host: str, *, at_ns: int) -> list[StateChange]:
        """Take note that a host's process is gone; return whose state that changed. O(agents of the host)."""
        names = self.carried_by(host)
        for name in names:
            self._agents[name].lost_ns = at_ns
        return self._happen(Happening.LOST, names)

    def sweep(self, *, now_ns: int) -> list[StateChange]:
        """Find who has fallen silent; return whose state that changed. O(agents)."""
        quiet = [name for name, held in self._agents.items() if not self._lives(held, now_ns)]
        return self._happen(Happening.QUIET, quiet)

    def happen(self, happening: Happening, names: Iterable[str]) -> list[StateChange]:
        """Let something happen to some agents; return whose state it changed.

        A doubt is remembered until it is cleared, whatever happens to the agent meanwhile.
        """
        known = [name for name in names if name in self._agents]
        if happening in {Happening.DOUBTED, Happening.CLEARED, Happening.RELEASED}:
            for name in known:
                self._agents[name].doubted = happening is Happening.DOUBTED
        return self._happen(happening, known)

    def state(self, name: str, *, now_ns: int) -> AgentState | None:
        """Return an agent's state; None for one that is not enrolled."""
        held = self._agents.get(name)
        if held is None:
            return None
        return held.state if self._lives(held, now_ns) else after(held.state, Happening.QUIET)

    def roster(self, *, now_ns: int) -> tuple[RosterEntry, ...]:
        """Return all agents by name."""
        return tuple(self._entry(name, now_ns) for name in sorted(self._agents))

    def _entry(self, name: str, now_ns: int) -> RosterEntry:
        held = self._agents[name]
        state = self.state(name, now_ns=now_ns) or held.state
        return RosterEntry(agent=held.record, state=state, last_seen_ns=held.seen_ns)

    def _lives(self, held: _Health, now_ns: int) -> bool:
        return held.seen_ns is not None and now_ns - held.seen_ns <= self._silent_after_ns

    def _happen(self, happening: Happening, names: Iterable[str]) -> list[StateChange]:
        changes = []
        for name in names:
            held = self._agents[name]
            state = after(held.state, happening)
            if held.doubted:
                state = after(state, Happening.DOUBTED)
            if state is not held.state:
                changes.append(StateChange(agent=name, host=held.record.host, before=held.state, after=state))
                held.state = state
        return changes


def _too_late(held: _Health, at_ns: int, sent_ns: int) -> bool:
    return at_ns - held.lost_ns < LATE_NS and sent_ns < held.lost_ns
