"""The QPUs' books in JetStream, so that a restart forgets no promise.

Changes are by compare-and-set: one that another instance overtook is made again on what that one wrote. Within
a process changes to one book wait for one another instead, which is cheaper than losing that race.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from tocsin.bus import Bus
from tocsin.contracts.catalogue import RESERVATIONS
from tocsin.contracts.errors import ConflictError, InvalidInputError, UntrustedError
from tocsin.contracts.quantum import QpuReservations
from tocsin.telemetry import get_logger

T = TypeVar("T")

log = get_logger(__name__)

ROUNDS = 5
"""How often a change that others overtook again and again is begun anew, after a pause."""
MAX_PAUSE_MS = 50
"""A change takes about 5 ms: in so long the other instance makes ten."""


class ReservationStore:
    """Reads and changes the books."""

    def __init__(self, bus: Bus) -> None:
        self._records = bus.records(RESERVATIONS)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, qpu: str) -> QpuReservations:
        """Return a QPU's book. It waits for changes: a reading that one overtakes would look rolled back.

        What stands there and does not hold counts as nothing, as it does for a change: reservations are short,
        and nobody who can write to the broker shall be able to stop all allocation.
        """
        async with self._locks[qpu]:
            try:
                book = await self._records.get(qpu)
            except (UntrustedError, InvalidInputError) as error:
                log.warning("reservations_refused", qpu=qpu, reason=error.reason)
                book = None
            return book or QpuReservations(qpu=qpu)

    async def change(self, qpu: str, change: Callable[[QpuReservations], tuple[QpuReservations, T]]) -> T:
        """Replace a book by what ``change`` makes of it; return what else it returned the last time.

        Raises:
            ConflictError: ``stale``: others were faster, again and again. What ``change`` raises passes.
        """
        results: list[T] = []

        def rewrite(book: QpuReservations | None) -> QpuReservations | None:
            before = book or QpuReservations(qpu=qpu)
            after, result = change(before)
            results.append(result)
            return None if after == before else after

        async with self._locks[qpu]:
            for _ in range(ROUNDS - 1):
                try:
                    await self._records.change(qpu, rewrite)
                except ConflictError as error:
                    if error.reason != "stale":
                        raise
                    # Two instances in step can overtake one another for long. Chance ends that.
                    await asyncio.sleep(secrets.randbelow(MAX_PAUSE_MS) / 1000)
                else:
                    return results[-1]
            await self._records.change(qpu, rewrite)
        return results[-1]
