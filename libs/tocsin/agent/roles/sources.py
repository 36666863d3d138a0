"""The sources that a sentinel watches: which batches it takes, and what they show that is news.

Two kinds:

* a **capture** is read by one reader (request OBSERVE) and ends. Its batches are numbered from 0; the next
  one is taken, one that was taken is answered again without effect, one that leaves a gap is refused
  (``out_of_order``). After the final batch the number 0 begins a new reading.
* the **honeypots** of the whole fleet are one live source that never ends: deception agents each report what
  *they* saw, and an attacker's connections to many honeypots must meet in one detection state. Each agent
  numbers its batches upwards, but not without gaps: it reports to several sentinels, and a report can get
  lost. Numbers that were taken are ignored; order does not matter to the windows.

Pure: no I/O and no clock. Bounds: :data:`MAX_OPEN` captures are open at a time, since each may hold 50,000
connections twice (tocsin.analysis.windows.Bounds, about 120 MB).
"""

from __future__ import annotations

import hashlib
from collections import deque

from tocsin.agent.roles.alerting import News
from tocsin.agent.roles.memory import Memory
from tocsin.analysis.detection import Detection, strongest_first
from tocsin.contracts.errors import ConflictError, ExhaustedError
from tocsin.contracts.observations import Finding, Observations, ObservationsTaken

MAX_OPEN = 4
"""Captures whose final batch has not come."""
IDLE_S = 60.0
"""A capture without a batch for so long has lost its reader; it is closed when its place is needed."""
MAX_ENDED = 256
"""Captures whose outcome is remembered, to answer a repeated final batch."""
REPORTERS = 1024
"""Deception agents whose batch numbers are remembered."""
NUMBERS = 64
"""Batch numbers that are remembered of each."""


class Capture:
    """One capture's detection state."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.touched_s = 0.0
        self._detection: Detection | None = Detection(source)
        self._news = News()
        self._last = -1
        self._last_digest = b""
        self._taken = ObservationsTaken(sequence=0, flows=0, findings=0)

    @property
    def ended(self) -> bool:
        """Whether the final batch was taken, or the capture was closed without one."""
        return self._detection is None

    @property
    def taken(self) -> ObservationsTaken:
        """What was taken so far."""
        return self._taken

    def begins_anew_with(self, batch: Observations) -> bool:
        """Tell whether a batch begins another reading of a source that has ended."""
        return self.ended and batch.sequence == 0 and not self._is_last(batch)

    def take(self, batch: Observations) -> list[Finding]:
        """Take a batch; return what is news, strongest first. CPU-bound: up to a second for a final batch.

        Raises:
            ConflictError: ``out_of_order``, ``sequence_reused`` or ``source_ended``.
        """
        if batch.sequence < self._last or self._is_last(batch):
            return []
        self._check_next(batch)
        assert self._detection is not None  # noqa: S101 - _check_next refuses what comes after the end
        found = self._detection.feed(batch)
        self._last, self._last_digest = batch.sequence, _digest(batch)
        return self._conclude(found) if batch.final else self._told(found)

    def close(self) -> list[Finding]:
        """End the capture without a final batch; return what is news."""
        return self._conclude([]) if self._detection is not None else []

    def _conclude(self, found: list[Finding]) -> list[Finding]:
        assert self._detection is not None  # noqa: S101 - both callers have looked
        closing = self._detection.close()
        # Strongest first, so that what the last batch and the closing both show is said once, by the stronger.
        told = self._told(strongest_first([*closing, *found]))
        self._detection = None
        return told

    def _told(self, found: list[Finding]) -> list[Finding]:
        assert self._detection is not None  # noqa: S101 - only called before the end
        counts = self._detection.statistics()
        self._taken = ObservationsTaken(
            sequence=max(0, self._last), flows=counts.flows, findings=counts.findings
        )
        return self._news.among(found)

    def _is_last(self, batch: Observations) -> bool:
        return batch.sequence == self._last and _digest(batch) == self._last_digest

    def _check_next(self, batch: Observations) -> None:
        if batch.sequence == self._last:
            raise ConflictError(
                f"batch {batch.sequence} of {self.source!r} was taken with another content",
                reason="sequence_reused",
            )
        if self.ended:
            raise ConflictError(f"{self.source!r} ended with batch {self._last}", reason="source_ended")
        if batch.sequence != self._last + 1:
            raise ConflictError(
                f"batch {batch.sequence} of {self.source!r}, expected is {self._last + 1}",
                reason="out_of_order",
                advice="Send the batches of a source one after another, from 0.",
            )


def _digest(batch: Observations) -> bytes:
    return hashlib.sha256(batch.model_dump_json().encode()).digest()


class Captures:
    """The captures of one sentinel, by their reader and name: two readers cannot disturb each other."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Capture] = {}
        self._ended: Memory[tuple[str, str], Capture] = Memory(MAX_ENDED)

    def find(self, reader: str, batch: Observations, *, now_s: float) -> tuple[Capture, list[Capture]]:
        """Return the capture that a batch belongs to, and idle ones that lost their place to it.

        The caller closes the idle ones: what they show is still said.

        Raises:
            ExhaustedError: ``too_many_sources`` while MAX_OPEN others are being read.
        """
        key = (reader, batch.source)
        self._sort_out()
        capture = self._open.get(key) or self._ended.get(key)
        idle: list[Capture] = []
        if capture is None or capture.begins_anew_with(batch):
            idle = self._make_room(now_s)
            capture = self._open[key] = Capture(batch.source)
        capture.touched_s = now_s
        return capture, idle

    def _sort_out(self) -> None:
        for key in [key for key, capture in self._open.items() if capture.ended]:
            self._ended.keep(key, self._open.pop(key))

    def _make_room(self, now_s: float) -> list[Capture]:
        if len(self._open) < MAX_OPEN:
            return []
        idle = {key: one for key, one in self._open.items() if now_s - one.touched_s > IDLE_S}
        if not idle:
            raise ExhaustedError(
                f"{MAX_OPEN} sources are being read",
                reason="too_many_sources",
                advice="Wait until one has ended, or hand this one to another sentinel.",
            )
        for key, capture in idle.items():
            self._ended.keep(key, capture)
            del self._open[key]
        return list(idle.values())


class LiveSource:
    """One source that never ends, reported by many."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._detection = Detection(source)
        self._news = News()
        self._numbers: Memory[str, deque[int]] = Memory(REPORTERS)

    def take(self, reporter: str, batch: Observations) -> list[Finding]:
        """Take a batch, once; return what is news because a window had to close for want of room.

        Raises:
            InvalidInputError: ``wrong_source``.
        """
        numbers = self._numbers.get(reporter) or deque(maxlen=NUMBERS)
        if batch.sequence in numbers or (len(numbers) == NUMBERS and batch.sequence < min(numbers)):
            return []
        closed = self._detection.feed(batch)
        numbers.append(batch.sequence)
        self._numbers.keep(reporter, numbers)
        return self._news.among(closed)

    def look(self, now_s: float) -> list[Finding]:
        """Judge the windows as they are at ``now_s``; return what is news, strongest first.

        O(n log n) in the connections held: whoever calls this often bounds how often.
        """
        closed = self._detection.advance(now_s)
        return self._news.among(strongest_first([*self._detection.peek(), *closed]))
