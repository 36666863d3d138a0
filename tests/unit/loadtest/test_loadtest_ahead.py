"""Signing ahead: how long it is planned to take, and what the clock rules allow."""

from __future__ import annotations

import pytest
from _ahead import MAX_AHEAD, MAX_SHIFT_S, MAX_SIGNING_S, PAUSE_S, Ahead, plan_ahead, signature_s
from _host import HostPlane
from _worker import SignsAhead, TrafficPlan, pairs

from tocsin.bus.opener import CLOCK_SKEW_NS
from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.crypto import Algorithm, select_backend


def test_the_plan_grows_with_the_messages_and_shrinks_with_the_hands() -> None:
    alone, two = plan_ahead(10_000, 0.001, 1), plan_ahead(10_000, 0.001, 2)
    assert alone.planned_s > 10_000 * 0.001
    assert two.planned_s - PAUSE_S == pytest.approx((alone.planned_s - PAUSE_S) / 2)


@pytest.mark.parametrize(
    ("messages", "each_s"), [(MAX_AHEAD + 1, 0.0001), (MAX_AHEAD, MAX_SIGNING_S / MAX_AHEAD)]
)
def test_what_takes_too_long_to_sign_is_refused(messages: int, each_s: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        plan_ahead(messages, each_s, 1)
    assert caught.value.reason == "too_many_ahead"


def test_a_start_that_comes_too_late_is_refused() -> None:
    assert MAX_SHIFT_S < CLOCK_SKEW_NS / 1e9
    Ahead(3.0).shifted(MAX_SHIFT_S)
    with pytest.raises(ExhaustedError) as caught:
        Ahead(3.0).shifted(MAX_SHIFT_S + 1)
    assert caught.value.reason == "signing_too_slow"


def test_a_signature_costs_something() -> None:
    assert 0 < signature_s(select_backend("openssl"), Algorithm.ML_DSA_44) < 1


def test_a_seed_fixes_who_writes_to_whom() -> None:
    plan = TrafficPlan(
        nats_url="",
        nats_token_file="",
        schedule={"rate": 1.0, "warmup": 0, "measured": 1, "senders": 1},
        sender=0,
        agents=("a", "b"),
        everyone=("a", "b", "c"),
        body_bytes=1,
        seed=7,
    )
    first, second = pairs(plan), pairs(plan)
    drawn = [next(first) for _ in range(50)]
    assert drawn == [next(second) for _ in range(50)]
    assert {sender for sender, _ in drawn} == {"a", "b"}
    assert all(sender != recipient for sender, recipient in drawn)


def test_an_ordinary_host_signs_when_it_sends() -> None:
    assert not issubclass(HostPlane, SignsAhead)
