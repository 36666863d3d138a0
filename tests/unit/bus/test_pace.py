"""When work waits for more, and when it does not."""

from __future__ import annotations

import pytest

from tocsin.bus.pace import Pace, RunningMean

GATHER_S = 0.01


def test_a_lone_message_waits_for_nothing() -> None:
    pace = Pace()
    for number in range(20):  # one a second
        assert pace.pause_s(GATHER_S, now_s=float(number)) == 0
        pace.began(1, now_s=float(number))
    assert pace.pause_s(GATHER_S, now_s=19.001) == 0


def test_under_load_so_much_lies_between_two_beginnings() -> None:
    pace = Pace()
    now_s = 0.0
    for _ in range(50):  # 5,000 a second
        now_s += GATHER_S
        pace.began(50, now_s=now_s)
    assert pace.pause_s(GATHER_S, now_s=now_s) == pytest.approx(GATHER_S)
    assert pace.pause_s(GATHER_S, now_s=now_s + 0.006) == pytest.approx(GATHER_S - 0.006)
    assert pace.pause_s(GATHER_S, now_s=now_s + 1) == 0
    assert pace.pause_s(0.0, now_s=now_s) == 0
    for _ in range(50):  # and one a second again
        now_s += 1
        pace.began(1, now_s=now_s)
    assert pace.pause_s(GATHER_S, now_s=now_s) == 0


def test_a_chain_of_messages_is_no_load() -> None:
    """Five that follow on one another within 15 ms, ten times a second."""
    pace = Pace()
    for decision in range(50):
        for step in range(5):
            now_s = decision / 10 + step * 0.003
            assert pace.pause_s(2 * GATHER_S, now_s=now_s) == 0
            pace.began(1, now_s=now_s)


def test_many_at_once_are_no_load_if_nothing_follows() -> None:
    pace = Pace()
    pace.began(212, now_s=0.0)
    assert pace.pause_s(2 * GATHER_S, now_s=0.001) == 0
    for number in range(1, 20):
        pace.began(212, now_s=number * GATHER_S)
    assert pace.pause_s(GATHER_S, now_s=19 * GATHER_S) == pytest.approx(GATHER_S)


def test_the_first_sample_counts_in_full() -> None:
    mean = RunningMean()
    mean.add(2.0)
    assert mean.value == 2.0
    for _ in range(100):
        mean.add(1.0)
    assert mean.value == pytest.approx(1.0)
