"""Show the figures in the exposition format that Prometheus and OpenTelemetry collectors read.

============================  =====================================================================
recorded                      exported
============================  =====================================================================
``count("sent")``             ``tocsin_sent_total``
``count("rejected.replay")``  ``tocsin_rejected_total{reason="replay"}``
``observe_ms("route", 2.0)``  ``tocsin_route_seconds{quantile="0.5"} 0.002``, ``_count`` and ``_sum``
``gauge("pending", 3)``       ``tocsin_pending``
the process                   ``tocsin_process_cpu_seconds_total``, ``tocsin_process_resident_memory_bytes``,
                              ``tocsin_process_uptime_seconds``
============================  =====================================================================

Latencies are in seconds here, the base unit that Prometheus asks for
(https://prometheus.io/docs/practices/naming/#base-units), and in milliseconds everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from tocsin.telemetry.metrics import LatencyStatistics, Metrics

PREFIX = "tocsin_"

_T = TypeVar("_T")

DEFAULT_LABEL = "kind"
"""Label of a family that ``LABELS`` does not name."""

LABELS: Mapping[str, str] = MappingProxyType(
    {"rejected": "reason", "dropped": "reason", "denied": "reason", "failed": "reason", "errors": "reason"}
)
"""What the part of a name after the dot is called, by family."""


class MetricsCollector(Collector):
    """Gives a registry the figures of ``metrics`` as they are when it is asked.

    Args:
        metrics: whose figures.
        labels: label by family, before ``LABELS`` and ``DEFAULT_LABEL``.
    """

    def __init__(self, metrics: Metrics, *, labels: Mapping[str, str] | None = None) -> None:
        self._metrics = metrics
        self._labels = {**LABELS, **(labels or {})}

    def collect(self) -> Iterator[Metric]:
        """Yield one family after the other."""
        now = self._metrics.statistics()
        yield CounterMetricFamily(f"{PREFIX}process_cpu_seconds", "User and system time.", now.cpu_s)
        yield GaugeMetricFamily(f"{PREFIX}process_resident_memory_bytes", "Memory.", now.memory_bytes)
        yield GaugeMetricFamily(f"{PREFIX}process_uptime_seconds", "Since the start.", now.uptime_s)
        for name, counters in _families(now.counters):
            counter = CounterMetricFamily(f"{PREFIX}{name.removesuffix('_total')}", f"Count of {name}.")
            for value, count in counters:
                counter.add_sample(f"{counter.name}_total", self._label(name, value), count)
            yield counter
        for name, gauges in _families(now.gauges):
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", f"Level of {name}.")
            for value, level in gauges:
                gauge.add_sample(gauge.name, self._label(name, value), level)
            yield gauge
        for name, latencies in _families(now.latencies):
            summary = SummaryMetricFamily(f"{PREFIX}{name}_seconds", f"Latency of {name}.")
            for value, latency in latencies:
                _add_latency(summary, self._label(name, value), latency)
            yield summary

    def _label(self, family: str, value: str) -> dict[str, str]:
        return {self._labels.get(family, DEFAULT_LABEL): value} if value else {}


def _families(figures: Mapping[str, _T]) -> Iterator[tuple[str, list[tuple[str, _T]]]]:
    """Group by what is before the dot: (family, [(what is after the dot or "", figure)])."""
    families: dict[str, list[tuple[str, _T]]] = {}
    for name, figure in sorted(figures.items()):
        family, _, value = name.partition(".")
        families.setdefault(family, []).append((value, figure))
    yield from families.items()


def _add_latency(summary: SummaryMetricFamily, labels: dict[str, str], latency: LatencyStatistics) -> None:
    figures = latency.summary
    for quantile, value_ms in (("0.5", figures.p50), ("0.95", figures.p95), ("0.99", figures.p99)):
        summary.add_sample(summary.name, {**labels, "quantile": quantile}, value_ms / 1000)
    summary.add_sample(f"{summary.name}_count", labels, figures.count)
    summary.add_sample(f"{summary.name}_sum", labels, latency.sum_ms / 1000)
