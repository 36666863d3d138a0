"""Whatever the order, the losses and the delays: stages wait for their inputs, and every workflow ends."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.workflow.workflow_cases import ANALYST, allocation, done_of, request

from tocsin.contracts.analysis import TaskFailed
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.workflows import StageName, StagePhase, WorkflowRecord
from tocsin.workflow import dag

LIMITS = dag.Limits(stage_timeout_s=10, workflow_timeout_s=100, retry_pause_s=1)
S = 1_000_000_000


def holds(record: WorkflowRecord) -> None:
    for stage, present in record.stages.items():
        if present.phase in {StagePhase.ASKED, StagePhase.RUNNING} and record.ended is None:
            assert all(record.stages[needed].phase is StagePhase.FINISHED for needed in dag.INPUTS[stage])
        assert present.attempt <= dag.ATTEMPTS[stage] + dag.ATTEMPTS[StageName.KERNEL]
    if record.ended is not None:
        assert (record.ended.assessment is None) != (record.ended.failure is None)


def sender_of(stage: StageName) -> ServiceName:
    return ServiceName.QPU_MANAGER if stage is StageName.KERNEL else ServiceName.WORKER


def answer(record: WorkflowRecord, stage: StageName, now_ns: int) -> WorkflowRecord:
    """Let what is asked be done."""
    if stage is StageName.ALLOCATE:
        attempt = record.stages[stage].attempt
        return dag.allocated(record, attempt, allocation(), LIMITS, now_ns=now_ns).record
    return dag.done(record, done_of(record, stage), sender_of(stage), LIMITS, now_ns=now_ns).record


@given(st.lists(st.integers(0, 5), max_size=12))
def test_any_order_of_results_leads_to_the_same_assessment(order: list[int]) -> None:
    record = dag.begin(ANALYST, request(), LIMITS, now_ns=0).record
    picks = iter(order)
    while record.ended is None:
        awaited = dag.asked(record)
        record = answer(record, awaited[next(picks, 0) % len(awaited)], S)
        holds(record)
    reference = dag.begin(ANALYST, request(), LIMITS, now_ns=0).record
    while reference.ended is None:
        reference = answer(reference, dag.asked(reference)[-1], S)
    assert record.ended == reference.ended
    assert record.ended.assessment is not None


ERRORS = [
    UnavailableError("gone", reason="no_answer"),
    ExhaustedError("full", reason="qpus_full"),
    InvalidInputError("who?", reason="unknown_reservation"),
]
FAILED = TaskFailed(family="unavailable", reason="qpu_down", detail="")

events = st.tuples(
    st.sampled_from(("done", "taken", "refused", "failed", "tick", "twice", "stale")),
    st.sampled_from(list(StageName)),
    st.integers(0, 15),
)


@settings(max_examples=200)
@given(st.lists(events, max_size=40))
def test_every_workflow_ends_and_no_stage_starts_before_its_inputs(
    history: list[tuple[str, StageName, int]],
) -> None:
    record = dag.begin(ANALYST, request(), LIMITS, now_ns=0).record
    earlier, now_ns = record, 0
    for kind, stage, seconds in history:
        now_ns += seconds * S
        attempt = record.stages[stage].attempt
        before = record
        if kind == "done":
            record = answer(record, stage, now_ns)
        elif kind == "twice":
            record = answer(answer(record, stage, now_ns), stage, now_ns)
        elif kind == "stale":
            result = done_of(earlier, stage)
            record = dag.done(record, result, sender_of(stage), LIMITS, now_ns=now_ns).record
        elif kind == "taken":
            record = dag.taken(record, stage, attempt, "", LIMITS, now_ns=now_ns).record
        elif kind == "refused":
            record = dag.refused(
                record, stage, attempt, ERRORS[seconds % len(ERRORS)], LIMITS, now_ns=now_ns
            ).record
        elif kind == "failed":
            result = done_of(record, stage, FAILED)
            record = dag.done(record, result, sender_of(stage), LIMITS, now_ns=now_ns).record
        else:
            record = dag.ticked(record, LIMITS, now_ns=now_ns).record
        holds(record)
        if before.ended is not None:
            assert record is before
        earlier = before
    end_ns = now_ns + 101 * S
    assert dag.ticked(record, LIMITS, now_ns=end_ns).record.ended is not None


@given(st.lists(events, max_size=25))
def test_a_tick_is_due_exactly_when_it_moves(history: list[tuple[str, StageName, int]]) -> None:
    record, now_ns = dag.begin(ANALYST, request(), LIMITS, now_ns=0).record, 0
    for kind, stage, seconds in history:
        now_ns += seconds * S
        if kind in {"done", "twice"}:
            record = answer(record, stage, now_ns)
        elif kind == "refused":
            attempt = record.stages[stage].attempt
            record = dag.refused(record, stage, attempt, ERRORS[0], LIMITS, now_ns=now_ns).record
        moved = dag.ticked(record, LIMITS, now_ns=now_ns).record
        assert (moved != record) == dag.is_due(record, now_ns=now_ns)
        record = moved
