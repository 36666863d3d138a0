"""QPUs: what they can do, who gets which, and jobs on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.analysis import KernelTask
from tocsin.contracts.base import Digest, Message, MessageId, Name, Probability, Text


class QpuStatus(Message):
    """One QPU by its calibration."""

    qpu: Name
    qubits: Annotated[int, Field(ge=1)]
    up: bool
    calibrated: Text
    """Date of the calibration snapshot, ISO 8601, or what is known of it."""
    median_t1_us: Annotated[float, Field(ge=0)]
    median_t2_us: Annotated[float, Field(ge=0)]
    median_two_qubit_error: Probability
    median_readout_error: Probability
    load_percent: Annotated[float, Field(ge=0, le=100)]
    queued: Annotated[int, Field(ge=0)]


class QpuListRequest(Message):
    """Ask for all QPUs."""


class QpuList(Message):
    """All QPUs that the manager knows."""

    qpus: Annotated[tuple[QpuStatus, ...], Field(max_length=256)]


class AllocationRequest(Message):
    """Ask for the QPU that suits a fidelity-kernel circuit of this width best."""

    workflow: MessageId
    qubits: Annotated[int, Field(ge=2, le=156)]
    required_fidelity: Probability
    """Of one circuit, as ESP."""
    tolerated_loss: Annotated[float, Field(ge=1e-6, lt=1)] = 0.1
    """Decoherence loss eps; required coherence time = duration / -ln(1 - eps)."""
    hold_s: Annotated[float, Field(gt=0, le=3600)] = 60.0


class QpuScore(Message):
    """One QPU: 0.3 performance + 0.25 availability + 0.25 coherence + 0.2 connectivity = composite."""

    qpu: Name
    performance: Probability
    availability: Probability
    coherence: Probability
    connectivity: Probability
    composite: Probability
    estimated_fidelity: Probability
    duration_us: Annotated[float, Field(ge=0)]
    qpu_coherence_us: Annotated[float, Field(ge=0)]
    required_coherence_us: Annotated[float, Field(ge=0)]


class Allocation(Message):
    """A reservation: the winner, and the scores that it won by, best first."""

    reservation: MessageId
    qpu: Name
    scores: Annotated[tuple[QpuScore, ...], Field(min_length=1, max_length=256)]
    expires_ns: Annotated[int, Field(ge=0)]


class QpuRun(Message):
    """Run a task under a reservation."""

    operation: Digest
    reservation: MessageId
    workflow: MessageId
    body: KernelTask


class QpuQueued(Message):
    """The job is in the QPU's queue."""

    operation: Digest
    qpu: Name
    ahead: Annotated[int, Field(ge=0)]


class QpuJob(Message):
    """A job on its way to the executor of its QPU."""

    run: QpuRun
    qpu: Name


class ReservationState(StrEnum):
    """What has become of a reservation."""

    HELD = "held"
    QUEUED = "queued"
    ENDED = "ended"


class Reservation(Message):
    """A place in a QPU's queue: promised, used by one job, or ended and remembered for a while."""

    reservation: MessageId
    workflow: MessageId
    qubits: Annotated[int, Field(ge=2, le=156)]
    expected_s: Annotated[float, Field(gt=0, le=3600)]
    """Seconds of the QPU that it counts for."""
    expires_ns: Annotated[int, Field(ge=0)]
    """Until then it counts. A job that starts in time sets it anew."""
    state: ReservationState = ReservationState.HELD
    operation: Digest | None = None
    """The job that uses it."""


class QpuReservations(Message):
    """One QPU's reservations, oldest first: its record in the bucket ``reservations``."""

    qpu: Name
    reservations: Annotated[tuple[Reservation, ...], Field(max_length=128)] = ()
