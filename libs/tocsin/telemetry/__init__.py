"""Logs, metrics and health: one way to do each, for every process.

This package watches and tells; it decides nothing and keeps nothing. It never raises because of what it is
asked to record: a name or a value that does not fit is refused, counted and logged once.

Example::

    configure_logging("router-1")
    log = get_logger(__name__)
    metrics = Metrics()
    with HealthServer(metrics, ready=lambda: bus.connected) as health:
        log.info("service_started", health_port=health.port)
        metrics.count("rejected.bad_signature")
        metrics.observe_ms("route", 0.8)
"""

from tocsin.telemetry.collector import set_aside
from tocsin.telemetry.exposition import DEFAULT_LABEL, LABELS, MetricsCollector
from tocsin.telemetry.health import HealthServer, HealthStatistics
from tocsin.telemetry.latency import MAX_SAMPLE_MS, summarise
from tocsin.telemetry.logs import Logger, configure_logging, get_logger
from tocsin.telemetry.metrics import LatencyStatistics, Metrics, MetricsStatistics

__all__ = [
    "DEFAULT_LABEL",
    "LABELS",
    "MAX_SAMPLE_MS",
    "HealthServer",
    "HealthStatistics",
    "LatencyStatistics",
    "Logger",
    "Metrics",
    "MetricsCollector",
    "MetricsStatistics",
    "configure_logging",
    "get_logger",
    "set_aside",
    "summarise",
]
