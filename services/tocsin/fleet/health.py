"""How the enrolled agents are: what is known of each, and what happens to it, with the time passed in. Pure.

A heartbeat counts for an agent only if it comes from the host that the agent is enrolled on: a host cannot vouch for
another's agents. The states themselves are :mod:`tocsin.fleet.states`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tocsin.contracts.fleet import AgentRecord, AgentState, Roster, RosterEntry, RosterRequest
from tocsin.contracts.health import StateChange
from tocsin.fleet.states import Happening, after

K = TypeVar("K", str, bytes)

LATE_NS = 500_000_000
"""A heartbeat that was sent before its host was gone can be handled so much later, since its signature is verified
meanwhile. Only within this time are the clocks of two machines compared."""


@dataclass(slots=True)
class _Health:
    record: AgentRecord
    state: AgentState = AgentState.ENROLLED
    seen_ns: int | None = None
    lost_ns: int = 0
    doubts: dict[str, str] = field(default_factory=dict)
    """Why it is suspect, by who doubts it: ``attestation``, ``score``."""


class HealthBook:
    """The enrolled agents and how each is. Bounded by the number of enrolled agents.

    Args:
        silent_after_ns: nanoseconds without a heartbeat after which an agent is silent.
    """

    def __init__(self, *, silent_after_ns: int) -> None:
        self._silent_after_ns = silent_after_ns
        self._agents: dict[str, _Health] = {}
        self._by_host: dict[str, set[str]] = {}
        self._by_key: dict[bytes, set[str]] = {}

    def __len__(self) -> int:
        return len(self._agents)

    def enrol(self, record: AgentRecord) -> list[StateChange]:
        """Take a record; an agent that has moved, or has another key, must be heard anew."""
        held = self._agents.get(record.name)
        if held is None:
            self._agents[record.name] = _Health(record)
        else:
            _forget(self._by_host, held.record.host, record.name)
            _forget(self._by_key, held.record.key_id, record.name)
        self._by_key.setdefault(record.key_id, set()).add(record.name)
        self._by_host.setdefault(record.host, set()).add(record.name)
        if held is None:
            return []
        is_new = (held.record.host, held.record.key_id) != (record.host, record.key_id)
        held.record = record
        if not is_new:
            return []
        held.seen_ns, held.doubts = None, {}
        return self._happen(Happening.ENROLLED, [record.name])

    def record(self, name: str) -> AgentRecord | None:
        """Return an agent's record."""
        held = self._agents.get(name)
        return held.record if held is not None else None

    def names(self) -> tuple[str, ...]:
        """Return all agents' names, in no order."""
        return tuple(self._agents)

    def speaking(self, key_id: bytes) -> tuple[AgentRecord, ...]:
        """Return the agents that a key speaks for."""
        return tuple(self._agents[name].record for name in self._by_key.get(key_id, ()))

    def living_hosts(self, *, now_ns: int) -> tuple[str, ...]:
        """Return the hosts of whose agents one at least was heard within the period, sorted."""
        return tuple(
            sorted(
                host
                for host, names in self._by_host.items()
                if any(self._lives(self._agents[name], now_ns) for name in names)
            )
        )

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
        """Let something happen to some agents; return whose state it changed. A release clears every doubt."""
        known = [name for name in names if name in self._agents]
        if happening is Happening.RELEASED:
            for name in known:
                self._agents[name].doubts.clear()
        return self._happen(happening, known)

    def doubt(self, by: str, reasons: Mapping[str, str]) -> list[StateChange]:
        """Doubt some agents; it is remembered until it is cleared, whatever happens to them meanwhile.

        Args:
            by: who doubts: ``attestation`` or ``score``.
            reasons: why, by agent.
        """
        known = [name for name in reasons if name in self._agents]
        for name in known:
            self._agents[name].doubts[by] = reasons[name]
        return self._happen(Happening.DOUBTED, known)

    def clear(self, by: str, names: Iterable[str]) -> list[StateChange]:
        """Take one doubt about some agents back; return who is not suspect any more."""
        cleared = []
        for name in names:
            held = self._agents.get(name)
            if held is not None and held.doubts.pop(by, None) is not None and not held.doubts:
                cleared.append(name)
        return self._happen(Happening.CLEARED, cleared)

    def doubted(self, by: str) -> tuple[str, ...]:
        """Return the agents that somebody doubts. O(agents)."""
        return tuple(name for name, held in self._agents.items() if by in held.doubts)

    def doubts(self, name: str) -> dict[str, str]:
        """Return why an agent is suspect, by who doubts it."""
        held = self._agents.get(name)
        return dict(held.doubts) if held is not None else {}

    def state(self, name: str, *, now_ns: int) -> AgentState | None:
        """Return an agent's state; None for one that is not enrolled."""
        held = self._agents.get(name)
        if held is None:
            return None
        return held.state if self._lives(held, now_ns) else after(held.state, Happening.QUIET)

    def roster(self, *, now_ns: int) -> tuple[RosterEntry, ...]:
        """Return all agents by name."""
        return tuple(self._entry(name, now_ns, 100.0) for name in sorted(self._agents))

    def page(self, asked: RosterRequest, *, now_ns: int, score: Callable[[str], float]) -> Roster:
        """Return a page of the agents that somebody asks for, by name. O(agents log agents).

        Args:
            asked: which.
            now_ns: now.
            score: an agent's score.
        """
        states = {name: self.state(name, now_ns=now_ns) or held.state for name, held in self._agents.items()}
        found = sorted(
            name
            for name, held in self._agents.items()
            if asked.role in {None, held.record.role}
            and asked.host in {None, held.record.host}
            and asked.state in {None, states[name]}
        )
        start = bisect_right(found, asked.after) if asked.after is not None else 0
        shown = found[start : start + asked.limit]
        return Roster(
            entries=tuple(self._entry(name, now_ns, score(name)) for name in shown),
            total=len(found),
            states=dict(Counter(states[name] for name in found)),
            more=start + len(shown) < len(found),
        )

    def entry(self, name: str, *, now_ns: int, score: float) -> RosterEntry | None:
        """Return one agent as the roster shows it; None for one that is not enrolled."""
        return self._entry(name, now_ns, score) if name in self._agents else None

    def _entry(self, name: str, now_ns: int, score: float) -> RosterEntry:
        held = self._agents[name]
        state = self.state(name, now_ns=now_ns) or held.state
        return RosterEntry(agent=held.record, state=state, last_seen_ns=held.seen_ns, score=score)

    def _lives(self, held: _Health, now_ns: int) -> bool:
        return held.seen_ns is not None and now_ns - held.seen_ns <= self._silent_after_ns

    def _happen(self, happening: Happening, names: Iterable[str]) -> list[StateChange]:
        changes = []
        for name in names:
            held = self._agents[name]
            state = after(held.state, happening)
            if held.doubts:
                state = after(state, Happening.DOUBTED)
            if state is not held.state:
                changes.append(StateChange(agent=name, host=held.record.host, before=held.state, after=state))
                held.state = state
        return changes


def _forget(index: dict[K, set[str]], key: K, name: str) -> None:
    names = index[key]
    names.discard(name)
    if not names:
        del index[key]


def _too_late(held: _Health, at_ns: int, sent_ns: int) -> bool:
    return at_ns - held.lost_ns < LATE_NS and sent_ns < held.lost_ns
