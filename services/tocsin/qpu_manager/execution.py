"""Run a kernel task on Aer, with the noise of one QPU's calibration.

The noise is Aer's device model for the qubits in use: after each gate, relaxation (T1, T2, the gate's
duration) and as much depolarisation as the calibrated error asks for beyond it; at the end, readout errors,
symmetric as the calibration's target has them. Aer adds nothing where a qubit merely waits, so relaxation
channels stand in the circuit wherever the ALAP schedule leaves a qubit idle after its first gate.

Not modelled: crosstalk, leakage, drift between calibrations, correlated errors. Numbers from here say what the
calibration says, not what the machine would do today.

All circuits of a task differ in their angles only, so Aer gets one circuit and a table of angles: one call,
and no circuit is built in Python.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock

from qiskit.circuit import QuantumCircuit
from qiskit.exceptions import QiskitError
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, thermal_relaxation_error
from qiskit_aer.noise.device.models import basic_device_gate_errors, basic_device_readout_errors

from tocsin.analysis.kernel import assemble, bindings, width
from tocsin.contracts.analysis import KernelResult, KernelTask
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.qpu_manager.calibrations import Calibration
from tocsin.qpu_manager.compilation import CompiledKernel, Compiler


@dataclass(frozen=True, eq=False)
class Prepared:
    """A compiled circuit with its idle noise in it, and the simulator with the gates' noise."""

    compiled: CompiledKernel
    circuit: QuantumCircuit
    simulator: AerSimulator


class Executor:
    """Runs tasks on simulated QPUs. Building noise takes a while and is remembered; safe for threads."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._prepared: dict[tuple[str, int], Prepared] = {}
        self._lock = Lock()

    def run(self, qpu: str, task: KernelTask) -> KernelResult:
        """Run every circuit of a task on a QPU and return the kernel as measured.

        Raises:
            InvalidInputError: The task is malformed, too wide or too large.
            UnavailableError: The QPU has no layout for it.
        """
        prepared = self.prepare(qpu, width(task))
        begun = time.perf_counter()
        zeros = sample(prepared, task)
        return assemble(
            task,
            zeros,
            qpu=qpu,
            estimated_fidelity=prepared.compiled.figures.estimated_fidelity,
            seconds=time.perf_counter() - begun,
        )

    def prepare(self, qpu: str, qubits: int) -> Prepared:
        """Return circuit and noise for a width on a QPU, built once."""
        with self._lock:
            if (qpu, qubits) not in self._prepared:
                compiled = self._compiler.kernel(qpu, qubits)
                self._prepared[qpu, qubits] = _prepare(compiled, self._compiler.calibrations[qpu])
            return self._prepared[qpu, qubits]


def sample(prepared: Prepared, task: KernelTask) -> tuple[float, ...]:
    """Return the share of all-zero readings of every circuit of a task; the task's seed fixes them."""
    columns = zip(*bindings(task), strict=True)
    angles = sorted(prepared.circuit.parameters, key=lambda angle: int(angle.index))
    table = {angle: list(column) for angle, column in zip(angles, columns, strict=True)}
    try:
        outcome = prepared.simulator.run(
            prepared.circuit, parameter_binds=[table], shots=task.shots, seed_simulator=task.seed
        ).result()
    except QiskitError as error:
        raise InvariantBrokenError(f"the simulator failed: {error}", reason="simulation_failed") from error
    if not outcome.success:
        raise InvariantBrokenError(f"the simulator failed: {outcome.status}", reason="simulation_failed")
    # Counts are keyed by the measured bits as a hexadecimal number.
    return tuple(circuit.data.counts.get("0x0", 0) / task.shots for circuit in outcome.results)


def _prepare(compiled: CompiledKernel, calibration: Calibration) -> Prepared:
    simulator = AerSimulator(
        method="density_matrix", noise_model=_noise(compiled), max_parallel_threads=1, enable_truncation=False
    )
    return Prepared(compiled, _with_idle_noise(compiled, calibration), simulator)


def _noise(compiled: CompiledKernel) -> NoiseModel:
    noise = NoiseModel(basis_gates=sorted(set(compiled.target.operation_names) - {"measure"}))
    for name, qubits, error in basic_device_gate_errors(target=compiled.target):
        noise.add_quantum_error(error, name, qubits)
    for qubits, error in basic_device_readout_errors(target=compiled.target):
        noise.add_readout_error(error, qubits)
    return noise


def _with_idle_noise(compiled: CompiledKernel, calibration: Calibration) -> QuantumCircuit:
    waits = {(idle.before, idle.qubit): idle.seconds for idle in compiled.timing.idles}
    noisy = compiled.circuit.copy_empty_like()
    for index, (step, gate) in enumerate(zip(compiled.circuit.data, compiled.gates, strict=True)):
        for bit, qubit in zip(step.qubits, gate.qubits, strict=True):
            if (index, qubit) in waits:
                relaxation = thermal_relaxation_error(
                    calibration.t1_s[qubit], calibration.t2_s[qubit], waits[index, qubit]
                )
                noisy.append(relaxation.to_quantumchannel().to_instruction(), [bit])
        noisy.append(step)
    return noisy
