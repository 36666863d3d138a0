r"""The graph of a workflow, and how it moves: what can start when, and what a failure means.

    allocate -> kernel -> kernel_svm --\
    isolation_forest -------------------+-> join
    rbf_svm ----------------------------/

A move takes the record as it is, what happened, and the time; it returns the record as it is afterwards and
the stages to announce. What moves nothing (an answer to an attempt that was given up, a result that came
twice, anything after the end) returns the very record that it was given.

Rules:

* A stage starts when its inputs have finished; it never starts before.
* An attempt that fails because something is unavailable, exhausted or in conflict, or that takes too long, is
  followed by another after a pause, up to ATTEMPTS of the stage; any other failure ends the workflow.
* A kernel that failed is allocated anew: the QPU, or the reservation, may be what is wrong.
* A workflow that has not ended at its deadline has failed.
* Results are taken for the present attempt of a stage only, by the digest of its operation.

No I/O, no clock, no randomness: the tasks of a request follow from it (tocsin.analysis.assessment).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import ValidationError

from tocsin.analysis.assessment import join
from tocsin.contracts.analysis import (
    AssessmentMade,
    ClassicalResult,
    KernelResult,
    SecurityRequest,
    StageState,
    TaskFailed,
    WorkDone,
    WorkflowStage,
)
from tocsin.contracts.errors import (
    ConflictError,
    ExhaustedError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    family_of,
)
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.quantum import Allocation
from tocsin.contracts.workflows import StageName, StagePhase, StageRecord, WorkflowRecord
from tocsin.workflow import details

INPUTS: Mapping[StageName, frozenset[StageName]] = MappingProxyType(
    {
        StageName.ALLOCATE: frozenset(),
        StageName.KERNEL: frozenset({StageName.ALLOCATE}),
        StageName.ISOLATION_FOREST: frozenset(),
        StageName.RBF_SVM: frozenset(),
        StageName.KERNEL_SVM: frozenset({StageName.KERNEL}),
        StageName.JOIN: frozenset({StageName.KERNEL_SVM, StageName.ISOLATION_FOREST, StageName.RBF_SVM}),
    }
)

ATTEMPTS: Mapping[StageName, int] = MappingProxyType(
    {stage: 2 if stage is StageName.KERNEL else 12 for stage in StageName}
)
"""With pauses of 0.5, 1, 2 and then 4 s, twelve attempts outlast the start of a worker (3 to 7 s, on a busy
machine 20); the deadline bounds them besides. A kernel costs seconds of a QPU, so it is tried on a second one
and no third."""

MAX_PAUSE = 8
"""Pauses double from the first up to so many times the first."""

RETRIED = frozenset({UnavailableError.reason, ExhaustedError.reason, ConflictError.reason})
"""Families of errors that another attempt may get around."""

LOST_ALLOCATION = "unknown_reservation"
"""The reason of the one invalid input that another attempt gets around: the next one allocates anew."""

_NS = 1_000_000_000
_TEXT = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take; see the settings of the same names."""

    stage_timeout_s: float = 45.0
    workflow_timeout_s: float = 120.0
    retry_pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Move:
    """A record after a move, and what to announce."""

    record: WorkflowRecord
    stages: tuple[WorkflowStage, ...] = ()


def workflow_id(requester: str, incident: bytes) -> bytes:
    """Return the id of the workflow of an incident for a requester: the same request is the same workflow."""
    return hashlib.sha256(b"tocsin/workflow/1\0" + requester.encode() + b"\0" + incident).digest()[:16]


def operation_id(workflow: bytes, stage: StageName, attempt: int) -> bytes:
    """Return the digest of one attempt's operation: asked for twice, it is done once."""
    return hashlib.sha256(
        b"tocsin/operation/1\0" + workflow + stage.value.encode() + b"\0" + attempt.to_bytes(2)
    ).digest()


def begin(requester: str, request: SecurityRequest, limits: Limits, *, now_ns: int) -> Move:
    """Begin a workflow: what needs no input is asked for."""
    record = WorkflowRecord(
        workflow=workflow_id(requester, request.incident.incident),
        requester=requester,
        request=request,
        begun_ns=now_ns,
        deadline_ns=now_ns + round(limits.workflow_timeout_s * _NS),
        stages={stage: StageRecord() for stage in StageName},
    )
    return _Mover(record, limits, now_ns).advanced()


def allocated(
    record: WorkflowRecord, attempt: int, allocation: Allocation, limits: Limits, *, now_ns: int
) -> Move:
    """Take the QPU that was reserved."""
    mover = _Mover(record, limits, now_ns)
    if not mover.is_asked(StageName.ALLOCATE, attempt):
        return Move(record)
    mover.update(allocation=allocation)
    mover.finish(StageName.ALLOCATE, details.allocated(allocation))
    return mover.advanced()


def taken(
    record: WorkflowRecord, stage: StageName, attempt: int, detail: str, limits: Limits, *, now_ns: int
) -> Move:
    """Note that a service has taken a stage: its result will come."""
    mover = _Mover(record, limits, now_ns)
    if not mover.is_asked(stage, attempt):
        return Move(record)
    mover.run(stage, detail)
    return mover.advanced()


def refused(
    record: WorkflowRecord, stage: StageName, attempt: int, error: TocsinError, limits: Limits, *, now_ns: int
) -> Move:
    """Note that nobody has taken a stage, and why."""
    mover = _Mover(record, limits, now_ns)
    if not mover.is_asked(stage, attempt):
        return Move(record)
    mover.fail(stage, failure_of(error))
    return mover.advanced()


def done(
    record: WorkflowRecord, result: WorkDone, sender: ServiceName | None, limits: Limits, *, now_ns: int
) -> Move:
    """Take a result, from the service that this stage's results come from."""
    mover = _Mover(record, limits, now_ns)
    stage = mover.stage_of(result.operation)
    if stage is None or sender is not _executor(stage):
        return Move(record)
    if mover.phase(stage) is StagePhase.ASKED:
        mover.run(stage, "its result is here already")
    outcome = result.outcome
    if isinstance(outcome, TaskFailed):
        mover.fail(stage, outcome)
    elif stage is StageName.KERNEL and isinstance(outcome, KernelResult):
        mover.update(kernel=outcome)
        mover.finish(stage, details.measured(outcome))
    elif stage is not StageName.KERNEL and isinstance(outcome, ClassicalResult) and len(outcome.scores) == 1:
        mover.update(scores={**record.scores, stage: outcome.scores[0]})
        mover.finish(stage, details.scored(outcome, result.by))
    else:
        broken = InvariantBrokenError(f"{stage.value} got another result", reason="unexpected_result")
        mover.fail(stage, failure_of(broken))
    return mover.advanced()


def ticked(record: WorkflowRecord, limits: Limits, *, now_ns: int) -> Move:
    """Let time do its work: pauses end, attempts are given up, the deadline comes."""
    if not is_due(record, now_ns=now_ns):
        return Move(record)
    mover = _Mover(record, limits, now_ns)
    mover.expire()
    return mover.advanced()


def is_due(record: WorkflowRecord, *, now_ns: int) -> bool:
    """Tell whether :func:`ticked` would move anything."""
    return record.ended is None and (now_ns >= record.deadline_ns or bool(_due(record, now_ns)))


def asked(record: WorkflowRecord) -> tuple[StageName, ...]:
    """Return the stages that a service is to be asked for."""
    if record.ended is not None:
        return ()
    return tuple(stage for stage in StageName if record.stages[stage].phase is StagePhase.ASKED)


def failure_of(error: TocsinError) -> TaskFailed:
    """Return an error as the outcome of a task."""
    return TaskFailed(family=family_of(error), reason=error.reason[:64], detail=str(error)[:_TEXT])


class _Mover:
    """One move in the making."""

    def __init__(self, record: WorkflowRecord, limits: Limits, now_ns: int) -> None:
        self.record = record
        self._limits = limits
        self._now_ns = now_ns
        self._told: list[WorkflowStage] = []

    def phase(self, stage: StageName) -> StagePhase:
        return self.record.stages[stage].phase

    def is_asked(self, stage: StageName, attempt: int) -> bool:
        present = self.record.stages[stage]
        return self.record.ended is None and (present.phase, present.attempt) == (StagePhase.ASKED, attempt)

    def stage_of(self, operation: bytes) -> StageName | None:
        """Return the stage whose present attempt this is, if its result is awaited."""
        if self.record.ended is not None:
            return None
        for stage in (*_CLASSICAL, StageName.KERNEL):
            present = self.record.stages[stage]
            awaited = present.phase in {StagePhase.ASKED, StagePhase.RUNNING}
            if awaited and operation_id(self.record.workflow, stage, present.attempt) == operation:
                return stage
        return None

    def update(self, **changes: object) -> None:
        self.record = self.record.model_copy(update=changes)

    def run(self, stage: StageName, detail: str) -> None:
        self._set(stage, phase=StagePhase.RUNNING)
        self._tell(stage, StageState.STARTED, detail)

    def finish(self, stage: StageName, detail: str) -> None:
        self._set(stage, phase=StagePhase.FINISHED)
        self._tell(stage, StageState.FINISHED, detail)

    def fail(self, stage: StageName, failure: TaskFailed) -> None:
        """Try again after a pause, or end the workflow."""
        attempt = self.record.stages[stage].attempt
        passes = failure.family in RETRIED or failure.reason == LOST_ALLOCATION
        again = passes and attempt < ATTEMPTS[stage]
        which = f"{failure.reason}: {failure.detail} (attempt {attempt}{', tried again' if again else ''})"
        self._tell(stage, StageState.FAILED, which)
        if not again:
            self.end(failure)
            return
        pause_s = self._limits.retry_pause_s * min(MAX_PAUSE, 2 ** (attempt - 1))
        self._set(stage, phase=StagePhase.WAITING, due_ns=self._now_ns + round(pause_s * _NS))
        if stage is StageName.KERNEL:
            self.update(allocation=None)
            self._set(StageName.ALLOCATE, phase=StagePhase.WAITING, due_ns=self._now_ns)

    def end(self, failure: TaskFailed) -> None:
        self.update(ended=_made(self.record, failure=failure))

    def expire(self) -> None:
        if self._now_ns >= self.record.deadline_ns:
            waited_s = (self._now_ns - self.record.begun_ns) / _NS
            self.end(_late("workflow_timed_out", f"not done after {waited_s:.0f} s"))
            return
        for stage in _due(self.record, self._now_ns):
            if self.phase(stage) is not StagePhase.WAITING and self.record.ended is None:
                waited_s = (self._now_ns - self.record.stages[stage].since_ns) / _NS
                self.fail(stage, _late("stage_timed_out", f"no result after {waited_s:.0f} s"))

    def advanced(self) -> Move:
        """Start what can start now, join if everything is there, and return the move."""
        for stage in StageName:
            if self.record.ended is None and _can_start(self.record, stage, self._now_ns):
                self._start(stage)
        return Move(self.record, tuple(self._told))

    def _start(self, stage: StageName) -> None:
        self._set(
            stage,
            phase=StagePhase.ASKED,
            attempt=self.record.stages[stage].attempt + 1,
            since_ns=self._now_ns,
            due_ns=self._now_ns + round(self._limits.stage_timeout_s * _NS),
        )
        if stage is StageName.ALLOCATE:
            self._tell(stage, StageState.STARTED, details.wanted(self.record.request))
        elif stage is StageName.JOIN:
            self._join()

    def _join(self) -> None:
        kernel, scores = self.record.kernel, self.record.scores
        try:
            if kernel is None:
                raise InvariantBrokenError("joined without a kernel", reason="no_kernel")
            assessment = join(
                self.record.request,
                self.record.workflow,
                kernel=kernel,
                quantum=scores[StageName.KERNEL_SVM],
                classical=[scores[StageName.ISOLATION_FOREST], scores[StageName.RBF_SVM]],
            )
        except TocsinError as error:
            self.fail(StageName.JOIN, failure_of(error))
        except ValidationError as error:
            broken = InvariantBrokenError(f"no assessment: {error.error_count()} errors", reason="bad_join")
            self.fail(StageName.JOIN, failure_of(broken))
        else:
            self.finish(StageName.JOIN, f"{assessment.verdict.value}, confidence {assessment.confidence:.2f}")
            self.update(ended=_made(self.record, assessment=assessment))

    def _set(self, stage: StageName, **changes: object) -> None:
        changed = self.record.stages[stage].model_copy(update=changes)
        self.update(stages={**self.record.stages, stage: changed})

    def _tell(self, stage: StageName, state: StageState, detail: str) -> None:
        elapsed_ms = (self._now_ns - self.record.stages[stage].since_ns) / 1e6
        self._told.append(
            WorkflowStage(
                workflow=self.record.workflow,
                incident=self.record.request.incident.incident,
                stage=stage.value,
                state=state,
                detail=detail[:_TEXT],
                elapsed_ms=max(0.0, elapsed_ms),
            )
        )


_CLASSICAL = (StageName.ISOLATION_FOREST, StageName.RBF_SVM, StageName.KERNEL_SVM)


def _executor(stage: StageName) -> ServiceName:
    return ServiceName.QPU_MANAGER if stage is StageName.KERNEL else ServiceName.WORKER


def _can_start(record: WorkflowRecord, stage: StageName, now_ns: int) -> bool:
    present = record.stages[stage]
    return (
        present.phase is StagePhase.WAITING
        and now_ns >= present.due_ns
        and all(record.stages[needed].phase is StagePhase.FINISHED for needed in INPUTS[stage])
    )


def _due(record: WorkflowRecord, now_ns: int) -> tuple[StageName, ...]:
    """Return the stages that can start, and those whose attempt has taken too long."""
    late = {StagePhase.ASKED, StagePhase.RUNNING}
    return tuple(
        stage
        for stage, present in record.stages.items()
        if _can_start(record, stage, now_ns) or (present.phase in late and now_ns >= present.due_ns)
    )


def _made(record: WorkflowRecord, **outcome: object) -> AssessmentMade:
    return AssessmentMade.model_validate(
        {
            "workflow": record.workflow,
            "incident": record.request.incident.incident,
            "requester": record.requester,
            **outcome,
        }
    )


def _late(reason: str, detail: str) -> TaskFailed:
    return TaskFailed(family=UnavailableError.reason, reason=reason, detail=detail)
