"""Workflows over a real broker with the real balancer, worker and qpu-manager, and through a crash."""

from __future__ import annotations

import asyncio

import pytest
from integration.compute import balancer, process_of, worker
from support import DOMAIN, World, eventually
from unit.workflow.workflow_cases import request

from tocsin.bus import Bus, Context
from tocsin.contracts.analysis import (
    AssessmentMade,
    StageState,
    TaskFailed,
    Verdict,
    WorkDone,
    WorkflowStage,
)
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import EVENT, RESULT, WORK_DONE, WORKFLOW_SUBMIT, WORKFLOWS
from tocsin.contracts.errors import ConflictError, DeniedError, ExhaustedError, InvalidInputError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.workflows import AllocationMade, StageName, WorkflowRecord
from tocsin.qpu_manager.service import QpuManagerService
from tocsin.qpu_manager.settings import QpuManagerSettings
from tocsin.workflow.dag import ATTEMPTS, operation_id, workflow_id
from tocsin.workflow.service import WorkflowService
from tocsin.workflow.settings import WorkflowSettings

ANALYST = SpiffeId.agent(DOMAIN, Role.ANALYST, "a1")


async def workflow(world: World, instance: str = "0", **settings: object) -> WorkflowService:
    bus = await world.service(ServiceName.WORKFLOW, instance)
    service = WorkflowService(bus, WorkflowSettings.model_validate(world.settings().model_dump() | settings))
    await service.start()
    return service


async def qpus(world: World) -> QpuManagerService:
    """A qpu-manager with one old QPU and two modern ones."""
    base = world.settings().model_dump()
    bus = await world.service(ServiceName.QPU_MANAGER)
    settings = QpuManagerSettings(**base, qpus=("manila", "torino", "boston"), warm_qubits=(4,))
    service = QpuManagerService(bus, settings)
    await service.start()
    return service


class Watcher:
    """Sees all events, as a dashboard would."""

    def __init__(self) -> None:
        self.stages: list[WorkflowStage] = []
        self.allocations: list[AllocationMade] = []
        self.made: list[AssessmentMade] = []

    async def on_event(self, body: Message, _: Context) -> None:
        if isinstance(body, WorkflowStage):
            self.stages.append(body)
        elif isinstance(body, AllocationMade):
            self.allocations.append(body)
        elif isinstance(body, AssessmentMade):
            self.made.append(body)

    def told(self, stage: StageName, state: StageState) -> list[WorkflowStage]:
        return [one for one in self.stages if (one.stage, one.state) == (stage.value, state)]


async def watcher(world: World) -> Watcher:
    bus, seen = await world.service(ServiceName.MONITOR), Watcher()
    await bus.subscribe(EVENT, seen.on_event)
    return seen


async def analyst(world: World) -> Bus:
    return await world.bus(ANALYST)


async def test_a_request_becomes_one_assessment_by_quantum_and_classical_models(world: World) -> None:
    seen = await watcher(world)
    manager = await qpus(world)
    await balancer(world)
    await worker(world)
    service = await workflow(world)
    bus = await analyst(world)
    accepted = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5)
    await eventually(lambda: len(seen.made) == 1, within_s=60)
    made = seen.made[0]
    assert made.failure is None
    assert (made.workflow, made.requester) == (accepted.workflow, str(ANALYST))
    assert made.assessment is not None
    assert made.assessment.verdict is Verdict.MALICIOUS
    assert len(made.assessment.classical) == 2
    assert made.assessment.quantum.train_samples == 20

    (allocation,) = seen.allocations
    assert {score.qpu for score in allocation.allocation.scores} <= set(manager.settings.qpus)
    assert made.assessment.qpu == allocation.allocation.qpu
    for stage in StageName:
        (finished,) = seen.told(stage, StageState.FINISHED)
        assert finished.detail
    (allocated,) = seen.told(StageName.ALLOCATE, StageState.FINISHED)
    assert f"{made.assessment.qpu}: composite " in allocated.detail
    (placed,) = seen.told(StageName.RBF_SVM, StageState.STARTED)
    assert placed.detail.startswith("pool classical")
    assert not any(one.state is StageState.FAILED for one in seen.stages)
    order = [one.stage for one in seen.stages if one.state is StageState.FINISHED]
    assert order.index("allocate") < order.index("kernel") < order.index("kernel_svm") < order.index("join")
    await eventually(lambda: service.metrics.counter("workflows.done") == 1)


async def test_two_instances_share_workflows_and_each_ends_once(world: World) -> None:
    seen = await watcher(world)
    await qpus(world)
    await balancer(world)
    await worker(world)
    services = [await workflow(world, instance) for instance in ("one", "two")]
    bus = await analyst(world)
    accepted = await asyncio.gather(
        *(bus.request(WORKFLOW_SUBMIT, request(number), timeout_s=5) for number in range(4))
    )
    await eventually(lambda: len(seen.made) == 4, within_s=60)
    assert {made.workflow for made in seen.made} == {one.workflow for one in accepted}
    assert all(made.assessment is not None for made in seen.made)
    for stage in StageName:
        assert len(seen.told(stage, StageState.FINISHED)) == 4
    await eventually(lambda: sum(s.metrics.counter("workflows.done") for s in services) == 4)


@pytest.mark.parametrize("state", [StageState.STARTED, StageState.FINISHED])
async def test_a_killed_workflow_service_is_taken_over_and_its_work_finished_once(
    world: World, state: StageState
) -> None:
    """Killed while the QPU works (the result finds nobody there), and while the classical half has no pool."""
    seen = await watcher(world)
    await qpus(world)
    bus = await analyst(world)
    async with process_of(world, ServiceName.WORKFLOW, "doomed") as doomed:
        accepted = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=30)
        await eventually(lambda: bool(seen.told(StageName.KERNEL, state)), within_s=50)
        doomed.kill()
        await doomed.wait()
    assert seen.made == []
    await balancer(world)
    await worker(world)
    await workflow(world, "heir")
    await eventually(lambda: len(seen.made) == 1, within_s=50)
    made = seen.made[0]
    assert made.workflow == accepted.workflow
    assert made.assessment is not None
    assert len(seen.told(StageName.KERNEL, StageState.FINISHED)) == 1
    assert len(seen.allocations) == 1


async def test_a_request_sent_again_is_the_same_workflow_and_its_end_is_told_again(world: World) -> None:
    seen = await watcher(world)
    await workflow(world, ask_timeout_s=0.1, retry_pause_s=0.01)
    bus = await analyst(world)
    answers = await asyncio.gather(*(bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5) for _ in range(4)))
    assert len({answer.workflow for answer in answers}) == 1
    await eventually(lambda: len(seen.made) == 1)
    again = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5)
    assert again == answers[0]
    await eventually(lambda: len(seen.made) == 2)
    assert seen.made[0] == seen.made[1]
    assert len(seen.told(StageName.ALLOCATE, StageState.STARTED)) <= ATTEMPTS[StageName.ALLOCATE]


async def test_services_that_are_away_fail_the_workflow_with_the_reason(world: World) -> None:
    seen = await watcher(world)
    await workflow(world, ask_timeout_s=0.1, retry_pause_s=0.01)
    bus = await analyst(world)
    accepted = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5)
    await eventually(lambda: len(seen.made) == 1)
    failure = seen.made[0].failure
    assert seen.made[0].workflow == accepted.workflow
    assert seen.made[0].assessment is None
    assert failure is not None
    assert (failure.family, failure.reason) == ("unavailable", "no_answer")


async def test_bad_requests_are_refused_each_with_its_reason(world: World) -> None:
    await workflow(world, max_workflows=2)
    bus = await analyst(world)
    with pytest.raises(InvalidInputError) as no_features:
        await bus.request(WORKFLOW_SUBMIT, request(1, with_features=False), timeout_s=5)
    assert no_features.value.reason == "no_features"
    unknown = request(2).model_copy(update={"baseline": "elsewhere"})
    with pytest.raises(InvalidInputError) as no_baseline:
        await bus.request(WORKFLOW_SUBMIT, unknown, timeout_s=5)
    assert no_baseline.value.reason == "unknown_baseline"
    for number in (3, 4):
        await bus.request(WORKFLOW_SUBMIT, request(number), timeout_s=5)
    with pytest.raises(ExhaustedError) as full:
        await bus.request(WORKFLOW_SUBMIT, request(5), timeout_s=5)
    assert full.value.reason == "too_many_workflows"
    await bus.request(WORKFLOW_SUBMIT, request(4), timeout_s=5)
    with pytest.raises(ConflictError) as other:
        await bus.request(WORKFLOW_SUBMIT, request(4, qubits=5), timeout_s=5)
    assert other.value.reason == "other_request"
    guardian = await world.agent(Role.GUARDIAN, "g1")
    with pytest.raises(DeniedError):
        await guardian.request(WORKFLOW_SUBMIT, request(6), timeout_s=1)


async def test_results_that_nobody_waits_for_are_counted_and_dropped(world: World) -> None:
    service = await workflow(world)
    forger = await world.service(ServiceName.WORKER, "9")
    bus = await analyst(world)
    accepted = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5)
    failed = TaskFailed(family="invalid_input", reason="r", detail="")
    for workflow_bytes, stage in (
        (bytes(16), StageName.RBF_SVM),  # no such workflow
        (accepted.workflow, StageName.KERNEL_SVM),  # not started
        (accepted.workflow, StageName.KERNEL),  # a worker's, where a QPU's is due
    ):
        result = WorkDone(
            operation=operation_id(workflow_bytes, stage, 1),
            workflow=workflow_bytes,
            outcome=failed,
            by="service.worker.9",
        )
        await forger.publish(RESULT, WORK_DONE, result, durable=True, at={"workflow": workflow_bytes.hex()})
    await eventually(lambda: service.metrics.counter("results_late") == 3)
    assert service.metrics.counter("results_taken") == 0
    record = await service.bus.records(WORKFLOWS).get(accepted.workflow.hex())
    assert record is not None
    assert record.ended is None


async def test_a_forged_record_neither_stops_nor_steers_a_workflow(world: World) -> None:
    seen = await watcher(world)
    service = await workflow(world, ask_timeout_s=0.1, retry_pause_s=0.01)
    bus = await analyst(world)
    accepted = await bus.request(WORKFLOW_SUBMIT, request(), timeout_s=5)
    kv = await bus.connection.js.key_value(WORKFLOWS.name)
    await kv.put(accepted.workflow.hex(), b"no envelope at all")
    await eventually(lambda: len(seen.made) == 1)
    assert seen.made[0].failure is not None
    assert seen.made[0].failure.reason == "no_answer"
    assert service.metrics.counter("rejected.malformed") >= 1
    standing = await service.bus.records(WORKFLOWS).get(accepted.workflow.hex())
    assert isinstance(standing, WorkflowRecord)
    assert standing.ended == seen.made[0]
    assert accepted.workflow == workflow_id(str(ANALYST), request().incident.incident)
