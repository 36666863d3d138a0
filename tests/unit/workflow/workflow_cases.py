"""What the workflow's tests share: a request, and answers that look like the services'."""

from __future__ import annotations

from tocsin.analysis.baseline import OFFICE
from tocsin.contracts.analysis import (
    AnomalyScore,
    ClassicalResult,
    KernelResult,
    SecurityRequest,
    TaskFailed,
    WorkDone,
)
from tocsin.contracts.observations import Finding, FindingKind, Incident, Technique, WindowFeatures
from tocsin.contracts.quantum import Allocation, QpuScore
from tocsin.contracts.workflows import StageName, WorkflowRecord
from tocsin.workflow.dag import operation_id

ANALYST = "spiffe://test.tocsin/agent/analyst/a1"
HOST = "10.0.0.5"


def features() -> WindowFeatures:
    return WindowFeatures(
        host=HOST,
        window_start_s=0,
        window_s=300,
        connections=900,
        distinct_ports=400,
        distinct_peers=3,
        rejected_share=0.98,
        interval_regularity=0.7,
        port_concentration=0.01,
        bytes_sent=0,
        bytes_received=0,
    )


def request(number: int = 0, *, qubits: int = 4, with_features: bool = True) -> SecurityRequest:
    finding = Finding(
        kind=FindingKind.SCAN,
        subject=HOST,
        internal=True,
        targets=("10.0.0.9",),
        score=0.9,
        technique=Technique(id="T1046", name="Network Service Discovery"),
        evidence=("400 ports on 3 hosts, 98% rejected",),
        features=features() if with_features else None,
        source="test",
        first_s=0,
        last_s=300,
        connections=900,
    )
    incident = Incident(incident=number.to_bytes(16), primary=finding, alerts=())
    return SecurityRequest(incident=incident, baseline=OFFICE, qubits=qubits, required_fidelity=0.5)


def allocation(qpu: str = "torino") -> Allocation:
    score = QpuScore(
        qpu=qpu,
        performance=1,
        availability=0.9,
        coherence=1,
        connectivity=1,
        composite=0.975,
        estimated_fidelity=0.93,
        duration_us=3,
        qpu_coherence_us=140,
        required_coherence_us=28,
    )
    return Allocation(reservation=bytes(16), qpu=qpu, scores=(score,), expires_ns=2**62)


def kernel_result() -> KernelResult:
    train = tuple(tuple(1.0 if i == j else 0.5 for j in range(20)) for i in range(20))
    return KernelResult(
        train=train,
        test=((0.1,) * 20,),
        circuits=230,
        shots=1024,
        qpu="torino",
        estimated_fidelity=0.93,
        seconds=1.5,
    )


def classical_result(quantile: float) -> ClassicalResult:
    score = AnomalyScore(
        model="m", score=1.0, baseline_quantile=quantile, anomalous=quantile >= 0.95, train_samples=20
    )
    return ClassicalResult(scores=(score,), seconds=0.2)


QUANTILES = {StageName.ISOLATION_FOREST: 0.97, StageName.RBF_SVM: 0.99, StageName.KERNEL_SVM: 0.96}


def outcome_of(stage: StageName) -> ClassicalResult | KernelResult:
    """Return what the stage's executor finds, the same each time; nonsense for a stage that has none."""
    return kernel_result() if stage is StageName.KERNEL else classical_result(QUANTILES.get(stage, 0.5))


def done_of(
    record: WorkflowRecord,
    stage: StageName,
    outcome: ClassicalResult | KernelResult | TaskFailed | None = None,
) -> WorkDone:
    """Return the result of a stage's present attempt."""
    return WorkDone(
        operation=operation_id(record.workflow, stage, record.stages[stage].attempt),
        workflow=record.workflow,
        outcome=outcome or outcome_of(stage),
        by="service.worker.0",
    )
