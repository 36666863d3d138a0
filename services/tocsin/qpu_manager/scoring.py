"""How well a QPU suits a circuit: the composite score, and what it is made of.

Everything here is arithmetic on a calibration and on the transpiled circuit as a list of gates: no circuit
library, no clock. The formulas are those of the specification, and the weights are fixed:

    composite    = 0.3 performance + 0.25 availability + 0.25 coherence + 0.2 connectivity
    performance  = min(1, ESP / required fidelity)
    availability = 1 - load percent / 100
    coherence    = min(1, the QPU's coherence time / required coherence time)
    connectivity = the mean over the circuit's two-qubit interactions of 1 / distance on the coupling map

``min`` saturates: QPUs above the requirements tie in it. Ties are broken by ESP, then by the earliest
completion, then by name. A QPU that misses a requirement never wins, however idle it is, and is listed
after those that meet both.

What the score does not say: ESP is an estimate from a calibration that ages, not a promise; it
counts idling as lost where the circuit may not notice (the qubit happens to be in |0>).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log1p

from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.quantum import QpuScore
from tocsin.qpu_manager.calibrations import Calibration

PERFORMANCE_WEIGHT = 0.3
AVAILABILITY_WEIGHT = 0.25
COHERENCE_WEIGHT = 0.25
CONNECTIVITY_WEIGHT = 0.2

TIE_DIGITS = 9
"""Composites that agree to so many digits tie: what differs beyond is rounding."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate, or ``measure``, of a transpiled circuit, on the QPU's own qubits."""

    name: str
    qubits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """A qubit waits before a gate, after its first gate: it decoheres."""

    before: int
    """Index of the gate that it waits for."""
    qubit: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """When nothing happens: the circuit as late as possible, readouts ending together."""

    duration_s: float
    idles: tuple[Idle, ...]


@dataclass(frozen=True, slots=True)
class CircuitFigures:
    """What a circuit would be on one QPU, on the layout that was chosen there."""

    estimated_fidelity: float
    """ESP: the probability that no gate, readout or idling qubit fails."""
    duration_s: float
    coherence_s: float
    """The shortest T1 or T2 among the qubits that are used."""
    connectivity: float


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a request asks of a QPU."""

    fidelity: float
    tolerated_loss: float
    """Share of the state's coherence that may be lost, eps."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A QPU in the running."""

    qpu: str
    circuit: CircuitFigures
    load_percent: float
    wait_s: float
    """Until it would begin."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A scored QPU, and whether it meets the requirements."""

    score: QpuScore
    fits: bool


def schedule(gates: Sequence[Gate], calibration: Calibration) -> Schedule:
    """Time a circuit as late as possible (ALAP), so that qubits wait in |0> rather than in their states."""
    busy_s: dict[int, float] = {}  # from the gate on each qubit that comes next, to the end of the circuit
    waits_for: dict[int, int] = {}
    idles: list[Idle] = []
    for index in reversed(range(len(gates))):
        gate = gates[index]
        end_s = max(busy_s.get(qubit, 0.0) for qubit in gate.qubits)
        start_s = end_s + calibration.figures(gate.name, gate.qubits).duration_s
        for qubit in gate.qubits:
            idle_s = end_s - busy_s.get(qubit, 0.0)
            if idle_s > 0 and qubit in waits_for:
                idles.append(Idle(waits_for[qubit], qubit, idle_s))
            busy_s[qubit] = start_s
            waits_for[qubit] = index
    return Schedule(max(busy_s.values(), default=0.0), tuple(reversed(idles)))


def estimated_success(gates: Sequence[Gate], idles: Iterable[Idle], calibration: Calibration) -> float:
    """Return ESP: the product of 1 - error over gates and readouts, times exp(-idle / min(T1, T2)) a qubit."""
    success = 1.0
    for gate in gates:
        success *= 1.0 - calibration.figures(gate.name, gate.qubits).error
    return success * exp(-sum(idle.seconds / calibration.coherence_s(idle.qubit) for idle in idles))


def required_coherence_s(duration_s: float, tolerated_loss: float) -> float:
    """Return the coherence time for which exp(-duration / time) is 1 - ``tolerated_loss``."""
    return duration_s / -log1p(-tolerated_loss)


def connectivity(gates: Sequence[Gate], calibration: Calibration) -> float:
    """Return the mean of 1 / distance over the circuit's two-qubit interactions, 1 if there are none.

    Given the gates as the circuit means them, before routing: 1 if every pair that interacts sits on a live
    link, 1/2 if it is one qubit apart, 0 for a pair that no path joins. A pair counts once a gate.
    """
    distances = [_distance(*gate.qubits, calibration) for gate in gates if len(gate.qubits) == 2]
    if not distances:
        return 1.0
    return sum(1 / steps for steps in distances if steps) / len(distances)


def _distance(start: int, goal: int, calibration: Calibration) -> int:
    """Return the number of live links between two qubits, 0 if no path joins them."""
    steps = {start: 0}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        if here == goal:
            return steps[here]
        for neighbour in calibration.links.get(here, ()):
            if neighbour not in steps:
                steps[neighbour] = steps[here] + 1
                waiting.append(neighbour)
    return 0


def score(candidate: Candidate, required: Requirements) -> QpuScore:
    """Return the composite score of one QPU with all its parts."""
    circuit = candidate.circuit
    required_s = required_coherence_s(circuit.duration_s, required.tolerated_loss)
    performance = _share(circuit.estimated_fidelity, required.fidelity)
    availability = 1.0 - min(100.0, max(0.0, candidate.load_percent)) / 100.0
    coherence = _share(circuit.coherence_s, required_s)
    composite = (
        PERFORMANCE_WEIGHT * performance
        + AVAILABILITY_WEIGHT * availability
        + COHERENCE_WEIGHT * coherence
        + CONNECTIVITY_WEIGHT * circuit.connectivity
    )
    return QpuScore(
        qpu=candidate.qpu,
        performance=performance,
        availability=availability,
        coherence=coherence,
        connectivity=circuit.connectivity,
        composite=min(1.0, composite),
        estimated_fidelity=circuit.estimated_fidelity,
        duration_us=circuit.duration_s * 1e6,
        qpu_coherence_us=circuit.coherence_s * 1e6,
        required_coherence_us=required_s * 1e6,
    )


def _share(have: float, need: float) -> float:
    return 1.0 if have >= need else have / need


def rank(candidates: Iterable[Candidate], required: Requirements) -> tuple[Ranked, ...]:
    """Return the QPUs best first: those that meet the requirements, then the others."""

    def key(entry: tuple[Candidate, Ranked]) -> tuple[bool, float, float, float, str]:
        candidate, ranked = entry
        return (
            not ranked.fits,
            -round(ranked.score.composite, TIE_DIGITS),
            -ranked.score.estimated_fidelity,
            candidate.wait_s + candidate.circuit.duration_s,
            candidate.qpu,
        )

    scored = [(candidate, score(candidate, required)) for candidate in candidates]
    entries = [(c, Ranked(s, s.performance >= 1.0 and s.coherence >= 1.0)) for c, s in scored]
    return tuple(ranked for _, ranked in sorted(entries, key=key))


def require_fit(ranked: Sequence[Ranked], required: Requirements, qubits: int) -> tuple[QpuScore, ...]:
    """Return the scores, best first, the winner in front.

    Raises:
        UnavailableError: ``no_qpu_fits``, with the numbers of the best that there is.
    """
    if not ranked:
        raise UnavailableError(f"no QPU has {qubits} connected usable qubits", reason="no_qpu_fits")
    if not ranked[0].fits:
        best = max((entry.score for entry in ranked), key=lambda s: (s.estimated_fidelity, s.qpu))
        raise UnavailableError(
            f"no QPU runs {qubits} qubits at fidelity {required.fidelity:.3f} with a decoherence loss of"
            f" {required.tolerated_loss:.3f}; the best, {best.qpu}, has fidelity {best.estimated_fidelity:.3f}"
            f" and {best.qpu_coherence_us:.1f} us of coherence where {best.required_coherence_us:.1f} us"
            " are required",
            reason="no_qpu_fits",
            advice="ask for less fidelity, a larger loss or fewer qubits",
        )
    return tuple(entry.score for entry in ranked)
