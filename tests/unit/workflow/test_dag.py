from __future__ import annotations

from dataclasses import dataclass

import pytest
from unit.workflow.workflow_cases import (
    ANALYST,
    allocation,
    classical_result,
    done_of,
    kernel_result,
    request,
)

from tocsin.contracts.analysis import StageState, TaskFailed, Verdict
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
)
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.quantum import QpuRun
from tocsin.contracts.workflows import StageName, StagePhase, WorkflowRecord
from tocsin.workflow import dag
from tocsin.workflow.tasks import question

LIMITS = dag.Limits(stage_timeout_s=10, workflow_timeout_s=100, retry_pause_s=1)
S = 1_000_000_000
T0 = 1_000 * S
ALLOCATE, KERNEL, KERNEL_SVM = StageName.ALLOCATE, StageName.KERNEL, StageName.KERNEL_SVM
FOREST, RBF, JOIN = StageName.ISOLATION_FOREST, StageName.RBF_SVM, StageName.JOIN


def begun() -> WorkflowRecord:
    return dag.begin(ANALYST, request(), LIMITS, now_ns=T0).record


def with_qpu() -> WorkflowRecord:
    return dag.allocated(begun(), 1, allocation(), LIMITS, now_ns=T0 + S).record


def finish(record: WorkflowRecord, stage: StageName, now_ns: int = T0 + 2 * S) -> dag.Move:
    sender = ServiceName.QPU_MANAGER if stage is KERNEL else ServiceName.WORKER
    return dag.done(record, done_of(record, stage), sender, LIMITS, now_ns=now_ns)


def refuse(record: WorkflowRecord, stage: StageName, error: TocsinError, now_ns: int = T0 + S) -> dag.Move:
    return dag.refused(record, stage, record.stages[stage].attempt, error, LIMITS, now_ns=now_ns)


def test_what_needs_no_input_starts_at_once_and_nothing_else() -> None:
    move = dag.begin(ANALYST, request(), LIMITS, now_ns=T0)
    assert dag.asked(move.record) == (ALLOCATE, FOREST, RBF)
    assert [(told.stage, told.state) for told in move.stages] == [("allocate", StageState.STARTED)]
    assert move.stages[0].detail == "4 qubits, required fidelity 0.50"


def test_a_whole_workflow_ends_in_one_assessment_with_both_sides() -> None:
    record = with_qpu()
    for stage in (FOREST, KERNEL, RBF):
        record = finish(record, stage).record
        assert record.ended is None
    move = finish(record, KERNEL_SVM, T0 + 5 * S)
    made = move.record.ended
    assert made is not None
    assert made.requester == ANALYST
    assert made.failure is None
    assert made.assessment is not None
    assert made.assessment.verdict is Verdict.MALICIOUS
    assert made.assessment.qpu == "torino"
    assert made.assessment.quantum.baseline_quantile == 0.96
    assert [score.baseline_quantile for score in made.assessment.classical] == [0.97, 0.99]
    last = move.stages[-1]
    assert (last.stage, last.state) == ("join", StageState.FINISHED)
    assert last.detail.startswith("malicious, confidence 0.9")
    assert dag.asked(move.record) == ()


def test_stages_tell_what_matters_and_how_long_it_took() -> None:
    move = dag.allocated(begun(), 1, allocation(), LIMITS, now_ns=T0 + S // 2)
    assert move.stages[0].elapsed_ms == 500
    assert "torino: composite 0.975" in move.stages[0].detail
    record = dag.taken(move.record, KERNEL, 1, "queued on torino, 0 ahead", LIMITS, now_ns=T0 + S).record
    move = finish(record, KERNEL, T0 + 3 * S)
    assert "230 circuits of 1024 shots on torino in 1.50 s" in move.stages[0].detail
    assert move.stages[0].elapsed_ms == 2500


@dataclass(frozen=True)
class Refusal:
    error: TocsinError
    again: bool


@pytest.mark.parametrize(
    "case",
    [
        Refusal(UnavailableError("no pool", reason="no_pool"), again=True),
        Refusal(ExhaustedError("full", reason="pools_full"), again=True),
        Refusal(ConflictError("stale", reason="stale"), again=True),
        Refusal(InvalidInputError("bad", reason="bad_shape"), again=False),
        Refusal(DeniedError("no", reason="sender_not_allowed"), again=False),
    ],
    ids=lambda case: case.error.reason,
)
def test_a_refusal_is_followed_by_another_attempt_or_by_the_end(case: Refusal) -> None:
    move = refuse(begun(), FOREST, case.error)
    assert move.stages[0].state is StageState.FAILED
    if not case.again:
        assert move.record.ended is not None
        assert move.record.ended.failure is not None
        assert move.record.ended.failure.reason == case.error.reason
        return
    assert move.record.ended is None
    assert FOREST not in dag.asked(move.record)
    assert not dag.is_due(move.record, now_ns=T0 + 2 * S - 1)
    retried = dag.ticked(move.record, LIMITS, now_ns=T0 + 2 * S).record
    assert retried.stages[FOREST].attempt == 2
    assert FOREST in dag.asked(retried)


def test_pauses_double_and_attempts_end() -> None:
    record, now_ns, pauses = begun(), T0, []
    while record.ended is None:
        record = refuse(record, RBF, UnavailableError("no pool", reason="no_pool"), now_ns).record
        if record.ended is None:
            pauses.append((record.stages[RBF].due_ns - now_ns) / S)
            now_ns = record.stages[RBF].due_ns
            record = dag.ticked(record, LIMITS, now_ns=now_ns).record
    assert pauses == [1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8]
    assert record.ended.failure is not None
    assert record.ended.failure.reason == "no_pool"


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("expired", reason="reservation_expired"),
        InvalidInputError("who?", reason="unknown_reservation"),
    ],
    ids=lambda error: error.reason,
)
def test_a_lost_allocation_is_made_again_once(error: TocsinError) -> None:
    record = refuse(with_qpu(), KERNEL, error).record
    assert record.allocation is None
    assert ALLOCATE in dag.asked(record)
    record = dag.allocated(record, 2, allocation("fez"), LIMITS, now_ns=T0 + 3 * S).record
    record = dag.ticked(record, LIMITS, now_ns=T0 + 4 * S).record
    asked = question(record, KERNEL)
    assert isinstance(asked, QpuRun)
    assert asked.operation == dag.operation_id(record.workflow, KERNEL, 2)
    record = refuse(record, KERNEL, error, T0 + 4 * S).record
    assert record.ended is not None
    assert record.ended.failure is not None


def test_a_kernel_that_failed_on_its_qpu_is_allocated_anew() -> None:
    failed = TaskFailed(family="unavailable", reason="qpu_down", detail="")
    record = with_qpu()
    move = dag.done(record, done_of(record, KERNEL, failed), ServiceName.QPU_MANAGER, LIMITS, now_ns=T0 + S)
    assert ALLOCATE in dag.asked(move.record)
    assert move.record.stages[KERNEL].phase is StagePhase.WAITING


def test_a_stage_that_takes_too_long_is_tried_again_under_another_digest() -> None:
    record = dag.taken(begun(), RBF, 1, "pool classical", LIMITS, now_ns=T0 + S).record
    late = done_of(record, RBF)
    move = dag.ticked(record, LIMITS, now_ns=T0 + 10 * S)
    assert "stage_timed_out" in {told.detail.partition(":")[0] for told in move.stages}
    record = dag.ticked(move.record, LIMITS, now_ns=T0 + 11 * S).record
    assert record.stages[RBF].attempt == 2
    assert dag.done(record, late, ServiceName.WORKER, LIMITS, now_ns=T0 + 12 * S).record is record
    assert finish(record, RBF).record.stages[RBF].phase is StagePhase.FINISHED


def test_a_workflow_fails_at_its_deadline_whatever_it_waits_for() -> None:
    record = with_qpu()
    assert dag.is_due(record, now_ns=T0 + 100 * S)
    made = dag.ticked(record, LIMITS, now_ns=T0 + 100 * S).record.ended
    assert made is not None
    assert made.failure is not None
    assert made.failure.reason == "workflow_timed_out"


def test_a_failed_task_ends_the_workflow_with_the_tasks_reason() -> None:
    record = begun()
    failed = TaskFailed(family="invalid_input", reason="bad_kernel", detail="no positive eigenvalue")
    made = dag.done(
        record, done_of(record, FOREST, failed), ServiceName.WORKER, LIMITS, now_ns=T0 + S
    ).record.ended
    assert made is not None
    assert made.failure == failed
    assert made.assessment is None


def test_what_is_not_awaited_moves_nothing() -> None:
    record = with_qpu()
    finished = finish(record, FOREST).record
    worker, manager = ServiceName.WORKER, ServiceName.QPU_MANAGER
    for standing, result, sender in (
        (finished, done_of(record, FOREST), worker),
        (record, done_of(record, KERNEL), worker),
        (record, done_of(record, FOREST), manager),
        (record, done_of(record, FOREST), None),
        (record, done_of(record, KERNEL_SVM), worker),
    ):
        assert dag.done(standing, result, sender, LIMITS, now_ns=T0 + 2 * S).record is standing
    assert dag.allocated(record, 1, allocation(), LIMITS, now_ns=T0).record is record
    assert dag.taken(record, RBF, 7, "", LIMITS, now_ns=T0).record is record


@pytest.mark.parametrize(("stage", "wrong"), [(KERNEL, classical_result(0.5)), (FOREST, kernel_result())])
def test_a_result_of_another_kind_ends_the_workflow(stage: StageName, wrong: object) -> None:
    record = with_qpu()
    sender = ServiceName.QPU_MANAGER if stage is KERNEL else ServiceName.WORKER
    result = done_of(record, stage).model_copy(update={"outcome": wrong})
    made = dag.done(record, result, sender, LIMITS, now_ns=T0 + S).record.ended
    assert made is not None
    assert made.failure is not None
    assert made.failure.reason == "unexpected_result"


def test_a_result_may_come_before_the_answer_that_it_was_placed() -> None:
    record = begun()
    move = finish(record, RBF)
    assert [told.state for told in move.stages] == [StageState.STARTED, StageState.FINISHED]
    assert dag.taken(move.record, RBF, 1, "pool x", LIMITS, now_ns=T0 + 3 * S).record is move.record


def test_the_same_request_is_the_same_workflow_and_another_requesters_is_not() -> None:
    assert begun().workflow == begun().workflow
    other = dag.begin("spiffe://test.tocsin/agent/analyst/a2", request(), LIMITS, now_ns=T0).record
    assert other.workflow != begun().workflow
    assert dag.begin(ANALYST, request(1), LIMITS, now_ns=T0).record.workflow != begun().workflow


def test_digests_differ_by_workflow_stage_and_attempt() -> None:
    digests = {
        dag.operation_id(workflow, stage, attempt)
        for workflow in (bytes(16), bytes([1] * 16))
        for stage in StageName
        for attempt in (1, 2)
    }
    assert len(digests) == 2 * len(StageName) * 2


def test_questions_are_the_same_for_whoever_takes_the_workflow_over() -> None:
    record = finish(with_qpu(), KERNEL).record
    for stage in (KERNEL, FOREST, RBF, KERNEL_SVM):
        assert question(record, stage) == question(WorkflowRecord.model_validate(record.model_dump()), stage)


def test_a_question_without_its_input_is_a_bug_and_says_so() -> None:
    for stage in (KERNEL, KERNEL_SVM):
        with pytest.raises(TocsinError) as caught:
            question(begun(), stage)
        assert caught.value.reason == "inputs_missing"
