r"""Who has been promised which QPU, for how long, and what that leaves for others.

A reservation is a place in a QPU's queue, not a time slot: it is held for some seconds, one job may use it,
and it ends when that job does. Until then it counts for the seconds of QPU time that a task of its width is
expected to take. The load of a QPU is the share of the next minute that is promised in this way.

All functions are pure: they take a QPU's book and the time, and return the book as it is afterwards.

    held --begin--> queued --release--> ended
      \--release or time-------------> ended

Invariants: a reservation runs one job only, though that job may be asked for twice; an expired or ended one
runs none; at most :data:`MAX_LIVE` count at once, and at most 128 are remembered.

What it does not protect against: a caller that reserves and never runs takes its place until the time is up.
"""

from __future__ import annotations

from tocsin.contracts.errors import ConflictError, DeniedError, ExhaustedError, InvalidInputError
from tocsin.contracts.quantum import QpuReservations, QpuRun, Reservation, ReservationState

HORIZON_S = 60.0
"""A QPU with a minute of promised work is full. It is the default of a reservation's ``hold_s``: what is
promised now can still begin before it expires."""
MAX_LIVE = 64
RUN_LIMIT_S = 600.0
"""A queued job counts no longer than this, should its executor never report: ten times the horizon."""
REMEMBER_S = 600.0
"""For so long an ended or expired reservation is told from an unknown one."""

_KEPT = 128
_NS = 1_000_000_000


def expected_s(qubits: int) -> float:
    """Return the seconds that a task of about 200 circuits takes at this width.

    Measured on one core of the simulating machine at 4, 6 and 8 qubits: 0.3, 1.1 and 2.7 s. Waiting times
    depend on it, correctness does not.
    """
    return min(0.3 * 2.0 ** (qubits - 4), 3600.0)


def live(book: QpuReservations, now_ns: int) -> tuple[Reservation, ...]:
    """Return the reservations that count now."""
    return tuple(
        r for r in book.reservations if r.state is not ReservationState.ENDED and r.expires_ns > now_ns
    )


def promised_s(book: QpuReservations, now_ns: int) -> float:
    """Return the seconds of work that are reserved or queued: how long a newcomer waits."""
    return sum(reservation.expected_s for reservation in live(book, now_ns))


def load_percent(book: QpuReservations, now_ns: int) -> float:
    """Return the share of the next minute that is promised, in percent, at most 100."""
    return min(100.0, 100.0 * promised_s(book, now_ns) / HORIZON_S)


def queued(book: QpuReservations, now_ns: int) -> int:
    """Return how many jobs are queued or running."""
    return sum(r.state is ReservationState.QUEUED for r in live(book, now_ns))


def is_full(book: QpuReservations, now_ns: int) -> bool:
    """Return whether nothing more can be promised."""
    return load_percent(book, now_ns) >= 100.0 or len(live(book, now_ns)) >= MAX_LIVE


def reserve(book: QpuReservations, reservation: Reservation, now_ns: int) -> QpuReservations:
    """Add a reservation; adding it again changes nothing.

    Raises:
        ExhaustedError: ``qpu_full``.
    """
    if find(book, reservation.reservation) is not None:
        return book
    if is_full(book, now_ns):
        raise ExhaustedError(
            f"{book.qpu} is full: {promised_s(book, now_ns):.0f} s of work are promised", reason="qpu_full"
        )
    return _with(book, (*_remembered(book, now_ns), reservation))


def begin(book: QpuReservations, run: QpuRun, now_ns: int) -> tuple[QpuReservations, int]:
    """Let a job use its reservation; return the book and how many jobs are ahead of it.

    Asking again for the same job changes nothing.

    Raises:
        InvalidInputError: ``unknown_reservation`` or ``too_wide``.
        DeniedError: ``not_your_reservation``.
        ConflictError: ``reservation_expired``, ``reservation_ended`` or ``reservation_used``.
    """
    reservation = find(book, run.reservation)
    if reservation is None:
        raise InvalidInputError("no such reservation", reason="unknown_reservation")
    if reservation.workflow != run.workflow:
        raise DeniedError("the reservation is another workflow's", reason="not_your_reservation")
    if (width := max(map(len, run.body.train))) > reservation.qubits:
        raise InvalidInputError(
            f"the task needs {width} qubits, {reservation.qubits} are reserved", reason="too_wide"
        )
    if reservation.state is ReservationState.ENDED:
        raise ConflictError("the reservation has ended; allocate again", reason="reservation_ended")
    if reservation.expires_ns <= now_ns:
        late_s = (now_ns - reservation.expires_ns) / _NS
        raise ConflictError(
            f"the reservation expired {late_s:.1f} s ago; allocate again", reason="reservation_expired"
        )
    others = tuple(r for r in book.reservations if r.reservation != run.reservation)
    if reservation.state is ReservationState.QUEUED:
        if reservation.operation != run.operation:
            raise ConflictError("another job uses the reservation", reason="reservation_used")
        before = book.reservations[: book.reservations.index(reservation)]
        return book, queued(_with(book, before), now_ns)
    used = reservation.model_copy(
        update={
            "state": ReservationState.QUEUED,
            "operation": run.operation,
            "expires_ns": now_ns + int(RUN_LIMIT_S * _NS),
        }
    )
    # It moves to the end: the queue is in the order of the jobs, not of the promises.
    return _with(book, (*others, used)), queued(book, now_ns)


def release(book: QpuReservations, reservation: bytes) -> QpuReservations:
    """End a reservation. One that has ended, or is not known, changes nothing."""
    return _with(
        book,
        tuple(
            r.model_copy(update={"state": ReservationState.ENDED}) if r.reservation == reservation else r
            for r in book.reservations
        ),
    )


def find(book: QpuReservations, reservation: bytes) -> Reservation | None:
    """Return a reservation of this book, ended ones included, or None."""
    return next((r for r in book.reservations if r.reservation == reservation), None)


def _remembered(book: QpuReservations, now_ns: int) -> tuple[Reservation, ...]:
    """Return what must stay: all that count, and of the others the latest that are not forgotten."""
    alive = frozenset(r.reservation for r in live(book, now_ns))
    forget_ns = now_ns - int(REMEMBER_S * _NS)
    past = [r.reservation for r in book.reservations if r.reservation not in alive and r.expires_ns > forget_ns]
    keep = alive.union(past[-(_KEPT - 1 - len(alive)) :])
    return tuple(r for r in book.reservations if r.reservation in keep)


def _with(book: QpuReservations, reservations: tuple[Reservation, ...]) -> QpuReservations:
    return book.model_copy(update={"reservations": reservations})
