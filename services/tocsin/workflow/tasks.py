"""What a stage asks of which service: the request's tasks, as operations with the digest of their attempt.

Everything follows from the record, so that an instance that takes a workflow over asks for the very same. The
seed is the same for all: the same incident against the same baseline gets the same tasks.
"""

from __future__ import annotations

from tocsin.analysis.assessment import expected_cost_s, kernel_svm_task, plan
from tocsin.contracts.analysis import ClassicalTask, Operation
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.quantum import QpuRun
from tocsin.contracts.workflows import StageName, WorkflowRecord
from tocsin.workflow.dag import operation_id


def question(record: WorkflowRecord, stage: StageName) -> QpuRun | Operation:
    """Return what a stage asks: a kernel of qpu-manager, a classical task of the balancer.

    Raises:
        InvariantBrokenError: ``inputs_missing``: the stage cannot have been started.
    """
    operation = operation_id(record.workflow, stage, record.stages[stage].attempt)
    if stage is StageName.KERNEL:
        return _kernel_run(record, operation)
    task = _classical_task(record, stage)
    return Operation(operation=operation, workflow=record.workflow, body=task, cost_s=expected_cost_s(task))


def _kernel_run(record: WorkflowRecord, operation: bytes) -> QpuRun:
    if record.allocation is None:
        raise InvariantBrokenError("a kernel without an allocation", reason="inputs_missing")
    return QpuRun(
        operation=operation,
        reservation=record.allocation.reservation,
        workflow=record.workflow,
        body=plan(record.request).kernel,
    )


def _classical_task(record: WorkflowRecord, stage: StageName) -> ClassicalTask:
    if stage is not StageName.KERNEL_SVM:
        return next(task for task in plan(record.request).classical if task.kind.value == stage.value)
    if record.kernel is None:
        raise InvariantBrokenError("an SVM without its kernel", reason="inputs_missing")
    return kernel_svm_task(record.kernel)
