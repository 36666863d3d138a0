"""Put a second copy of each discovery into its stream, beside the line that forwards.

The core copy is sent first and waits for nothing here. The line is bounded: when the stream is slow or away,
copies beyond it are dropped and counted (``discovery_copies_dropped``), and the core copy has to do.
"""

from __future__ import annotations

import asyncio

from tocsin.bus import Bus, Sent
from tocsin.contracts.catalogue import DISCOVERY_BACKUP
from tocsin.contracts.errors import TocsinError, UnavailableError

MAX_WAITING = 4096
"""More than the agents of a fleet that starts at once."""
ATTEMPTS = 20
PAUSE_S = 0.5


class Copies:
    """Stores discoveries. :meth:`start` it once the bus is open."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: asyncio.Queue[tuple[str, Sent]] = asyncio.Queue(MAX_WAITING)

    def start(self) -> None:
        """Begin to store."""
        self._bus.spawn(self._run(), "discovery copies")

    def add(self, subject: str, sent: Sent) -> None:
        """Take one copy; never waits."""
        if self._waiting.full():
            self._bus.metrics.count("discovery_copies_dropped")
            return
        self._waiting.put_nowait((subject, sent))

    async def _run(self) -> None:
        while True:
            await self._store(*await self._waiting.get())

    async def _store(self, subject: str, sent: Sent) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._bus.send(subject, sent, stream=DISCOVERY_BACKUP.stream)
            except UnavailableError as error:
                self._bus.metrics.count(f"discovery_copy_failures.{error.reason}")
                await asyncio.sleep(PAUSE_S)
            except TocsinError as error:
                self._bus.metrics.count(f"discovery_copy_failures.{error.reason}")
                break
            else:
                return
        self._bus.metrics.count("discovery_copies_dropped")
