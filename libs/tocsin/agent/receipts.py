"""Receipts: a host tells the routers which of its agents have accepted an emergency.

What has gathered while one envelope was being sent goes into the next one, at most 64 receipts and about 8,000
agents each; one that is too large all the same goes in halves, and a single receipt that is too large is dropped
and counted. They go into stream RECEIPTS, so that a router that is away, or dies, finds them; an envelope that
the stream does not acknowledge in time is sent again. Beyond ``MAX_WAITING`` the oldest are dropped and counted
(``receipts_dropped``): the tracker then counts those agents as undelivered, never the other way round. Trackers
count each agent once, however often it is confirmed.

A receipt says that the message is on the host's disk, and will be handed to the agents even if the host dies
now; not that they have acted on it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tocsin.bus import Bus
from tocsin.contracts.catalogue import RECEIPT, RECEIPTS
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.routing import Receipt, Receipts

MAX_WAITING = 4096
MAX_IN_ONE = 64
MAX_AGENTS_IN_ONE = 8_000
"""With names of up to 24 bytes they fit into an envelope of type ``receipts``."""
RETRY_S = 0.2
SEND_TIMEOUT_S = 1.0
"""For signing and the stream's acknowledgement; a broker that died with it never answers."""


class ReceiptSender:
    """Sends one host's receipts. Use :meth:`run` as a task."""

    def __init__(self, bus: Bus, host: str) -> None:
        self._bus = bus
        self._host = host
        self._waiting: deque[Receipt] = deque()
        self._limit = MAX_IN_ONE
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, receipt: Receipt) -> None:
        """Take a receipt to be sent."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._bus.metrics.count("receipts_dropped")
        self._waiting.append(receipt)
        self._idle.clear()
        self._arrived.set()

    async def flush(self, *, timeout_s: float) -> None:
        """Wait until all have been sent, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._bus.metrics.count("receipts_dropped", len(self._waiting))

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._bus.publish(
                        RECEIPT,
                        RECEIPTS,
                        Receipts(host=self._host, receipts=tuple(batch)),
                        durable=True,
                        at={"host": self._host},
                    )
            except (TocsinError, TimeoutError) as error:
                reason = getattr(error, "reason", "timeout")
                self._bus.metrics.count(f"receipt_failures.{reason}")
                if reason == "too_large":
                    self._split(batch)
                else:
                    self._waiting.extendleft(reversed(batch))
                    await asyncio.sleep(RETRY_S)
            else:
                self._bus.metrics.count("receipts_sent", len(batch))
                self._limit = MAX_IN_ONE
            if not self._waiting:
                self._arrived.clear()
                self._idle.set()

    def _next_batch(self) -> list[Receipt]:
        """Take the oldest that go into one envelope: at least one."""
        batch = [self._waiting.popleft()]
        agents = len(batch[0].agents)
        while self._waiting and len(batch) < self._limit:
            agents += len(self._waiting[0].agents)
            if agents > MAX_AGENTS_IN_ONE:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _split(self, batch: list[Receipt]) -> None:
        """Try half of what was too large next; what cannot be halved would be too large for ever."""
        if len(batch) == 1:
            self._bus.metrics.count("receipts_dropped")
            self._limit = MAX_IN_ONE
        else:
            self._waiting.extendleft(reversed(batch))
            self._limit = len(batch) // 2
