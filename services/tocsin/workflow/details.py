"""The lines for people: what happened at a stage, in figures."""

from __future__ import annotations

from tocsin.contracts.analysis import ClassicalResult, KernelResult, Placement, SecurityRequest
from tocsin.contracts.quantum import Allocation, QpuQueued

_POOLS = 4


def wanted(request: SecurityRequest) -> str:
    """Say what QPU is asked for."""
    return f"{request.qubits} qubits, required fidelity {request.required_fidelity:.2f}"


def allocated(allocation: Allocation) -> str:
    """Say which QPU it is, and the score that it won by."""
    best = next((score for score in allocation.scores if score.qpu == allocation.qpu), allocation.scores[0])
    return (
        f"{allocation.qpu}: composite {best.composite:.3f} (performance {best.performance:.3f}, availability "
        f"{best.availability:.3f}, coherence {best.coherence:.3f}, connectivity {best.connectivity:.3f}), "
        f"estimated fidelity {best.estimated_fidelity:.3f}, of {len(allocation.scores)} scored"
    )


def queued(place: QpuQueued) -> str:
    """Say where a kernel waits."""
    return f"queued on {place.qpu}, {place.ahead} ahead"


def placed(placement: Placement) -> str:
    """Say which pool an operation went to, and what the pools were expected to take."""
    pools = ", ".join(f"{pool} {done_s:.2f} s" for pool, done_s in list(placement.considered.items())[:_POOLS])
    return f"pool {placement.pool}, begins in {placement.expected_wait_s:.2f} s; expected {pools}"


def measured(kernel: KernelResult) -> str:
    """Say what was run on the QPU."""
    return (
        f"{kernel.circuits} circuits of {kernel.shots} shots on {kernel.qpu} in {kernel.seconds:.2f} s, "
        f"estimated fidelity {kernel.estimated_fidelity:.3f}"
    )


def scored(result: ClassicalResult, by: str) -> str:
    """Say what a model found."""
    score = result.scores[0]
    verdict = "anomalous" if score.anomalous else "not anomalous"
    return f"above {score.baseline_quantile:.0%} of the baseline, {verdict}; {result.seconds:.2f} s by {by}"
