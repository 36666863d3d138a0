"""The monitor's core: which snapshot counts, what is summed, and what happens when there is no room."""

from __future__ import annotations

import pytest

from tocsin.contracts.errors import DeniedError, ExhaustedError
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.contracts.routing import Delivery
from tocsin.monitor.figures import ANSWER_BYTES, MAX_TOTALS, OTHER, FigureBook

SECOND = 1_000_000_000
A, B, C = (f"service.router.{name}" for name in "abc")


def book(*, max_processes: int = 8, max_emergencies: int = 8) -> FigureBook:
    return FigureBook(max_processes=max_processes, silent_after_ns=60 * SECOND, max_emergencies=max_emergencies)


def snapshot(process: str, **counters: int) -> MetricsSnapshot:
    return MetricsSnapshot(
        process=process, uptime_s=1.0, counters=counters, latencies={}, cpu_s=0.5, memory_bytes=1
    )


def take(into: FigureBook, process: str, *, at_s: int = 1, size_bytes: int = 100, **counters: int) -> bool:
    return into.take(
        snapshot(process, **counters),
        sender=process,
        issued_ns=at_s * SECOND,
        now_ns=at_s * SECOND,
        size_bytes=size_bytes,
    )


def delivery(number: int, due: int, delivered: int, *, complete: bool = True) -> Delivery:
    return Delivery(
        message=bytes(16),
        leaf=number.to_bytes(32, "big"),
        due=due,
        delivered=delivered,
        by_core=delivered,
        by_stream=0,
        undelivered=(),
        first_ms=None,
        last_ms=None,
        complete=complete,
    )


def test_totals_are_the_sums_of_the_latest_snapshots() -> None:
    figures = book()
    take(figures, A, sent=5, lost=1)
    take(figures, A, at_s=2, sent=7)
    take(figures, B, sent=10)
    found = figures.figures(2 * SECOND)
    assert [one.process for one in found.processes] == [A, B]
    assert found.totals == {"sent": 17, "deliveries_due": 0, "deliveries_made": 0}
    assert found.left_out == 0


def test_a_snapshot_that_arrives_late_is_no_change() -> None:
    figures = book()
    assert take(figures, A, at_s=9, sent=9)
    assert not take(figures, A, at_s=8, sent=8)
    assert figures.totals()["sent"] == 9


def test_a_process_may_speak_for_itself_alone() -> None:
    figures = book()
    with pytest.raises(DeniedError) as caught:
        figures.take(snapshot(A), sender=B, issued_ns=1, now_ns=1, size_bytes=1)
    assert caught.value.reason == "wrong_process"
    assert len(figures) == 0


def test_a_silent_process_is_dropped_after_a_minute_and_not_before() -> None:
    figures = book()
    take(figures, A, at_s=0, sent=1)
    take(figures, B, at_s=30, sent=2)
    assert figures.expire(60 * SECOND) == 0
    assert figures.expire(60 * SECOND + 1) == 1
    assert [one.process for one in figures.figures(61 * SECOND).processes] == [B]
    assert figures.totals()["sent"] == 2


def test_a_process_beyond_the_bound_is_refused_until_a_silent_one_makes_room() -> None:
    figures = book(max_processes=2)
    take(figures, A, at_s=1)
    take(figures, B, at_s=50)
    with pytest.raises(ExhaustedError) as caught:
        take(figures, C, at_s=51)
    assert caught.value.reason == "too_many_processes"
    assert take(figures, B, at_s=52)
    assert take(figures, C, at_s=100)
    assert [one.process for one in figures.figures(100 * SECOND).processes] == [B, C]


def test_the_last_account_of_an_emergency_counts() -> None:
    figures = book()
    figures.deliver(delivery(1, 40, 3, complete=False))
    figures.deliver(delivery(1, 40, 39))
    figures.deliver(delivery(2, 40, 40))
    totals = figures.totals()
    assert (totals["deliveries_due"], totals["deliveries_made"]) == (80, 79)


def test_accounts_beyond_the_bound_stay_in_the_sums() -> None:
    figures = book(max_emergencies=3)
    for number in range(10):
        figures.deliver(delivery(number, 4, 3))
    totals = figures.totals()
    assert (totals["deliveries_due"], totals["deliveries_made"]) == (40, 30)
    assert len(figures._accounts) == 3


def test_a_process_cannot_pass_its_counter_off_as_deliveries() -> None:
    figures = book()
    take(figures, A, deliveries_due=1000, deliveries_made=1000)
    totals = figures.totals()
    assert (totals["deliveries_due"], totals["deliveries_made"]) == (0, 0)


def test_names_beyond_the_bound_are_summed_under_other() -> None:
    figures = book()
    for number, process in enumerate((A, B, C)):
        take(figures, process, **{f"n{number}_{name:03}": 1 for name in range(400)})
    take(figures, "service.router.d", other=7)
    found = figures.figures(2 * SECOND)
    assert len(found.totals) == MAX_TOTALS
    assert sum(found.totals.values()) == 1207
    assert found.totals[OTHER] == 1207 - (MAX_TOTALS - 3)


def test_snapshots_that_do_not_fit_into_an_answer_are_counted_and_summed() -> None:
    figures = book()
    take(figures, A, size_bytes=ANSWER_BYTES - 50, sent=1)
    take(figures, B, size_bytes=100, sent=2)
    take(figures, C, size_bytes=50, sent=4)
    found = figures.figures(2 * SECOND)
    assert [one.process for one in found.processes] == [A, C]
    assert found.left_out == 1
    assert found.totals["sent"] == 7


def test_sums_stop_where_the_wire_does() -> None:
    figures = book(max_processes=2000)
    for number in range(1100):
        take(figures, f"host.h{number}", sent=2**53)
    assert figures.totals()["sent"] == 2**63 - 1
