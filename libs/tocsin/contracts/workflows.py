"""Workflows: how far each security request is, as its signed record says, and which QPU it was given."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.analysis import AnomalyScore, AssessmentMade, KernelResult, SecurityRequest
from tocsin.contracts.base import Message, MessageId, Nanoseconds, Probability, Text
from tocsin.contracts.quantum import Allocation

MAX_ATTEMPTS = 16


class StageName(StrEnum):
    """The stages of a workflow; what each waits for is in tocsin.workflow.dag."""

    ALLOCATE = "allocate"
    KERNEL = "kernel"
    ISOLATION_FOREST = "isolation_forest"
    RBF_SVM = "rbf_svm"
    KERNEL_SVM = "kernel_svm"
    JOIN = "join"


class StagePhase(StrEnum):
    """Where one stage is."""

    WAITING = "waiting"
    """For its inputs, or for a pause to pass."""
    ASKED = "asked"
    """A service is being asked to do it."""
    RUNNING = "running"
    """A service has taken it; its result is on its way."""
    FINISHED = "finished"


class StageRecord(Message):
    """One stage, in its present attempt."""

    phase: StagePhase = StagePhase.WAITING
    attempt: Annotated[int, Field(ge=0, le=MAX_ATTEMPTS)] = 0
    """Number of the attempt, from 1; 0 before the first."""
    since_ns: Nanoseconds = 0
    """When this attempt began."""
    due_ns: Nanoseconds = 0
    """Waiting: not before. Asked or running: given up then."""


class WorkflowRecord(Message):
    """One workflow: its record in the bucket ``workflows``. Everything that carrying on needs is here."""

    workflow: MessageId
    requester: Text
    """SPIFFE id of whoever submitted the request."""
    request: SecurityRequest
    begun_ns: Nanoseconds
    deadline_ns: Nanoseconds
    """What has not ended by then has failed."""
    stages: Annotated[dict[StageName, StageRecord], Field(max_length=len(StageName))]
    allocation: Allocation | None = None
    kernel: KernelResult | None = None
    scores: dict[StageName, AnomalyScore] = Field(default_factory=dict, max_length=len(StageName))
    ended: AssessmentMade | None = None
    announced: bool = False
    """The end stands in the stream EVENTS."""


class AllocationMade(Message):
    """A workflow was given a QPU: event ``workflow.allocation``, with the scores of all considered."""

    workflow: MessageId
    incident: MessageId
    qubits: Annotated[int, Field(ge=2)]
    required_fidelity: Probability
    allocation: Allocation
