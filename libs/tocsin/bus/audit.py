"""What was refused: counted at once, told in sums, capped in kinds so that an attacker cannot fill it."""

from __future__ import annotations

from collections import Counter

from tocsin.bus.envelope import unpack
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.telemetry import Metrics

MAX_KINDS = 64
"""Distinct (reason, subject, claimed key) kept between two reports; the rest are counted without them."""


class RejectionLog:
    """Sums rejections between two reports."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: Counter[tuple[str, str, bytes | None]] = Counter()

    def add(self, error: TocsinError, subject: str, data: bytes) -> None:
        """Record one refused envelope."""
        self._metrics.count(f"rejected.{error.reason}")
        kind = (error.reason[:64], subject[:256], _claimed_key(data))
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = (error.reason[:64], "*", None)
        self._counts[kind] += 1

    def sums(self, process: str) -> list[RejectedEnvelope]:
        """Return the sums; each is kept until it was :meth:`told`."""
        return [
            RejectedEnvelope(by=process, reason=reason, subject=subject, claimed_key_id=key, count=count)
            for (reason, subject, key), count in self._counts.items()
        ]

    def told(self, rejected: RejectedEnvelope) -> None:
        """Take what was published off the sums."""
        kind = (rejected.reason, rejected.subject, rejected.claimed_key_id)
        self._counts[kind] -= rejected.count
        if self._counts[kind] <= 0:
            del self._counts[kind]


def _claimed_key(data: bytes) -> bytes | None:
    """Return the key id that the bytes claim, if they are an envelope in outline."""
    if len(data) > 1 << 20:
        return None
    try:
        outer = unpack(data, max_array=16)
    except TocsinError:
        return None
    if type(outer) is tuple and len(outer) == 4 and type(outer[2]) is bytes and len(outer[2]) == 32:
        return outer[2]
    return None
