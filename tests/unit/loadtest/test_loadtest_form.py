"""The one form of the load tests' reports."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from common import SUMMARY, Environment, deviations, emit, latency, ratios

from tocsin.contracts.errors import InvariantBrokenError

HERE = Environment(2, "3.11.7", "2.15.1", "openssl", "ML-DSA-65", "host")
GOOD: dict[str, Any] = {
    "sent": 3,
    "received": 3,
    "lost": 0,
    "duplicates": 0,
    "achieved_per_s": 10.5,
    "latency_ms": latency([1.0, 2.0, 3.0]),
    "baseline": {"sent": 3, "latency_ms": latency([0.5, 1.0])},
    "ratio_to_baseline": {"latency_ms": {"p50": 2.0}},
    "points": [{"batch": 8, "make_per_s": 100}],
    "refused": {"rejected.expired": 2},
}


def test_one_object_with_the_four_parts_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    emit("loadtest/x.py", {"rate": 5}, HERE, GOOD)
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["program", "parameters", "environment", "results"]
    assert report["environment"] == {
        "cores": 2,
        "python": "3.11.7",
        "nats_server": "2.15.1",
        "signature_backend": "openssl",
        "signature_algorithm": "ML-DSA-65",
        "key_scope": "host",
    }
    assert report["results"] == GOOD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", 3.5),
        ("latency_ms", {"p50": 1.0}),
        ("latency_ms", dict.fromkeys(SUMMARY, math.nan)),
        ("latency_ms", {**dict.fromkeys(SUMMARY, 1.0), "p90": 1.0}),
        ("sent", 3.0),
        ("sent", -1),
        ("lost", True),
        ("achieved_per_s", None),
        ("achieved_per_s", math.inf),
        ("ratio_to_baseline", {"latency_ms": {"p50": math.nan}}),
        ("points", [{"make_per_s": "fast"}]),
        ("mean_batch", math.nan),
    ],
)
def test_a_figure_out_of_form_is_refused(name: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvariantBrokenError, match=name):
        emit("loadtest/x.py", {}, HERE, GOOD | {name: value})
    assert capsys.readouterr().out == ""


def test_a_ratio_needs_a_baseline() -> None:
    assert list(deviations({"ratio_to_baseline": {"x": 1.0}})) == [
        "results.ratio_to_baseline without a baseline"
    ]


def test_a_latency_is_five_figures() -> None:
    assert latency([float(number) for number in range(1, 101)]) == {
        "p50": 50.0,
        "p95": 95.0,
        "p99": 99.0,
        "max": 100.0,
        "mean": 50.5,
    }


def test_ratios_are_ours_over_theirs_without_counts_and_zeros() -> None:
    ours = {"sent": 10, "achieved_per_s": 50.0, "latency_ms": {"p50": 3.0, "p99": 9.0}, "only_ours": 1.0}
    theirs = {"sent": 5, "achieved_per_s": 100.0, "latency_ms": {"p50": 1.5, "p99": 0.0}}
    assert ratios(ours, theirs) == {"achieved_per_s": 0.5, "latency_ms": {"p50": 2.0}}
