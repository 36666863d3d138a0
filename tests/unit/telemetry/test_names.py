"""The figures that the code names: one that would be refused when it is set would be missed by nobody."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tocsin.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[3]
NAMED = re.compile(r"metrics\.(count|gauge|observe_ms)\(\s*f?\"([^\"{]+)")


def test_every_figure_that_the_code_names_is_taken() -> None:
    named: dict[str, set[str]] = defaultdict(set)
    for folder in ("libs", "services"):
        for file in (ROOT / folder).rglob("*.py"):
            for kind, name in NAMED.findall(file.read_text(encoding="utf-8")):
                named[kind].add(name if not name.endswith(".") else f"{name}x")
    assert {"count", "gauge", "observe_ms"} == named.keys()
    metrics = Metrics()
    for name in sorted(named["count"]):
        metrics.count(name)
    for name in sorted(named["gauge"]):
        metrics.gauge(name, 1.0)
    for name in sorted(named["observe_ms"]):
        metrics.observe_ms(name, 1.0)
    statistics = metrics.statistics()
    assert named["gauge"] <= statistics.gauges.keys()
    assert named["count"] <= statistics.counters.keys()
    assert named["observe_ms"] <= statistics.latencies.keys()
