"""The quantum libraries' side of the service, behind one door.

Importing this module imports Qiskit, Aer and the snapshots: 0.3 GB and about three seconds. So the service
imports it in a thread, after it has begun to answer health checks, and knows only what is named here. Qiskit
itself must have been imported by a thread that does not end (QpuManagerService.prepare says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tocsin.analysis.kernel import template, width
from tocsin.contracts.analysis import KernelResult, KernelTask
from tocsin.contracts.quantum import QpuReservations, QpuStatus
from tocsin.qpu_manager import reservations, snapshots
from tocsin.qpu_manager.compilation import Compiler
from tocsin.qpu_manager.execution import Executor
from tocsin.qpu_manager.scoring import CircuitFigures


class QuantumPool:
    """The QPUs of this service. Loading, ``figures`` and ``run`` take up to seconds: call them in a thread."""

    def __init__(self, qpus: Sequence[str]) -> None:
        """Load the calibrations.

        Raises:
            InvalidInputError: An unknown or excluded QPU.
        """
        self.calibrations = {qpu: snapshots.load(qpu) for qpu in qpus}
        self._compiler = Compiler(tuple(self.calibrations.values()))
        self._executor = Executor(self._compiler)

    def figures(self, qubits: int) -> dict[str, CircuitFigures]:
        """Return what a kernel circuit of this width would be on every QPU that has a layout for it.

        Raises:
            InvalidInputError: ``bad_width``: no kernel circuit has that width.
        """
        found = {qpu: self._compiler.find(qpu, qubits) for qpu in self.calibrations}
        return {qpu: compiled.figures for qpu, compiled in found.items() if compiled is not None}

    def check(self, task: KernelTask) -> None:
        """Refuse a task that no QPU could run.

        Raises:
            InvalidInputError: Its vectors differ in length, or it is too wide or needs too many circuits.
        """
        template(width(task))

    def run(self, qpu: str, task: KernelTask) -> KernelResult:
        """Run a task on a QPU; see :meth:`tocsin.qpu_manager.execution.Executor.run`."""
        return self._executor.run(qpu, task)

    def status(self, book: QpuReservations, now_ns: int) -> QpuStatus:
        """Return a QPU's calibration in medians, and its load."""
        calibration = self.calibrations[book.qpu]
        return QpuStatus(
            qpu=calibration.qpu,
            qubits=calibration.qubits,
            up=True,
            calibrated=calibration.calibrated,
            median_t1_us=median(calibration.t1_s) * 1e6,
            median_t2_us=median(calibration.t2_s) * 1e6,
            median_two_qubit_error=calibration.median_two_qubit_error(),
            median_readout_error=median(readout.error for readout in calibration.readout),
            load_percent=reservations.load_percent(book, now_ns),
            queued=reservations.queued(book, now_ns),
        )
