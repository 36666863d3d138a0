"""Open-loop traffic: its schedule, its tally, and that a slow send delays no other."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest
from _agents import FleetOptions, plan_agents
from _traffic import Outcome, Schedule, Sending, padded, schedule, send_on_time, tally

from tocsin.bus.envelope import encode_body
from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import Algorithm, select_backend

PLAN = Schedule(rate=1000.0, warmup=2, measured=6, senders=2)
START_NS = 1_000_000_000


def outcome(
    sent: list[int], arrivals: dict[int, float] | list[tuple[int, float]], lags: list[float]
) -> Outcome:
    pairs = list(arrivals.items()) if isinstance(arrivals, dict) else arrivals
    return Outcome(
        sent=sent,
        failures={},
        lags_ms=lags,
        took_ms=[0.5] * len(sent),
        numbers=[number for number, _ in pairs],
        latencies_ms=[latency for _, latency in pairs],
        last_ns=START_NS + 10_000_000,
        counters={},
    )


def test_the_senders_share_the_schedule_in_turn() -> None:
    plan = schedule(rate=100.0, warmup_s=0.05, seconds=0.1, senders=4)
    assert (plan.warmup, plan.measured, plan.total) == (5, 10, 15)
    assert sorted(number for sender in range(4) for number in plan.share(sender)) == list(range(15))
    assert [plan.due_ns(number) for number in (0, 1, 10)] == [0, 10_000_000, 100_000_000]


def test_a_tally_counts_losses_and_duplicates_and_leaves_the_warmup_out() -> None:
    first = outcome([0, 2, 4, 6], {1: 99.0, 3: 1.0, 5: 2.0}, [50.0, 0.1, 6.0, 0.2])
    second = outcome([1, 3, 5], [(0, 99.0), (2, 4.0), (2, 3.0), (4, 5.0)], [50.0, 0.1, 0.3, 7.0])
    counted = tally(PLAN, START_NS, [first, second])
    assert (counted.sent, counted.received, counted.lost, counted.duplicates) == (5, 4, 1, 1)
    assert counted.not_sent == 1
    assert sorted(counted.latencies_ms) == [1.0, 2.0, 3.0, 5.0]
    assert sorted(counted.lags_ms) == [0.1, 0.1, 0.2, 0.3, 6.0, 7.0]
    assert counted.late_sends == 2
    assert counted.took_ms == [0.5] * 5
    assert counted.achieved_per_s == 500.0  # 4 in the 8 ms from the first that is measured to the last arrival


async def test_a_send_that_hangs_delays_no_other() -> None:
    plan = Schedule(rate=1000.0, warmup=0, measured=20, senders=1)
    hung, begun = asyncio.Event(), []

    async def send(number: int) -> None:
        begun.append(number)
        if number == 0:
            await hung.wait()
        if number == 1:
            raise ExhaustedError("full", reason="buffer_full")

    done = Sending()
    task = asyncio.create_task(send_on_time(plan, plan.share(0), time.monotonic_ns(), send, done))
    async with asyncio.timeout(5):
        while len(begun) < 20:
            await asyncio.sleep(0.001)
    assert not task.done()
    hung.set()
    await task
    assert sorted(done.sent) == [0, *range(2, 20)]
    assert done.failures == {"buffer_full": 1}
    assert min(done.lags_ms) >= 0


async def test_a_bug_in_a_send_fails_the_run() -> None:
    plan = Schedule(rate=1000.0, warmup=0, measured=3, senders=1)

    async def send(number: int) -> None:
        if number == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await send_on_time(plan, plan.share(0), time.monotonic_ns(), send, Sending())


@pytest.mark.parametrize("size", [100, 288, 289, 290, 400])
def test_a_body_is_padded_to_its_size(size: int) -> None:
    def make(text: str) -> ThreatAlert:
        return ThreatAlert(severity=Severity.HIGH, summary=text)

    # A text of 256 bytes has a longer header than one of 255: some sizes lie between the two.
    assert abs(len(encode_body(make(padded(make, size)))) - size) <= 1


@pytest.mark.parametrize(("agents", "hosts", "reason"), [(1, 1, "too_few_agents"), (4, 5, "bad_hosts")])
def test_a_fleet_that_cannot_be_is_refused(agents: int, hosts: int, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        fleet_options(agents, hosts, "coordination")
    assert caught.value.reason == reason


def test_agents_have_roles_that_may_send_the_type() -> None:
    assert {agent.id.role for agent in plan_agents(fleet_options(40, 4, "coordination"))} == {
        Role.SENTINEL,
        Role.DECEPTION,
        Role.CANARY,
        Role.SPECIALIST,
    }
    alerting = {cast("Role", agent.id.role) for agent in plan_agents(fleet_options(40, 4, "threat_alert"))}
    assert alerting == set(Role) - {Role.ADMIN}


def fleet_options(agents: int, hosts: int, type_name: str) -> FleetOptions:
    return FleetOptions(
        agents=agents,
        hosts=hosts,
        key_scope="host",
        algorithm=Algorithm.ML_DSA_44,
        backend=select_backend("openssl"),
        type_name=type_name,
        body_bytes=400,
    )
