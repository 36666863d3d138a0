"""What was signed and goes out by itself: the second half of ``Bus.publish_nowait``."""

from __future__ import annotations

import asyncio
from collections import deque

from tocsin.bus.connection import Connection
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.subjects import MessageType
from tocsin.telemetry import Metrics

MAX_WAITING = 16_384
"""Envelopes that wait for the connection; those beyond are counted as unsent."""


def check_size(kind: MessageType[Message], data: bytes) -> None:
    """Refuse an envelope that its readers would refuse.

    Raises:
        InvalidInputError: ``too_large``.
    """
    if len(data) > kind.max_bytes:
        raise InvalidInputError(f"{kind.name} of {len(data)} bytes, limit {kind.max_bytes}", reason="too_large")


class Outbox:
    """Publishes envelopes in the order in which they were put. Use as a task: :meth:`run` until cancelled."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, kind: MessageType[Message], subject: str, envelope: bytes | UnavailableError) -> None:
        """Take what the signer has made of a message."""
        if isinstance(envelope, UnavailableError):
            self._metrics.count(f"unsent.{envelope.reason}")
        elif len(envelope) > kind.max_bytes:
            self._metrics.count("unsent.too_large")
        elif len(self._waiting) >= MAX_WAITING:
            self._metrics.count("unsent.outbox_full")
        else:
            self._waiting.append((subject, envelope))
            self._arrived.set()

    async def run(self, connection: Connection) -> None:
        """Publish until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                subject, envelope = self._waiting.popleft()
                try:
                    await connection.publish(subject, envelope)
                except TocsinError as error:
                    self._metrics.count(f"unsent.{error.reason}")
                else:
                    self._metrics.count("envelopes_sent")
