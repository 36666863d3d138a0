from __future__ import annotations

import pytest

from tocsin.contracts.analysis import KernelTask
from tocsin.contracts.errors import ConflictError, DeniedError, ExhaustedError, InvalidInputError, TocsinError
from tocsin.contracts.quantum import QpuReservations, QpuRun, Reservation
from tocsin.qpu_manager import reservations

S = 1_000_000_000
NOW = 1_000 * S
EMPTY = QpuReservations(qpu="boston")
ME, OTHER = bytes(16), bytes([1]) * 16


def a_reservation(number: int, *, expected_s: float = 6.0, expires_ns: int = NOW + 60 * S) -> Reservation:
    return Reservation(
        reservation=number.to_bytes(16, "big"),
        workflow=ME,
        qubits=4,
        expected_s=expected_s,
        expires_ns=expires_ns,
    )


def a_run(number: int, *, operation: int = 1, workflow: bytes = ME, qubits: int = 4) -> QpuRun:
    return QpuRun(
        operation=operation.to_bytes(32, "big"),
        reservation=number.to_bytes(16, "big"),
        workflow=workflow,
        body=KernelTask(train=((0.5,) * qubits,), test=((0.6,) * qubits,), shots=128),
    )


def booked(*numbers: int) -> QpuReservations:
    book = EMPTY
    for number in numbers:
        book = reservations.reserve(book, a_reservation(number), NOW)
    return book


def test_load_is_the_share_of_the_next_minute_that_is_promised() -> None:
    assert reservations.load_percent(EMPTY, NOW) == 0.0
    book = booked(1, 2)
    assert reservations.load_percent(book, NOW) == pytest.approx(20.0)
    assert reservations.promised_s(book, NOW) == pytest.approx(12.0)
    assert reservations.load_percent(book, NOW + 60 * S) == 0.0  # both have expired


def test_a_minute_of_promised_work_is_all_there_is() -> None:
    book = booked(*range(10))
    with pytest.raises(ExhaustedError, match="boston is full: 60 s") as refused:
        reservations.reserve(book, a_reservation(11), NOW)
    assert refused.value.reason == "qpu_full"
    assert reservations.load_percent(reservations.release(book, bytes(16)), NOW) == pytest.approx(90.0)


def test_promising_again_changes_nothing_even_when_full() -> None:
    book = booked(*range(10))
    assert reservations.reserve(book, a_reservation(3), NOW) == book


def test_a_job_queues_behind_those_before_it_and_asking_again_changes_nothing() -> None:
    book = booked(1, 2, 3)
    book, ahead = reservations.begin(book, a_run(2, operation=2), NOW)
    assert ahead == 0
    book, ahead = reservations.begin(book, a_run(1, operation=1), NOW)
    assert ahead == 1
    assert reservations.queued(book, NOW) == 2
    again, ahead = reservations.begin(book, a_run(1, operation=1), NOW + S)
    assert (again, ahead) == (book, 1)


def test_a_queued_job_counts_beyond_its_reservation_but_not_for_ever() -> None:
    book, _ = reservations.begin(booked(1), a_run(1), NOW)
    assert reservations.queued(book, NOW + 61 * S) == 1
    assert reservations.queued(book, NOW + 601 * S) == 0


@pytest.mark.parametrize(
    ("run", "after_s", "family", "reason"),
    [
        (a_run(9), 0, InvalidInputError, "unknown_reservation"),
        (a_run(1, workflow=OTHER), 0, DeniedError, "not_your_reservation"),
        (a_run(1, qubits=5), 0, InvalidInputError, "too_wide"),
        (a_run(1), 60, ConflictError, "reservation_expired"),
        (a_run(2), 0, ConflictError, "reservation_ended"),
        (a_run(3, operation=2), 0, ConflictError, "reservation_used"),
    ],
)
def test_a_job_without_a_good_reservation_is_refused(
    run: QpuRun, after_s: int, family: type[TocsinError], reason: str
) -> None:
    book = reservations.release(booked(1, 2, 3), (2).to_bytes(16, "big"))
    book, _ = reservations.begin(book, a_run(3, operation=1), NOW)
    with pytest.raises(family) as refused:
        reservations.begin(book, run, NOW + after_s * S)
    assert refused.value.reason == reason


def test_releasing_twice_or_what_is_unknown_is_harmless() -> None:
    once = reservations.release(booked(1, 2), (1).to_bytes(16, "big"))
    assert reservations.release(once, (1).to_bytes(16, "big")) == once
    assert reservations.release(once, (7).to_bytes(16, "big")) == once
    assert len(reservations.live(once, NOW)) == 1


def test_a_book_is_bounded_and_forgets_the_past_only() -> None:
    book = EMPTY
    for number in range(1000):
        book = reservations.reserve(book, a_reservation(number), NOW)
        if number >= 5:
            book = reservations.release(book, number.to_bytes(16, "big"))
    assert len(book.reservations) == 128
    assert len(reservations.live(book, NOW)) == 5
    later = reservations.reserve(book, a_reservation(2000, expires_ns=NOW + 900 * S), NOW + 700 * S)
    assert len(later.reservations) == 1


def test_many_small_promises_are_bounded_in_number() -> None:
    book = EMPTY
    for number in range(64):
        book = reservations.reserve(book, a_reservation(number, expected_s=0.1), NOW)
    with pytest.raises(ExhaustedError):
        reservations.reserve(book, a_reservation(64, expected_s=0.1), NOW)


def test_expected_seconds_grow_with_the_width() -> None:
    assert [reservations.expected_s(n) for n in (4, 6)] == pytest.approx([0.3, 1.2])
    assert reservations.expected_s(156) == 3600.0
