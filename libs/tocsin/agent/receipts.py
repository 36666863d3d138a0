"""Receipts: a host tells the routers which of its agents have taken an emergency.

What has gathered while one envelope was being sent goes into the next one, at most 64 receipts each. A
receipt that cannot be sent is kept and tried again; beyond ``MAX_WAITING`` the oldest are dropped and
counted (``receipts_dropped``): the tracker then counts those agents as undelivered, never the other way
round. What was sent shortly before the connection broke may have met no router: after a reconnection the
receipts of the last 30 s are sent once more, and trackers count each agent once.

A receipt says that the message is in the agents' inboxes, not that they have acted on it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from tocsin.bus import Bus
from tocsin.contracts.catalogue import RECEIPT, RECEIPTS
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.routing import Receipt, Receipts

MAX_WAITING = 4096
MAX_IN_ONE = 64
RETRY_S = 0.5
AGAIN_AFTER_S = 1.0
"""After a reconnection: until then the routers have subscribed again, too."""
AGAIN_NS = 30_000_000_000


class ReceiptSender:
    """Sends one host's receipts. Use :meth:`run` as a task."""

    def __init__(self, bus: Bus, host: str) -> None:
        self._bus = bus
        self._host = host
        self._waiting: deque[Receipt] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sent: deque[Receipt] = deque(maxlen=MAX_WAITING)
        bus.connection.on_reconnect(self._again_later)

    def add(self, receipt: Receipt) -> None:
        """Take a receipt to be sent."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._bus.metrics.count("receipts_dropped")
        self._waiting.append(receipt)
        self._idle.clear()
        self._arrived.set()

    def _again_later(self) -> None:
        asyncio.get_running_loop().call_later(AGAIN_AFTER_S, self._again)

    def _again(self) -> None:
        recent_ns = time.time_ns() - AGAIN_NS
        recent = [receipt for receipt in self._sent if receipt.taken_ns >= recent_ns]
        self._sent.clear()
        for receipt in recent:
            self.add(receipt)

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
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_IN_ONE))]
            try:
                await self._bus.publish(
                    RECEIPT,
                    RECEIPTS,
                    Receipts(host=self._host, receipts=tuple(batch)),
                    at={"host": self._host},
                )
            except TocsinError as error:
                self._bus.metrics.count(f"receipt_failures.{error.reason}")
                self._waiting.extendleft(reversed(batch))
                await asyncio.sleep(RETRY_S)
                continue
            self._bus.metrics.count("receipts_sent", len(batch))
            self._sent.extend(batch)
            if not self._waiting:
                self._arrived.clear()
                self._idle.set()
