"""The search for the highest rate that is held, and what the container engine says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from _compose import Container, Identity, containers_of, identity_in
from _drive import Run
from _search import HALVINGS, STEP, Search, highest, is_held
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


@pytest.mark.parametrize("limit", [40, 199, 200, 201, 333, 1000, 4321.5])
async def test_the_search_ends_close_below_the_limit(limit: float) -> None:
    tried = []

    async def held(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = await highest(held, 200.0)
    assert found in tried
    assert found <= limit
    # Rates are whole numbers, so the next one may be one further away.
    assert limit <= found * STEP ** (1 / 2**HALVINGS) + 2
    assert len(tried) == len(set(tried))


async def test_the_search_gives_up_where_nothing_is_held() -> None:
    tried = []

    async def held(rate: float) -> bool:
        tried.append(rate)
        return False

    assert await highest(held, 200.0) == 0.0
    assert len(tried) < 10


@pytest.mark.parametrize(
    ("tally", "held"),
    [
        (GOOD, True),
        (replace(GOOD, lost=1), False),
        (replace(GOOD, duplicates=1), False),
        (replace(GOOD, not_sent=1), False),
        (replace(GOOD, latencies_ms=[1.0] * 98 + [50.0] * 2), False),
    ],
)
def test_a_rate_is_held_when_all_came_once_and_in_time(tally: Tally, held: bool) -> None:
    assert is_held(run(tally), p99_ms=50.0) is held


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
