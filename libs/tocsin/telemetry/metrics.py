"""Count what a process does: counters, latencies and gauges, cheap enough for every message.

One :class:`Metrics` a process, made in ``__main__`` and passed down; there is no global one.

Names are lower-case words with underscores. One label's value may follow a dot: ``rejected.bad_signature``
is the series ``bad_signature`` of the family ``rejected``.

Invariants:

* Memory is bounded: at most ``MAX_COUNTERS``, ``MAX_LATENCIES`` and ``MAX_GAUGES`` names, and a latency keeps
  its last ``WINDOW`` samples. A name that comes too late or does not fit is counted under ``overflow``.
* Recording never raises and never blocks.
* A family has one kind: a gauge cannot take the name of a counter.

Threads: recording may happen in any thread and reading in any other. It takes no lock, because CPython's
interpreter with the GIL switches threads at calls and backward jumps only, and the statements that change a
figure have neither. On a free-threaded build counts could be lost.

Does not protect against: a name made from unchecked outside text by the caller. It cannot break the
exposition nor grow the memory, but it can use up the names, and then honest new names land in ``overflow``.
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import psutil

from tocsin.contracts.operations import LatencySummary, MetricsSnapshot
from tocsin.telemetry.latency import MAX_SAMPLE_MS, summarise_valid
from tocsin.telemetry.logs import get_logger

WINDOW = 4096
"""Samples a latency keeps, a power of two: its p99 then rests on the 41 greatest of the last 4,096."""

MAX_COUNTERS = 400
"""Names of counters; with ``RESERVED`` below the 512 that a ``MetricsSnapshot`` holds."""

MAX_LATENCIES = 128
"""Names of latencies: as many as a ``MetricsSnapshot`` holds. 32 KiB each."""

MAX_GAUGES = 128
"""Names of gauges."""

OVERFLOW = "overflow"
"""Counter of what was recorded under a name that was refused."""

SAMPLES_REFUSED = "samples_refused"
"""Counter of latencies that were negative, too great or not a number."""

RESERVED = (OVERFLOW, SAMPLES_REFUSED)

PROCESS_FAMILIES = ("process_cpu_seconds", "process_resident_memory_bytes", "process_uptime_seconds")
"""Families that the exposition makes itself."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(?:\.[A-Za-z0-9_.:/-]{1,63})?")
"""At most 128 characters, the bound of the keys in ``MetricsSnapshot``."""

_MASK = WINDOW - 1

_log = get_logger(__name__)


class _Kind(Enum):
    COUNTER = "counter"
    LATENCY = "latency"
    GAUGE = "gauge"
    PROCESS = "process"


class _Series:
    """One latency: totals since the start and a ring of the last samples."""

    __slots__ = ("_cached", "count", "max_ms", "sum_ms", "window")

    def __init__(self) -> None:
        self.count = 0
        self.sum_ms = 0.0
        self.max_ms = 0.0
        self.window = array("d", bytes(8 * WINDOW))
        self._cached: LatencyStatistics | None = None

    def statistics(self) -> LatencyStatistics:
        """Return the figures; sorts the window only if a sample has come since the last call."""
        count, sum_ms = self.count, self.sum_ms
        cached = self._cached
        if cached is not None and cached.summary.count == count:
            return cached
        recent = summarise_valid(self.window[: min(count, WINDOW)])
        # Read after the window, and written before it: no percentile passes the maximum.
        max_ms = self.max_ms
        summary = LatencySummary(
            count=count,
            p50=recent.p50,
            p95=recent.p95,
            p99=recent.p99,
            max=max_ms,
            mean=min(sum_ms / count, max_ms) if count else 0.0,
        )
        self._cached = LatencyStatistics(summary=summary, sum_ms=sum_ms)
        return self._cached


@dataclass(frozen=True, slots=True)
class LatencyStatistics:
    """One latency's figures."""

    summary: LatencySummary
    """Count, mean and maximum since the start; percentiles of the last ``WINDOW`` samples."""
    sum_ms: float
    """Sum since the start."""


@dataclass(frozen=True, slots=True)
class MetricsStatistics:
    """All figures at one moment, by name. The mappings are copies."""

    uptime_s: float
    cpu_s: float
    """User and system time of this process since it started."""
    memory_bytes: int
    """Resident set size."""
    counters: Mapping[str, int]
    latencies: Mapping[str, LatencyStatistics]
    gauges: Mapping[str, float]


class Metrics:
    """The figures of one process.

    Args:
        clock: monotonic seconds, for the uptime.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = clock()
        self._process = psutil.Process()
        self._counters: dict[str, int] = dict.fromkeys(RESERVED, 0)
        self._latencies: dict[str, _Series] = {}
        self._gauges: dict[str, float] = {}
        self._kinds: dict[str, _Kind] = {
            **dict.fromkeys(RESERVED, _Kind.COUNTER),
            **dict.fromkeys(PROCESS_FAMILIES, _Kind.PROCESS),
        }
        self._refusal_logged = False

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` (0 or more) to the counter ``name``. About 0.1 µs."""
        try:
            self._counters[name] += n
        except KeyError:
            if self._admit(name, _Kind.COUNTER, len(self._counters) - len(RESERVED), MAX_COUNTERS):
                self._counters.setdefault(name, 0)
                self._counters[name] += n
            else:
                self._counters[OVERFLOW] += n

    def observe_ms(self, name: str, value: float) -> None:
        """Add a sample of ``value`` milliseconds, 0 to ``MAX_SAMPLE_MS``, to the latency ``name``."""
        if not 0.0 <= value <= MAX_SAMPLE_MS:
            self._counters[SAMPLES_REFUSED] += 1
            return
        try:
            series = self._latencies[name]
        except KeyError:
            if not self._admit(name, _Kind.LATENCY, len(self._latencies), MAX_LATENCIES):
                self._counters[OVERFLOW] += 1
                return
            series = self._latencies.setdefault(name, _Series())
        # No call from here on: see "Threads" above.
        series.max_ms = max(series.max_ms, value)
        series.window[series.count & _MASK] = value
        series.sum_ms += value
        series.count += 1

    def gauge(self, name: str, value: float) -> None:
        """Set the gauge ``name``. Gauges are in the exposition, not in the snapshot."""
        if name in self._gauges or self._admit(name, _Kind.GAUGE, len(self._gauges), MAX_GAUGES):
            self._gauges[name] = value
        else:
            self._counters[OVERFLOW] += 1

    def counter(self, name: str) -> int:
        """Return the counter ``name``, 0 if it was never counted."""
        return self._counters.get(name, 0)

    def statistics(self) -> MetricsStatistics:
        """Return all figures now. Sorting costs up to 0.5 ms for each latency that moved."""
        with self._process.oneshot():
            cpu = self._process.cpu_times()
            memory_bytes = self._process.memory_info().rss
        return MetricsStatistics(
            uptime_s=max(0.0, self._clock() - self._started_s),
            cpu_s=cpu.user + cpu.system,
            memory_bytes=memory_bytes,
            counters=dict(self._counters),
            latencies={name: series.statistics() for name, series in dict(self._latencies).items()},
            gauges=dict(self._gauges),
        )

    def snapshot(self, process: str) -> MetricsSnapshot:
        """Return the figures as the message that the monitor collects.

        Args:
            process: token of this process, at most 160 characters.
        """
        now = self.statistics()
        return MetricsSnapshot(
            process=process,
            uptime_s=now.uptime_s,
            counters=dict(now.counters),
            latencies={name: figures.summary for name, figures in now.latencies.items()},
            cpu_s=now.cpu_s,
            memory_bytes=now.memory_bytes,
        )

    def _admit(self, name: str, kind: _Kind, used: int, limit: int) -> bool:
        """Say whether ``name`` may become a series of ``kind``; log the first that may not."""
        if used >= limit:
            refused = "too_many_names"
        elif _NAME.fullmatch(name) is None:
            refused = "malformed_name"
        elif self._kinds.setdefault(_claim(name, kind), kind) is not kind:
            refused = "name_of_another_kind"
        else:
            return True
        if not self._refusal_logged:
            self._refusal_logged = True
            _log.warning("metric_refused", metric=name, kind=kind.value, reason=refused)
        return False


def _claim(name: str, kind: _Kind) -> str:
    """Return the exported family that ``name`` stands for."""
    family = name.partition(".")[0].removesuffix("_total")
    return f"{family}_seconds" if kind is _Kind.LATENCY else family
