"""The shell: requests, results and time in; questions to qpu-manager and balancer, events and records out.

Every move is made on the record in the bucket, by compare-and-set, before anything follows from it. So any
instance can make any move, and one that dies leaves nothing behind but questions that were not asked yet:
the others, or the next one to start, ask them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from tocsin.analysis.assessment import plan
from tocsin.bus import Bus, Context, Service, handles
from tocsin.contracts.analysis import (
    AssessmentMade,
    SecurityRequest,
    StageState,
    WorkDone,
    WorkflowAccepted,
    WorkflowStage,
)
from tocsin.contracts.catalogue import (
    EVENT_ALLOCATION,
    EVENT_ASSESSMENT,
    EVENT_STAGE,
    RESULT,
    WORKFLOW_SUBMIT,
)
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvariantBrokenError, TocsinError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.quantum import Allocation
from tocsin.contracts.workflows import AllocationMade, StageName, WorkflowRecord
from tocsin.telemetry import get_logger
from tocsin.workflow import dag
from tocsin.workflow.asker import Asker
from tocsin.workflow.settings import WorkflowSettings
from tocsin.workflow.store import WorkflowStore

TICK_S = 0.1
"""How closely pauses and timeouts are kept."""

RESULT_CONCURRENCY = 8
RESULT_ACK_WAIT_S = 5.0
"""A result is recorded in milliseconds; one that an instance took with it when it died comes again so soon."""

LOCKS = 64

MAX_CLOSED = 4096
"""Ended workflows whose late results and records need no reading."""

log = get_logger(__name__)


class WorkflowService(Service[WorkflowSettings]):
    """Carries security requests out as workflows."""

    name = ServiceName.WORKFLOW

    def __init__(self, bus: Bus, settings: WorkflowSettings) -> None:
        super().__init__(bus, settings)
        self.limits = dag.Limits(
            stage_timeout_s=settings.stage_timeout_s,
            workflow_timeout_s=settings.workflow_timeout_s,
            retry_pause_s=settings.retry_pause_s,
        )
        self._store = WorkflowStore(bus)
        self._asker = Asker(bus, self.limits, timeout_s=settings.ask_timeout_s, hold_s=settings.stage_timeout_s)
        self._open: dict[bytes, WorkflowRecord] = {}
        self._closed: OrderedDict[bytes, None] = OrderedDict()
        self._locks = tuple(asyncio.Lock() for _ in range(LOCKS))
        self._asking: set[tuple[bytes, StageName, int]] = set()

    async def started(self) -> None:
        """Take up what is not done, then results, then time."""
        await self._adopt(at_once=True)
        await self.bus.consume(
            RESULT,
            self.on_result,
            durable="workflow",
            concurrency=RESULT_CONCURRENCY,
            ack_wait_s=RESULT_ACK_WAIT_S,
        )
        self.bus.spawn(self._keep_time(), "time")
        self.bus.spawn(self._keep_adopting(), "adopt")

    @handles(WORKFLOW_SUBMIT)
    async def submit(self, request: SecurityRequest, context: Context) -> WorkflowAccepted:
        """Record a workflow and begin it; the same request again is the same workflow.

        Raises:
            InvalidInputError: ``no_features``, ``unknown_baseline``.
            ExhaustedError: ``too_many_workflows``.
            ConflictError: ``other_request``: this incident was submitted with other contents.
        """
        plan(request)
        move = dag.begin(str(context.sender), request, self.limits, now_ns=context.now_ns)
        workflow = move.record.workflow
        async with self._lock(workflow):
            new = workflow not in self._open
            if new and len(self._open) >= self.settings.max_workflows:
                raise ExhaustedError(
                    f"{self.settings.max_workflows} workflows are under way", reason="too_many_workflows"
                )
            self._open.setdefault(workflow, move.record)
            try:
                move = await self._store.begin(move)
                if move.record.request != request:
                    raise ConflictError("this incident was submitted differently", reason="other_request")
            except TocsinError:
                if new:
                    self._open.pop(workflow)
                raise
            if move.record.announced:
                # Whoever asks again may have missed the answer.
                await self.bus.event(EVENT_ASSESSMENT, _outcome(move.record))
            await self._follow(move, context.now_ns)
        return WorkflowAccepted(workflow=workflow)

    async def on_result(self, result: WorkDone, context: Context) -> None:
        """Take a result to its workflow; one that nobody waits for is counted and dropped."""
        if result.workflow in self._closed:
            self.metrics.count("results_late")
            return
        now_ns, sender = time.time_ns(), context.sender.service_name
        moved = await self._move(
            result.workflow, lambda record: dag.done(record, result, sender, self.limits, now_ns=now_ns), now_ns
        )
        self.metrics.count("results_taken" if moved else "results_late")

    # --- Moves --------------------------------------------------------------------------------

    async def _move(
        self, workflow: bytes, make: Callable[[WorkflowRecord], dag.Move], now_ns: int
    ) -> dag.Move | None:
        """Move a workflow's record, and do what follows; None if nothing moved."""
        async with self._lock(workflow):
            move = await self._store.move(workflow, make, self._open.get(workflow))
            if move is None:
                return None
            self._open[workflow] = move.record
            await self._follow(move, now_ns)
        return move if move.stages else None

    async def _follow(self, move: dag.Move, now_ns: int) -> None:
        """Do what a recorded move entails: tell, ask what began with it, or end."""
        record = move.record
        self._open[record.workflow] = record
        for stage in move.stages:
            await self._tell(record, stage)
        if record.ended is not None:
            await self._end(record)
            return
        self._ask_all(record, (s for s in dag.asked(record) if record.stages[s].since_ns == now_ns))

    async def _tell(self, record: WorkflowRecord, stage: WorkflowStage) -> None:
        """Announce a stage. This is for people to follow: it is not repeated if it cannot be sent."""
        self.metrics.count(f"stages.{stage.stage}.{stage.state.value}")
        try:
            await self.bus.event(EVENT_STAGE, stage)
            if stage.state is StageState.FINISHED:
                self.metrics.observe_ms(f"stage.{stage.stage}", stage.elapsed_ms)
                if stage.stage == StageName.ALLOCATE and record.allocation is not None:
                    await self.bus.event(EVENT_ALLOCATION, _allocation_made(record, record.allocation))
        except TocsinError as error:
            self.metrics.count(f"events_lost.{error.reason}")

    async def _end(self, record: WorkflowRecord) -> None:
        """Announce the end, at least once, and keep nothing of the workflow in memory."""
        if not record.announced:
            await self.bus.event(EVENT_ASSESSMENT, _outcome(record))
            announced = record.model_copy(update={"announced": True})
            await self._store.move(record.workflow, lambda _: dag.Move(announced), record)
            failed = record.ended is not None and record.ended.failure is not None
            self.metrics.count("workflows.failed" if failed else "workflows.done")
            self.metrics.observe_ms("workflow", (time.time_ns() - record.begun_ns) / 1e6)
        self._open.pop(record.workflow, None)
        self._store.forget((record.workflow,))
        self._closed[record.workflow] = None
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def _lock(self, workflow: bytes) -> asyncio.Lock:
        """Return the lock under which this instance moves a workflow; some share one."""
        return self._locks[workflow[0] % LOCKS]

    # --- Questions ----------------------------------------------------------------------------

    def _ask_all(self, record: WorkflowRecord, stages: Iterable[StageName]) -> None:
        for stage in stages:
            key = (record.workflow, stage, record.stages[stage].attempt)
            if key not in self._asking:
                self._asking.add(key)
                self.bus.spawn(self._ask(record, stage, key), f"ask {stage.value}")

    async def _ask(self, record: WorkflowRecord, stage: StageName, key: tuple[bytes, StageName, int]) -> None:
        """Ask a service to do a stage and record its answer."""
        try:
            change = await self._asker.ask(record, stage)
            now_ns = time.time_ns()
            await self._move(record.workflow, lambda present: change(present, now_ns), now_ns)
        except TocsinError as error:
            # The broker is away. What was asked is asked again, under the same digest, by and by.
            self.metrics.count(f"answers_lost.{error.reason}")
            log.warning("answer_lost", stage=stage.value, reason=error.reason, detail=str(error))
        finally:
            self._asking.discard(key)

    # --- Time ---------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for record in list(self._open.values()):
                try:
                    await self._tick(record)
                except TocsinError as error:
                    self.metrics.count(f"ticks_failed.{error.reason}")

    async def _tick(self, record: WorkflowRecord) -> None:
        now_ns = time.time_ns()
        if record.ended is not None or dag.is_due(record, now_ns=now_ns):
            await self._move(
                record.workflow, lambda present: dag.ticked(present, self.limits, now_ns=now_ns), now_ns
            )
            return
        # Nobody has recorded an answer in twice the time that one may take: whoever asked is gone.
        forgotten_ns = now_ns - round(2 * self.settings.ask_timeout_s * 1e9)
        self._ask_all(record, (s for s in dag.asked(record) if record.stages[s].since_ns < forgotten_ns))

    async def _keep_adopting(self) -> None:
        while True:
            await asyncio.sleep(self.settings.adopt_interval_s)
            try:
                await self._adopt(at_once=False)
            except TocsinError as error:
                self.metrics.count(f"adoptions_failed.{error.reason}")

    async def _adopt(self, *, at_once: bool) -> None:
        """Learn how all workflows stand; ``at_once`` ask what is to be asked, as after a crash of all."""
        for workflow in await self._store.keys() - self._closed.keys():
            async with self._lock(workflow):
                await self._adopt_one(workflow, at_once=at_once)

    async def _adopt_one(self, workflow: bytes, *, at_once: bool) -> None:
        try:
            record = await self._store.get(workflow)
        except TocsinError as error:
            self.metrics.count(f"records_refused.{error.reason}")
            return
        if record is None:
            return
        if workflow not in self._open and record.ended is None:
            log.info("workflow_adopted", workflow=workflow.hex())
        self._open[workflow] = record
        if record.ended is not None:
            await self._end(record)
        elif at_once:
            self._ask_all(record, dag.asked(record))


def _outcome(record: WorkflowRecord) -> AssessmentMade:
    if record.ended is None:
        raise InvariantBrokenError("the workflow has not ended", reason="not_ended")
    return record.ended


def _allocation_made(record: WorkflowRecord, allocation: Allocation) -> AllocationMade:
    return AllocationMade(
        workflow=record.workflow,
        incident=record.request.incident.incident,
        qubits=record.request.qubits,
        required_fidelity=record.request.required_fidelity,
        allocation=allocation,
    )
