"""Who is enrolled: fleet's signed records, followed as they are written, and now and then read anew.

An agent is known a few milliseconds after it enrolled; what the broker holds without fleet's signature never is. Who
was known stays known when the record is gone or does not hold any more: else whoever can write to the broker could
take an agent off the list of those that an emergency is due to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AGENTS
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role

READ_AGAIN_S = 2.0
"""Pause between two readings that emergencies to nobody ask for: they are anybody's to send, and the line of all
emergencies waits for each."""


class Roster:
    """The enrolled agents."""

    def __init__(self, bus: Bus) -> None:
        self._metrics = bus.metrics
        self._records = bus.records(AGENTS)
        self._agents: dict[str, AgentRecord] = {}
        self._reading = asyncio.Lock()
        self._asked_s = -READ_AGAIN_S

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
        await self._records.follow(self._learn)

    def _learn(self, name: str, record: AgentRecord) -> None:
        self._agents[name] = record
        self._metrics.gauge("roster_agents", len(self._agents))

    async def refresh(self) -> None:
        """Read them anew; whoever asks meanwhile waits for this reading and then reads again.

        Raises:
            UnavailableError: the broker is away; what was read before stays.
        """
        async with self._reading:
            self._agents |= await self._records.all()
        self._metrics.gauge("roster_agents", len(self._agents))

    async def refresh_within(self, timeout_s: float) -> None:
        """Read them anew if that is quick and nobody asked just now; else go on with what is known."""
        if time.monotonic() - self._asked_s < READ_AGAIN_S:
            return
        self._asked_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await self.refresh()
        except TimeoutError:
            self._metrics.count("roster_failures.timeout")
        except TocsinError as error:
            self._metrics.count(f"roster_failures.{error.reason}")

    async def keep(self, *, pause_s: float) -> None:
        """Read them again and again, in case one was missed."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.refresh()
            except TocsinError as error:
                self._metrics.count(f"roster_failures.{error.reason}")
