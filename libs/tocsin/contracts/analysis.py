"""Security requests, their tasks, and the assessment that they are joined into."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from tocsin.contracts.base import Digest, Message, MessageId, Name, Probability, Text
from tocsin.contracts.observations import Finding, Incident, Technique
from tocsin.contracts.response import Command

Vector = Annotated[tuple[float, ...], Field(min_length=1, max_length=32)]
Matrix = Annotated[tuple[Vector, ...], Field(min_length=1, max_length=256)]
KernelMatrix = Annotated[
    tuple[Annotated[tuple[float, ...], Field(min_length=1, max_length=256)], ...],
    Field(min_length=1, max_length=256),
]


class SecurityRequest(Message):
    """What an analyst asks of workflow: assess this incident."""

    incident: Incident
    baseline: Name
    """Name of the baseline that the models are fitted on; never the input under test."""
    qubits: Annotated[int, Field(ge=2, le=6)] = 4
    shots: Annotated[int, Field(ge=128, le=8192)] = 1024
    required_fidelity: Probability = 0.8


class WorkflowAccepted(Message):
    """The workflow was recorded and will be carried out."""

    workflow: MessageId


class ClassicalKind(StrEnum):
    """The classical tasks that workers know."""

    ISOLATION_FOREST = "isolation_forest"
    RBF_SVM = "rbf_svm"
    KERNEL_SVM = "kernel_svm"


class ClassicalTask(Message):
    """One anomaly score to compute.

    ``train`` are baseline samples, ``test`` the samples to score, rows of scaled features. For
    ``kernel_svm`` they are kernel values instead: train by train, and test by train.
    """

    task: Literal["classical"] = "classical"
    kind: ClassicalKind
    train: KernelMatrix
    test: KernelMatrix
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class KernelTask(Message):
    """A fidelity kernel to estimate on a QPU: |<phi(x)|phi(y)>|^2 for train by train and test by train."""

    task: Literal["kernel"] = "kernel"
    train: Matrix
    test: Matrix
    shots: Annotated[int, Field(ge=128, le=8192)]
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class AnomalyScore(Message):
    """How unlike the baseline a sample is."""

    model: Annotated[str, Field(max_length=64)]
    score: float
    """The model's own scale; larger is more anomalous."""
    baseline_quantile: Probability
    """Share of the baseline samples that score lower, each scored by a model that was fitted without it
    where that is affordable."""
    anomalous: bool
    train_samples: Annotated[int, Field(ge=1)]


class ClassicalResult(Message):
    """Scores for the test samples, in their order."""

    result: Literal["classical"] = "classical"
    scores: Annotated[tuple[AnomalyScore, ...], Field(min_length=1, max_length=256)]
    seconds: Annotated[float, Field(ge=0)]


class KernelResult(Message):
    """A fidelity kernel as measured: classical data, after the measurement."""

    result: Literal["kernel"] = "kernel"
    train: KernelMatrix
    """Train by train, symmetric."""
    test: KernelMatrix
    """Test by train."""
    circuits: Annotated[int, Field(ge=1)]
    shots: Annotated[int, Field(ge=1)]
    qpu: Name
    estimated_fidelity: Probability
    """ESP of the transpiled circuit on the layout that was used."""
    seconds: Annotated[float, Field(ge=0)]


class TaskFailed(Message):
    """A task that cannot be done, and why."""

    result: Literal["failed"] = "failed"
    family: Annotated[str, Field(max_length=32)]
    reason: Annotated[str, Field(max_length=64)]
    detail: Text


class Verdict(StrEnum):
    """What the analysis concludes."""

    MALICIOUS = "malicious"
    SUSPICIOUS = "suspicious"
    BENIGN = "benign"


class Assessment(Message):
    """The joined outcome of one security request."""

    kind: Literal["assessment"] = "assessment"
    workflow: MessageId
    incident: MessageId
    subject: str
    verdict: Verdict
    confidence: Probability
    """Documented in tocsin.analysis.assessment: a weighted agreement of the detectors, not a probability."""
    technique: Technique
    quantum: AnomalyScore
    classical: Annotated[tuple[AnomalyScore, ...], Field(min_length=1, max_length=8)]
    qpu: Name
    estimated_fidelity: Probability
    evidence: Annotated[tuple[Text, ...], Field(max_length=32)]
    finding: Finding
    recommended: Command | None
    """The response to propose; None where nothing should be done."""
    baseline: Name


class StageState(StrEnum):
    """Where one task of a workflow is."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


class WorkflowStage(Message):
    """Progress of a workflow: event ``workflow.stage``."""

    workflow: MessageId
    incident: MessageId
    stage: Annotated[str, Field(max_length=64)]
    state: StageState
    detail: Text
    elapsed_ms: Annotated[float, Field(ge=0)]


class AssessmentMade(Message):
    """A workflow ended: event ``workflow.assessment``. One of the two is set."""

    workflow: MessageId
    incident: MessageId
    requester: Text
    assessment: Assessment | None = None
    failure: TaskFailed | None = None


class Operation(Message):
    """Work to place: what it costs, what it is, where its result goes."""

    operation: Digest
    """Deduplication key: the same work placed twice is done once."""
    workflow: MessageId
    body: ClassicalTask
    cost_s: Annotated[float, Field(gt=0, le=3600)]
    """Expected seconds on a reference core."""


class Placement(Message):
    """Where an operation went, and why."""

    operation: Digest
    pool: Name
    expected_wait_s: Annotated[float, Field(ge=0)]
    considered: Annotated[dict[Name, float], Field(max_length=64)]
    """Expected completion in seconds by pool."""


class Work(Message):
    """An operation on its way to a worker of a pool."""

    operation: Operation
    pool: Name


class WorkDone(Message):
    """Result of a task, on its way to the workflow that asked for it."""

    operation: Digest
    workflow: MessageId
    outcome: Annotated[ClassicalResult | KernelResult | TaskFailed, Field(discriminator="result")]
    by: Text
    """Who did it: the worker's token, or the QPU's name."""


class PoolStatus(Message):
    """A worker tells its pool's balancer how it fares."""

    pool: Name
    worker: Name
    slots: Annotated[int, Field(ge=1, le=1024)]
    busy: Annotated[int, Field(ge=0, le=1024)]
    done: Annotated[int, Field(ge=0)]
    speed: Annotated[float, Field(gt=0, le=1e6)]
    """Measured: expected seconds of finished work over the seconds that it took."""
    recent: Annotated[tuple[Digest, ...], Field(max_length=64)] = ()
    """The operations that it ended last, oldest first."""
