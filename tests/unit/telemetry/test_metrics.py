from __future__ import annotations

import dataclasses
import math
import threading
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from tocsin.contracts.operations import MetricsSnapshot
from tocsin.telemetry import Metrics, MetricsCollector
from tocsin.telemetry.metrics import MAX_COUNTERS, MAX_GAUGES, MAX_LATENCIES, WINDOW


def exposition(metrics: Metrics, **labels: str) -> str:
    registry = CollectorRegistry()
    registry.register(MetricsCollector(metrics, labels=labels))
    return generate_latest(registry).decode()


def test_counters_add_up() -> None:
    metrics = Metrics()
    metrics.count("sent")
    metrics.count("sent", 4)
    assert metrics.counter("sent") == 5
    assert metrics.counter("never") == 0


def test_a_latency_keeps_its_last_window_and_the_totals_since_the_start() -> None:
    metrics = Metrics()
    metrics.observe_ms("open", 1000.0)
    for _ in range(WINDOW):
        metrics.observe_ms("open", 2.0)
    latency = metrics.statistics().latencies["open"]
    assert latency.summary.count == WINDOW + 1
    assert (latency.summary.p99, latency.summary.max) == (2.0, 1000.0)
    assert latency.sum_ms == pytest.approx(1000 + 2 * WINDOW)
    assert latency.summary.mean == pytest.approx(latency.sum_ms / (WINDOW + 1))


def test_a_summary_moves_with_new_samples() -> None:
    metrics = Metrics()
    metrics.observe_ms("open", 1.0)
    assert metrics.statistics().latencies["open"].summary.p50 == 1.0
    metrics.observe_ms("open", 9.0)
    metrics.observe_ms("open", 9.0)
    assert metrics.statistics().latencies["open"].summary.p50 == 9.0


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_is_no_latency_is_counted_and_left_out(bad: float) -> None:
    metrics = Metrics()
    metrics.observe_ms("open", bad)
    assert metrics.counter("samples_refused") == 1
    assert not metrics.statistics().latencies


def test_names_are_bounded_and_the_snapshot_stays_within_its_limits() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        for n in range(MAX_COUNTERS + 50):
            metrics.count(f"seen.{n}")
        for n in range(MAX_LATENCIES + 3):
            metrics.observe_ms(f"took.{n}", 1.0)
        for n in range(MAX_GAUGES + 2):
            metrics.gauge(f"level.{n}", n)
    metrics.count("seen.0")
    assert metrics.counter("overflow") == 50 + 3 + 2
    assert metrics.counter("seen.0") == 2
    assert [entry["event"] for entry in logs] == ["metric_refused"]
    snapshot = metrics.snapshot("router-1")
    assert MetricsSnapshot.model_validate_json(snapshot.model_dump_json()) == snapshot
    assert len(snapshot.latencies) == MAX_LATENCIES


@pytest.mark.parametrize(
    "name", ["", "Upper", "9", "a b", 'rejected.x"} 1\n', "rejected.", ".x", "a" * 65, "rejected." + "x" * 64]
)
def test_a_malformed_name_is_counted_elsewhere(name: str) -> None:
    metrics = Metrics()
    metrics.count(name, 3)
    metrics.gauge(name, 1.0)
    metrics.observe_ms(name, 1.0)
    assert metrics.counter("overflow") == 5
    assert set(metrics.statistics().counters) == {"overflow", "samples_refused"}


def test_a_family_has_one_kind() -> None:
    metrics = Metrics()
    metrics.count("depth.a")
    metrics.gauge("depth", 1.0)
    metrics.gauge("process_uptime_seconds", 1.0)
    metrics.observe_ms("depth", 1.0)
    statistics = metrics.statistics()
    assert (dict(statistics.gauges), metrics.counter("overflow")) == ({}, 2)
    assert set(statistics.latencies) == {"depth"}


def test_the_snapshot_tells_of_the_process() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    now[0] = 107.5
    snapshot = metrics.snapshot("fleet-1")
    assert (snapshot.process, snapshot.uptime_s) == ("fleet-1", 7.5)
    assert snapshot.memory_bytes > 1_000_000
    assert snapshot.cpu_s > 0


def test_statistics_are_frozen_copies() -> None:
    metrics = Metrics()
    metrics.count("sent")
    before = metrics.statistics()
    metrics.count("sent")
    assert before.counters["sent"] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.uptime_s = 0.0  # type: ignore[misc]


def test_counts_from_several_threads_are_all_there_while_another_reads() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(20_000):
            metrics.count("sent")
            metrics.observe_ms("open", 1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        summary = metrics.statistics().latencies.get("open")
        assert summary is None or summary.summary.p50 in {0.0, 1.0}
    for thread in threads:
        thread.join()
    assert metrics.counter("sent") == 80_000
    assert metrics.statistics().latencies["open"].summary.count == 80_000


def test_a_count_costs_less_than_the_budget() -> None:
    """0.3 µs is the budget; ten times that allows for a busy machine and still finds a lock or a regex."""
    metrics = Metrics()
    best_s = math.inf
    for _ in range(5):
        start_s = time.perf_counter()
        for _ in range(10_000):
            metrics.count("sent")
        best_s = min(best_s, time.perf_counter() - start_s)
    assert best_s / 10_000 < 3e-6


def test_the_exposition_has_counters_gauges_and_summaries() -> None:
    metrics = Metrics()
    metrics.count("envelopes_opened", 2)
    metrics.count("rejected.bad_signature", 3)
    metrics.count("handled.balancer.place")
    metrics.count("spent.aer-1")
    metrics.gauge("pending", 1.5)
    metrics.observe_ms("route.alert", 2.0)
    lines = exposition(metrics, spent="qpu").splitlines()
    for line in (
        "# TYPE tocsin_envelopes_opened_total counter",
        "tocsin_envelopes_opened_total 2.0",
        'tocsin_rejected_total{reason="bad_signature"} 3.0',
        'tocsin_handled_total{kind="balancer.place"} 1.0',
        'tocsin_spent_total{qpu="aer-1"} 1.0',
        "tocsin_pending 1.5",
        'tocsin_route_seconds{kind="alert",quantile="0.99"} 0.002',
        'tocsin_route_seconds_count{kind="alert"} 1.0',
        'tocsin_route_seconds_sum{kind="alert"} 0.002',
        "# TYPE tocsin_process_uptime_seconds gauge",
    ):
        assert line in lines


def test_the_exposition_is_read_by_the_strict_parser() -> None:
    metrics = Metrics()
    for name in ("sent", "rejected", "rejected.a", "rejected_more", "kept_total"):
        metrics.count(name)
    metrics.gauge("level.x", -1.0)
    metrics.gauge("sent", 1.0)
    metrics.observe_ms("sent", 1.0)
    metrics.observe_ms("sent.a", 1.0)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(metrics))
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    families = {family.name for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    assert {"tocsin_sent", "tocsin_rejected", "tocsin_kept", "tocsin_level", "tocsin_sent_seconds"} <= families
