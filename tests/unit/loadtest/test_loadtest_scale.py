"""Where the search begins, and what the container engine says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from _compose import Container, Identity, containers_of, identity_in
from _drive import Run
from _traffic import Tally
from scale import first_rate

from tocsin.contracts.errors import InvariantBrokenError

GOOD = Tally(
    sent=100,
    received=100,
    lost=0,
    duplicates=0,
    not_sent=0,
    late_sends=3,
    latencies_ms=[1.0] * 99 + [500.0],
    lags_ms=[],
    took_ms=[],
    achieved_per_s=99.0,
)
STARTING = '{"event":"process_starting","process":"router-3","signature_backend":"openssl"}'


def test_cpu_time_is_told_for_each_message_and_as_cores() -> None:
    measured = run(replace(GOOD, received=50))
    assert measured.cpu_us_per_message() == {"router-1": 10_000.0}
    assert measured.cpu_cores() == {"router-1": 0.25, "others": 0.1}


def test_the_next_search_begins_where_the_last_one_leads_to() -> None:
    assert first_rate(1, []) == 200.0
    assert (
        first_rate(3, [{"routers": 1, "max_rate_per_s": 90.0}, {"routers": 2, "max_rate_per_s": 150.0}])
        == 225.0
    )
    assert first_rate(3, [{"routers": 2, "max_rate_per_s": 0.0}]) == 10.0


def test_containers_are_read_in_order() -> None:
    told = [
        inspected("router", 10, "healthy"),
        inspected("router", 2, "starting"),
        inspected("broker", 1, None),
    ]
    assert containers_of(json.dumps(told)) == (
        Container("id-broker-1", "broker-1", 101, healthy=False),
        Container("id-router-2", "router-2", 102, healthy=False),
        Container("id-router-10", "router-10", 110, healthy=True),
    )


def test_the_log_says_who_started_last() -> None:
    log = "\n".join([STARTING.replace("-3", "-1"), "no JSON", "7", STARTING, '{"event":"service_ready"}'])
    assert identity_in(log) == Identity("3", "openssl")


def test_a_log_without_a_start_is_refused() -> None:
    with pytest.raises(InvariantBrokenError) as caught:
        identity_in('{"event":"service_ready"}\n')
    assert caught.value.reason == "bad_log"


def run(tally: Tally) -> Run:
    return Run(tally, outcomes=[], cpu_s={"router-1": 0.5}, others_cpu_s=0.2, window_s=2.0)


def inspected(service: str, number: int, health: str | None) -> dict[str, Any]:
    labels = {"com.docker.compose.service": service, "com.docker.compose.container-number": str(number)}
    state: dict[str, Any] = {"Pid": 100 + number} | ({"Health": {"Status": health}} if health else {})
    return {"Id": f"id-{service}-{number}", "Config": {"Labels": labels}, "State": state}
