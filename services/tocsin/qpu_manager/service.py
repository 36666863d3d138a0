"""The shell of the qpu-manager: requests in, jobs through the queue, results out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from tocsin.bus import Bus, Context, Service, handles
from tocsin.contracts.analysis import KernelResult, TaskFailed, WorkDone
from tocsin.contracts.catalogue import (
    QPU_ALLOCATE,
    QPU_JOB,
    QPU_JOB_TYPE,
    QPU_LIST,
    QPU_RUN,
    RESULT,
    WORK_DONE,
)
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, TocsinError, family_of
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.quantum import (
    Allocation,
    AllocationRequest,
    QpuJob,
    QpuList,
    QpuListRequest,
    QpuQueued,
    QpuReservations,
    QpuRun,
    Reservation,
    ReservationState,
)
from tocsin.qpu_manager import reservations
from tocsin.qpu_manager.scoring import Candidate, Requirements, rank, require_fit
from tocsin.qpu_manager.settings import QpuManagerSettings
from tocsin.qpu_manager.store import ReservationStore
from tocsin.telemetry import get_logger

if TYPE_CHECKING:
    from tocsin.qpu_manager.quantum import QuantumPool

T = TypeVar("T")

log = get_logger(__name__)


class QpuManagerService(Service[QpuManagerSettings]):
    """Chooses QPUs by the composite score, keeps their reservations, and runs circuits on them."""

    name = ServiceName.QPU_MANAGER

    pool: QuantumPool

    def __init__(self, bus: Bus, settings: QpuManagerSettings) -> None:
        super().__init__(bus, settings)
        self.store = ReservationStore(bus)
        self._planning = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._running = ThreadPoolExecutor(settings.parallel_runs, thread_name_prefix="run")

    async def prepare(self) -> None:
        """Import the quantum libraries and load the calibrations, in a thread but for Qiskit's core.

        That is imported here, half a second, because this thread stays: once the thread that loaded Qiskit
        2.6's extension has ended, the next thread to make a Parameter ends in a segmentation fault.
        """
        begun = time.perf_counter()
        import_module("qiskit")
        self.pool = await self._in(self._planning, lambda: _load(self.settings.qpus))
        log.info("qpus_loaded", qpus=len(self.settings.qpus), seconds=round(time.perf_counter() - begun, 2))

    async def started(self) -> None:
        """Take jobs from every QPU's queue, one at a time, and compile ahead."""
        for qpu in self.settings.qpus:
            await self.bus.consume(QPU_JOB, self.execute, durable=f"qpu-{qpu}", concurrency=1, at={"qpu": qpu})
        self.bus.spawn(self._warm(), "compile ahead")

    async def stopping(self) -> None:
        """Plan nothing more; a job that runs comes to its end, or back into the queue, with the bus."""
        self._planning.shutdown(wait=False, cancel_futures=True)

    @handles(QPU_LIST)
    async def list_qpus(self, _: QpuListRequest, context: Context) -> QpuList:
        """Return all QPUs with their load."""
        books = await self._books()
        return QpuList(qpus=tuple(self.pool.status(book, context.now_ns) for book in books.values()))

    @handles(QPU_ALLOCATE)
    async def allocate(self, request: AllocationRequest, context: Context) -> Allocation:
        """Reserve the best QPU by the composite score that has room.

        The reservation is named by the request's own id. A caller that hears nothing sends its request again,
        perhaps to another instance: it is then given the reservation that it has.

        Raises:
            InvalidInputError: ``bad_width``.
            UnavailableError: ``no_qpu_fits``, with numbers.
            ExhaustedError: ``qpus_full``: those that would do are full.
        """
        circuits = await self._in(self._planning, lambda: self.pool.figures(request.qubits))
        books = await self._books()
        now_ns = context.now_ns
        required = Requirements(request.required_fidelity, request.tolerated_loss)
        ranked = rank(
            (
                Candidate(
                    qpu,
                    circuit,
                    reservations.load_percent(books[qpu], now_ns),
                    reservations.promised_s(books[qpu], now_ns),
                )
                for qpu, circuit in circuits.items()
            ),
            required,
        )
        scores = require_fit(ranked, required, request.qubits)
        reservation = Reservation(
            reservation=context.id,
            workflow=request.workflow,
            qubits=request.qubits,
            expected_s=reservations.expected_s(request.qubits),
            expires_ns=now_ns + int(request.hold_s * 1e9),
        )
        held = [qpu for qpu, book in books.items() if reservations.find(book, context.id) is not None]
        for qpu in (*held, *(entry.score.qpu for entry in ranked if entry.fits)):
            try:
                await self.store.change(qpu, partial(_reserve, reservation=reservation, now_ns=now_ns))
            except ExhaustedError:
                continue
            self.metrics.count(f"allocations.{qpu}")
            return Allocation(
                reservation=reservation.reservation, qpu=qpu, scores=scores, expires_ns=reservation.expires_ns
            )
        raise ExhaustedError(
            f"every QPU that runs {request.qubits} qubits at fidelity {request.required_fidelity:.3f} is full",
            reason="qpus_full",
        )

    @handles(QPU_RUN)
    async def run(self, run: QpuRun, context: Context) -> QpuQueued:
        """Put a job into the queue of the QPU that it has reserved.

        Raises:
            InvalidInputError: An unknown reservation, or a task that nothing could run.
            DeniedError: ``not_your_reservation``.
            ConflictError: The reservation has expired, ended, or is used by another job.
        """
        self.pool.check(run.body)
        qpu = await self._reserved_on(run.reservation)
        ahead = await self.store.change(qpu, partial(reservations.begin, run=run, now_ns=context.now_ns))
        # Also where it was asked for before: that process may have died between the book and the queue.
        await self.bus.publish(QPU_JOB, QPU_JOB_TYPE, QpuJob(run=run, qpu=qpu), durable=True, at={"qpu": qpu})
        return QpuQueued(operation=run.operation, qpu=qpu, ahead=ahead)

    async def execute(self, job: QpuJob, _: Context) -> None:
        """Run a job, publish its result, and only then end its reservation: ended means published."""
        run = job.run
        held = reservations.find(await self.store.read(job.qpu), run.reservation)
        if held is not None and held.state is ReservationState.ENDED:
            self.metrics.count(f"duplicate_jobs.{job.qpu}")
            return
        begun = time.perf_counter()
        outcome = await self._outcome(job)
        self.metrics.observe_ms(f"run.{job.qpu}", (time.perf_counter() - begun) * 1e3)
        done = WorkDone(operation=run.operation, workflow=run.workflow, outcome=outcome, by=job.qpu)
        await self.bus.publish(RESULT, WORK_DONE, done, durable=True, at={"workflow": run.workflow.hex()})
        await self.store.change(job.qpu, lambda book: (reservations.release(book, run.reservation), None))

    async def _outcome(self, job: QpuJob) -> KernelResult | TaskFailed:
        try:
            return await self._in(self._running, lambda: self.pool.run(job.qpu, job.run.body))
        except TocsinError as error:
            log.warning("task_failed", qpu=job.qpu, reason=error.reason, detail=str(error))
            self.metrics.count(f"task_failures.{error.reason}")
            return TaskFailed(family=family_of(error), reason=error.reason, detail=str(error)[:512])

    async def _reserved_on(self, reservation: bytes) -> str:
        for qpu, book in (await self._books()).items():
            if reservations.find(book, reservation) is not None:
                return qpu
        raise InvalidInputError("no such reservation", reason="unknown_reservation")

    async def _books(self) -> dict[str, QpuReservations]:
        books = await asyncio.gather(*map(self.store.read, self.settings.qpus))
        return {book.qpu: book for book in books}

    async def _warm(self) -> None:
        for qubits in self.settings.warm_qubits:
            await self._in(self._planning, partial(self.pool.figures, qubits))

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)


def _load(qpus: tuple[str, ...]) -> QuantumPool:
    """Import the quantum libraries here and not at the top: a service that loads still answers."""
    from tocsin.qpu_manager.quantum import QuantumPool  # noqa: PLC0415 - the reason is the line above

    return QuantumPool(qpus)


def _reserve(book: QpuReservations, *, reservation: Reservation, now_ns: int) -> tuple[QpuReservations, None]:
    return reservations.reserve(book, reservation, now_ns), None
