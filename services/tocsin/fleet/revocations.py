"""Fleet's word on which list of revocations is the current one: every few seconds, and at once when it changes.

The list itself is the root's. What fleet holds comes from stream REVOCATIONS, as everybody's does, so a restarted
fleet goes on from there. Should the stream have lost it, processes that hold it put it back as soon as they hear fleet
state an earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from tocsin.bus import Bus
from tocsin.contracts.catalogue import REVOCATION_STATEMENT, REVOCATIONS_STATEMENT
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.revocations import RevocationStatement


class RevocationStater:
    """States for one bus, which has to be fleet's. Use as a task: :meth:`run` until cancelled.

    Args:
        bus: signs the statements.
        interval_s: pause between two of them, in seconds.
    """

    def __init__(self, bus: Bus, *, interval_s: float) -> None:
        self._bus = bus
        self._interval_s = interval_s
        self._changed = asyncio.Event()
        bus.revocations.on_change(self._changed.set)
        bus.connection.on_reconnect(self._changed.set)

    async def run(self) -> None:
        """State again and again; a broker that is away is no failure."""
        while True:
            self._changed.clear()
            try:
                await self._state()
            except TocsinError as error:
                self._bus.metrics.count(f"statement_failures.{error.reason}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._changed.wait()

    async def _state(self) -> None:
        book = self._bus.revocations.book
        statement = RevocationStatement(number=book.number, leaf=book.leaf, this_update_ns=time.time_ns())
        await self._bus.publish(REVOCATION_STATEMENT, REVOCATIONS_STATEMENT, statement)
        self._bus.metrics.count("revocation_statements")
