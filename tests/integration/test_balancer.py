"""Balancer and workers over a real broker: real tasks, placed once, done though a worker is killed."""

from __future__ import annotations

import asyncio
import time

import pytest
from integration.compute import balancer, process_of, worker
from support import World, eventually

from tocsin.bus import Bus, Context
from tocsin.contracts.analysis import (
    ClassicalKind,
    ClassicalResult,
    ClassicalTask,
    Operation,
    Placement,
    PoolStatus,
    TaskFailed,
    WorkDone,
)
from tocsin.contracts.catalogue import BALANCER_PLACE, POOL, POOL_STATUS, RESULT
from tocsin.contracts.errors import DeniedError, UnavailableError
from tocsin.contracts.identifiers import Role, ServiceName

WORKFLOW = bytes(range(16))
ROWS = tuple((float(i % 7), float(i % 5), float(i % 3)) for i in range(40))


def operation(number: int, task: ClassicalTask | None = None, cost_s: float = 0.05) -> Operation:
    body = task or ClassicalTask(kind=ClassicalKind.RBF_SVM, train=ROWS, test=((3.0, 2.0, 1.0),))
    return Operation(operation=number.to_bytes(32), workflow=WORKFLOW, body=body, cost_s=cost_s)


async def results(world: World) -> list[WorkDone]:
    """Collect what workers publish, as the workflow service would."""
    bus = await world.service(ServiceName.WORKFLOW)
    found: list[WorkDone] = []

    async def on_result(done: WorkDone, _: Context) -> None:
        found.append(done)

    await bus.consume(RESULT, on_result, durable="test")
    return found


async def asker(world: World) -> Bus:
    return await world.service(ServiceName.WORKFLOW, "asker")


async def test_work_is_placed_and_done_and_its_result_published(world: World) -> None:
    found = await results(world)
    await balancer(world)
    await worker(world)
    bus = await asker(world)
    placement = await place(bus, operation(1))
    assert placement.pool == "classical"
    assert set(placement.considered) == {"classical"}
    await eventually(lambda: len(found) == 1)
    done = found[0]
    assert (done.operation, done.workflow, done.by) == (
        operation(1).operation,
        WORKFLOW,
        "service.worker.0",
    )
    assert isinstance(done.outcome, ClassicalResult)
    assert done.outcome.scores[0].train_samples == len(ROWS)


async def place(bus: Bus, what: Operation) -> Placement:
    """Place as soon as the balancer has heard of a pool."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await bus.request(BALANCER_PLACE, what, timeout_s=5)
            except UnavailableError as error:
                if error.reason != "no_pool":
                    raise
                await asyncio.sleep(0.02)


async def test_no_pool_is_said_at_once(world: World) -> None:
    await balancer(world)
    bus = await asker(world)
    with pytest.raises(UnavailableError) as caught:
        await bus.request(BALANCER_PLACE, operation(1), timeout_s=5)
    assert caught.value.reason == "no_pool"


async def test_the_same_operation_is_placed_and_done_once(world: World) -> None:
    found = await results(world)
    service = await balancer(world)
    doer = await worker(world)
    bus = await asker(world)
    first = await place(bus, operation(1))
    again = await asyncio.gather(*(bus.request(BALANCER_PLACE, operation(1), timeout_s=5) for _ in range(5)))
    assert all(placement == first for placement in again)
    await place(bus, operation(2))
    await eventually(lambda: len(found) == 2)
    assert [done.operation for done in found] == [operation(1).operation, operation(2).operation]
    assert doer.ledger.done == 2
    assert service.metrics.counter("placed.classical") == 2


async def test_what_is_done_counts_no_longer(world: World) -> None:
    service = await balancer(world)
    await worker(world)
    bus = await asker(world)

    def outstanding_s() -> float:
        return sum(pool.outstanding_s for pool in service.board.pools(time.time_ns()))

    placement = await place(bus, operation(1, cost_s=100))
    assert outstanding_s() == pytest.approx(100)
    assert placement.expected_wait_s == 0
    await eventually(lambda: outstanding_s() == 0)


async def test_a_task_that_cannot_be_done_says_why(world: World) -> None:
    found = await results(world)
    await balancer(world)
    await worker(world)
    bus = await asker(world)
    ragged = ClassicalTask(kind=ClassicalKind.RBF_SVM, train=((1.0, 2.0), (1.0,)), test=((1.0, 2.0),))
    await place(bus, operation(1, ragged))
    await eventually(lambda: len(found) == 1)
    outcome = found[0].outcome
    assert isinstance(outcome, TaskFailed)
    assert (outcome.family, outcome.reason) == ("invalid_input", "bad_shape")


async def test_a_worker_speaks_for_itself_and_its_pool_only(world: World) -> None:
    service = await balancer(world)
    liar = await world.service(ServiceName.WORKER, "liar")
    status = PoolStatus(pool="p", worker="victim", slots=1024, busy=0, done=0, speed=1e6)
    await liar.publish(POOL, POOL_STATUS, status, at={"pool": "p", "worker": "victim"})
    await eventually(lambda: service.metrics.counter("rejected.wrong_subject") == 1)
    await liar.publish(POOL, POOL_STATUS, status, at={"pool": "other", "worker": "liar"})
    await eventually(lambda: service.metrics.counter("handler_refusals.wrong_subject") == 1)
    assert service.board.pools(time.time_ns()) == ()
    agent = await world.agent(Role.ANALYST, "a1")
    with pytest.raises(DeniedError):
        await agent.request(BALANCER_PLACE, operation(1), timeout_s=1)


async def test_the_task_of_a_killed_worker_is_done_by_another(world: World) -> None:
    found = await results(world)
    watcher = await world.service(ServiceName.BALANCER, "watcher")
    busy: list[str] = []

    async def on_status(status: PoolStatus, _: Context) -> None:
        if status.busy:
            busy.append(status.worker)

    await watcher.subscribe(POOL, on_status)
    await balancer(world)
    bus = await asker(world)
    # Six forests take 0.7 s and more: long enough to be killed in the middle of.
    rows = tuple(tuple(float((i * 31 + j * 17) % 97) for j in range(100)) for i in range(200))
    long = ClassicalTask(kind=ClassicalKind.ISOLATION_FOREST, train=rows, test=rows[:1])
    often = {"TOCSIN_REDELIVER_AFTER_S": "1", "TOCSIN_STATUS_INTERVAL_S": "0.1"}
    async with process_of(world, ServiceName.WORKER, "doomed", **often) as doomed:
        await place(bus, operation(1, long, cost_s=2))
        await eventually(lambda: "doomed" in busy)
        doomed.kill()
        await doomed.wait()
    assert found == []
    await worker(world, "heir")
    await eventually(lambda: len(found) == 1)
    assert found[0].by == "service.worker.heir"
    assert isinstance(found[0].outcome, ClassicalResult)
