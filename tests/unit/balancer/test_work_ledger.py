from __future__ import annotations

import pytest

from tocsin.balancer.worker.ledger import RECENT, WorkLedger
from tocsin.contracts.analysis import TaskFailed, WorkDone


def done(number: int) -> WorkDone:
    failed = TaskFailed(family="invalid_input", reason="r", detail="")
    return WorkDone(operation=number.to_bytes(32), workflow=bytes(16), outcome=failed, by="service.worker.0")


def test_the_speed_begins_at_one_and_follows_what_is_measured() -> None:
    ledger = WorkLedger()
    assert ledger.speed == 1.0
    for _ in range(60):
        ledger.timed(expected_s=1.0, taken_s=0.25)
    assert ledger.speed == pytest.approx(4.0, rel=0.01)
    for _ in range(60):
        ledger.timed(expected_s=1.0, taken_s=2.0)
    assert ledger.speed == pytest.approx(0.5, rel=0.01)


def test_the_speed_stays_within_the_bounds_of_a_status() -> None:
    fast, slow = WorkLedger(), WorkLedger()
    for _ in range(2000):
        fast.timed(expected_s=3600.0, taken_s=0.0)
        slow.timed(expected_s=1e-12, taken_s=1e6)
    assert fast.speed == 1e6
    assert slow.speed == 1e-6


def test_results_are_kept_for_a_while_and_all_are_counted() -> None:
    ledger = WorkLedger()
    for number in range(RECENT + 5):
        ledger.ended(done(number))
    assert ledger.done == RECENT + 5
    assert ledger.recent == tuple(n.to_bytes(32) for n in range(5, RECENT + 5))
    assert ledger.result((4).to_bytes(32)) is None
    assert ledger.result((5).to_bytes(32)) == done(5)
