"""The service on a real broker: allocate, run, and read the result from its stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import pi

import numpy as np
import pytest
from support import DOMAIN, World

from tocsin.bus import Bus, Context
from tocsin.contracts.analysis import KernelResult, KernelTask, TaskFailed, WorkDone
from tocsin.contracts.catalogue import QPU_ALLOCATE, QPU_LIST, QPU_RUN, RESERVATIONS, RESULT
from tocsin.contracts.errors import ConflictError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.quantum import AllocationRequest, QpuListRequest, QpuRun
from tocsin.qpu_manager.service import QpuManagerService
from tocsin.qpu_manager.settings import QpuManagerSettings
from tocsin.telemetry import Metrics

WORKFLOW = bytes(range(16))
OPERATION = bytes(range(32))
VECTORS = tuple(map(tuple, np.random.default_rng(3).uniform(0, pi, (5, 3)).tolist()))
TASK = KernelTask(train=VECTORS[:4], test=VECTORS[4:], shots=256, seed=5)
ASK = AllocationRequest(workflow=WORKFLOW, qubits=3, required_fidelity=0.8)


@asynccontextmanager
async def serving(world: World, instance: str = "0") -> AsyncIterator[QpuManagerService]:
    settings = QpuManagerSettings.model_validate(
        world.settings().model_dump()
        | {"qpus": ("manila", "montreal", "boston"), "warm_qubits": (), "instance": instance}
    )
    credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.QPU_MANAGER, instance))
    async with Bus(settings, credentials, Metrics()) as bus:
        service = QpuManagerService(bus, settings)
        await service.start()
        yield service
        await service.stop()


async def results(bus: Bus) -> asyncio.Queue[WorkDone]:
    found: asyncio.Queue[WorkDone] = asyncio.Queue()

    async def take(done: WorkDone, _: Context) -> None:
        await found.put(done)

    await bus.consume(RESULT, take, durable="workflow")
    return found


def a_run(reservation: bytes, task: KernelTask = TASK, operation: bytes = OPERATION) -> QpuRun:
    return QpuRun(operation=operation, reservation=reservation, workflow=WORKFLOW, body=task)


async def test_a_kernel_is_allocated_run_and_returned(world: World) -> None:
    async with serving(world):
        workflow = await world.service(ServiceName.WORKFLOW)
        found = await results(workflow)
        allocation = await workflow.request(QPU_ALLOCATE, ASK, timeout_s=20)
        assert allocation.qpu == "boston" == allocation.scores[0].qpu
        listed = await (await world.service(ServiceName.GATEWAY)).request(
            QPU_LIST, QpuListRequest(), timeout_s=5
        )
        assert {status.qpu: status.load_percent > 0 for status in listed.qpus} == {
            "manila": False,
            "montreal": False,
            "boston": True,
        }
        queued = await workflow.request(QPU_RUN, a_run(allocation.reservation), timeout_s=5)
        assert (queued.qpu, queued.ahead) == ("boston", 0)
        done = await asyncio.wait_for(found.get(), 20)
        assert (done.operation, done.workflow, done.by) == (OPERATION, WORKFLOW, "boston")
        assert isinstance(done.outcome, KernelResult)
        assert (done.outcome.circuits, done.outcome.shots) == (14, 256)
        assert min(done.outcome.train[i][i] for i in range(4)) > 0.9
        async with asyncio.timeout(5):
            while not await _refused(workflow, allocation.reservation, "reservation_ended"):
                pass
        assert found.empty()


async def _refused(workflow: Bus, reservation: bytes, reason: str) -> bool:
    """Ask once more; a job of a reservation that has not yet ended is only queued again, and dropped."""
    try:
        await workflow.request(QPU_RUN, a_run(reservation), timeout_s=5)
    except ConflictError as error:
        return error.reason == reason
    return False


async def test_refusals_reach_the_caller_with_their_reason(world: World) -> None:
    async with serving(world):
        workflow = await world.service(ServiceName.WORKFLOW)
        perfect = ASK.model_copy(update={"required_fidelity": 0.9999})
        with pytest.raises(UnavailableError, match=r"best, boston, has fidelity 0\.9") as unavailable:
            await workflow.request(QPU_ALLOCATE, perfect, timeout_s=20)
        assert unavailable.value.reason == "no_qpu_fits"
        wide = ASK.model_copy(update={"qubits": 156})
        with pytest.raises(InvalidInputError, match="2 to 8 qubits, not 156"):
            await workflow.request(QPU_ALLOCATE, wide, timeout_s=20)
        with pytest.raises(InvalidInputError, match="no such reservation"):
            await workflow.request(QPU_RUN, a_run(bytes(16)), timeout_s=5)


async def test_a_restart_forgets_neither_promises_nor_jobs(world: World) -> None:
    # Also holds a crash of Qiskit 2.6 down: the second service's thread loads after the first one's ended.
    workflow = await world.service(ServiceName.WORKFLOW)
    async with serving(world):
        allocation = await workflow.request(QPU_ALLOCATE, ASK, timeout_s=20)
    async with serving(world, "1"):
        queued = await workflow.request(QPU_RUN, a_run(allocation.reservation), timeout_s=20)
        assert queued.qpu == allocation.qpu
        done = await asyncio.wait_for((await results(workflow)).get(), 20)
        assert not isinstance(done.outcome, TaskFailed)


async def test_promises_spread_over_the_qpus_that_do(world: World) -> None:
    async with serving(world) as service:
        workflow = await world.service(ServiceName.WORKFLOW)
        lenient = ASK.model_copy(update={"required_fidelity": 0.5, "tolerated_loss": 0.5})
        found = [(await workflow.request(QPU_ALLOCATE, lenient, timeout_s=20)).qpu for _ in range(4)]
        # Above the requirements all tie but for load, so the promises spread, the best ESP first.
        assert found[0] == "boston"
        assert set(found[:3]) == set(service.settings.qpus)


async def test_two_instances_lose_no_promise(world: World) -> None:
    async with serving(world), serving(world, "1") as service:
        workflow = await world.service(ServiceName.WORKFLOW)
        found = await asyncio.gather(*(workflow.request(QPU_ALLOCATE, ASK, timeout_s=20) for _ in range(24)))
        books = [await service.store.read(qpu) for qpu in service.settings.qpus]
        assert {allocation.reservation for allocation in found} == {
            reservation.reservation for book in books for reservation in book.reservations
        }
        assert len({allocation.reservation for allocation in found}) == 24


async def test_garbage_in_a_book_stops_no_allocation(world: World) -> None:
    """Who can write to the broker can cost promises, which are short, but not the service."""
    cli = await world.service(ServiceName.WORKFLOW)
    async with serving(world):
        books = await cli.connection.js.key_value(RESERVATIONS.name)
        for qpu in ("manila", "montreal", "boston"):
            await books.put(qpu, b"\xc1 garbage")
        assert (await cli.request(QPU_ALLOCATE, ASK, timeout_s=20)).qpu == "boston"
