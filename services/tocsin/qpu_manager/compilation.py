"""Turn the kernel's template into a circuit for one QPU, on the layout where it is most likely to succeed.

The candidates are the best paths by :mod:`tocsin.qpu_manager.layouts`; each is transpiled at level 2 (level 1
chooses dead links) and the one with the highest ESP stays. A circuit is transpiled to a target of just the
path's qubits: the rest of a 156-qubit QPU would only cost time, here and in the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from qiskit import transpile
from qiskit.circuit import Measure, Parameter, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from tocsin.analysis.kernel import template
from tocsin.contracts.errors import UnavailableError
from tocsin.qpu_manager.calibrations import DEAD_ERROR, Calibration
from tocsin.qpu_manager.layouts import best_chains
from tocsin.qpu_manager.scoring import CircuitFigures, Gate, Schedule, connectivity, estimated_success, schedule

CANDIDATES = 3
"""Layouts that are transpiled for comparison. The best of three is within .005 of the best of twenty
(tests/unit/qpu_manager/test_execution.py)."""
OPTIMIZATION_LEVEL = 2
TRANSPILER_SEED = 2026
"""Any; fixed, so that the same calibration gives the same circuit in every process."""


@dataclass(frozen=True, eq=False)
class CompiledKernel:
    """The kernel circuit of one width on one QPU."""

    qpu: str
    layout: tuple[int, ...]
    """The QPU's qubit for each qubit of the circuit."""
    circuit: QuantumCircuit
    """Over ``len(layout)`` qubits, angles open."""
    target: Target
    """The QPU, reduced to the layout."""
    gates: tuple[Gate, ...]
    """The circuit's instructions, one each, on the QPU's qubits."""
    timing: Schedule
    figures: CircuitFigures


class Compiler:
    """Compiles for the QPUs that it is given and remembers the results; safe to call from threads."""

    def __init__(self, calibrations: Sequence[Calibration]) -> None:
        self.calibrations = {calibration.qpu: calibration for calibration in calibrations}
        self._done: dict[tuple[str, int], CompiledKernel | None] = {}
        self._lock = Lock()

    def kernel(self, qpu: str, qubits: int) -> CompiledKernel:
        """Return the kernel circuit for a QPU; tens of milliseconds at first, then nothing.

        Raises:
            UnavailableError: ``no_layout``: it has no path of that many usable qubits.
            InvalidInputError: No kernel circuit has that width.
        """
        compiled = self.find(qpu, qubits)
        if compiled is None:
            raise UnavailableError(f"{qpu} has no path of {qubits} usable qubits", reason="no_layout")
        return compiled

    def find(self, qpu: str, qubits: int) -> CompiledKernel | None:
        """Return the kernel circuit for a QPU, or None if it has no path of that many usable qubits."""
        with self._lock:
            if (qpu, qubits) not in self._done:
                self._done[qpu, qubits] = compile_kernel(self.calibrations[qpu], qubits)
            return self._done[qpu, qubits]


def compile_kernel(
    calibration: Calibration, qubits: int, candidates: int = CANDIDATES
) -> CompiledKernel | None:
    """Compile the kernel of ``qubits`` for a QPU on its best layout, None if there is no layout."""
    meant = template(qubits)
    compiled = (_compile(meant, calibration, layout) for layout in best_chains(calibration, qubits, candidates))
    return max(compiled, key=lambda kernel: kernel.figures.estimated_fidelity, default=None)


def _compile(meant: QuantumCircuit, calibration: Calibration, layout: tuple[int, ...]) -> CompiledKernel:
    target = reduced_target(calibration, layout)
    circuit = transpile(
        meant,
        target=target,
        optimization_level=OPTIMIZATION_LEVEL,
        initial_layout=list(range(len(layout))),
        seed_transpiler=TRANSPILER_SEED,
    )
    gates = _gates(circuit, layout)
    timing = schedule(gates, calibration)
    figures = CircuitFigures(
        estimated_fidelity=estimated_success(gates, timing.idles, calibration),
        duration_s=timing.duration_s,
        coherence_s=min(calibration.coherence_s(qubit) for qubit in layout),
        connectivity=connectivity(_gates(meant, layout), calibration),
    )
    return CompiledKernel(calibration.qpu, layout, circuit, target, gates, timing, figures)


def _gates(circuit: QuantumCircuit, layout: tuple[int, ...]) -> tuple[Gate, ...]:
    return tuple(
        Gate(step.operation.name, tuple(layout[circuit.find_bit(bit).index] for bit in step.qubits))
        for step in circuit.data
    )


def reduced_target(calibration: Calibration, layout: tuple[int, ...]) -> Target:
    """Return a target of the layout's qubits only, numbered as in the circuit, without dead gates."""
    place = {qubit: index for index, qubit in enumerate(layout)}
    target = Target(
        num_qubits=len(layout),
        qubit_properties=[QubitProperties(t1=calibration.t1_s[q], t2=calibration.t2_s[q]) for q in layout],
    )
    properties: dict[str, dict[tuple[int, ...], InstructionProperties]] = {}
    for (name, on), figures in calibration.gates.items():
        if figures.error < DEAD_ERROR and place.keys() >= set(on):
            properties.setdefault(name, {})[tuple(place[q] for q in on)] = InstructionProperties(
                duration=figures.duration_s, error=figures.error
            )
    standard = get_standard_gate_name_mapping()
    for name, by_qubits in properties.items():
        instruction = standard["rz"].base_class(Parameter("angle")) if name == "rz" else standard[name]
        target.add_instruction(instruction, by_qubits)
    target.add_instruction(
        Measure(),
        {
            (place[q],): InstructionProperties(
                duration=calibration.readout[q].duration_s, error=calibration.readout[q].error
            )
            for q in layout
        },
    )
    return target
