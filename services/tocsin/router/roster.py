"""Who is enrolled: fleet's signed records, followed as they are written.

What the broker holds without fleet's signature is nobody. Who was known stays known when the record is gone or
does not hold any more: else whoever can write to the broker could take an agent off the list of those that an
emergency is due to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AGENTS
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role


class Roster:
    """The enrolled agents.

    Args:
        bus: the process's.
        learned: is told of every record, those that change included.
    """

    def __init__(self, bus: Bus, learned: Callable[[AgentRecord], None]) -> None:
        self._bus = bus
        self._learned = learned
        self._agents: dict[str, AgentRecord] = {}

    @property
    def agents(self) -> Iterable[AgentRecord]:
        """All agents."""
        return self._agents.values()

    def role_of(self, name: str) -> Role | None:
        """Return the role of an agent, None for a name that nobody has."""
        record = self._agents.get(name)
        return record.role if record is not None else None

    async def follow(self) -> None:
        """Learn who is enrolled now, and go on learning.

        Raises:
            UnavailableError: the broker has no such bucket.
        """
        await self._bus.records(AGENTS).follow(self._learn)

    def _learn(self, _: str, record: AgentRecord) -> None:
        self._agents[record.name] = record
        self._bus.metrics.gauge("roster_agents", len(self._agents))
        self._learned(record)
