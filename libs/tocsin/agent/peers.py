"""Who the enrolled agents are, from fleet's signed records."""

from __future__ import annotations

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AGENTS
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import AgentName, Role


class Peers:
    """All enrolled agents by role. An agent that is enrolled may be silent: fleet's roster says who lives."""

    def __init__(self) -> None:
        self._agents: dict[str, AgentRecord] = {}
        self._by_role: dict[Role, tuple[AgentName, ...]] = {}

    async def follow(self, bus: Bus) -> None:
        """Learn who is enrolled now, and go on learning."""
        await bus.records(AGENTS).follow(lambda _, record: self.learn(record))

    def learn(self, record: AgentRecord) -> None:
        """Take one record."""
        self._agents[record.name] = record
        self._by_role.clear()

    def of(self, role: Role) -> tuple[AgentName, ...]:
        """Return the names of a role's agents, sorted."""
        if role not in self._by_role:
            found = sorted(name for name, record in self._agents.items() if record.role is role)
            self._by_role[role] = tuple(map(AgentName, found))
        return self._by_role[role]

    def find(self, name: str) -> AgentRecord | None:
        """Return an enrolled agent's record, None if there is none."""
        return self._agents.get(name)
