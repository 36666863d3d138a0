"""Fidelity-kernel circuits: what a :class:`KernelTask` asks a QPU to measure, and how the answer is read.

The kernel of two samples is the fidelity of their states, ``|<phi(y)|phi(x)>|^2`` with ``|phi(x)> =
U(x)|0...0>``, measured by compute-uncompute: run ``U(x)``, then the inverse of ``U(y)``, and count how often
every qubit reads 0 (Havlicek et al., Nature 567, 209 (2019), section "quantum kernel estimation").

``U(x) = D(x) H`` is one repetition of the ZZ feature map on a line of qubits, ``D(x) = exp(-i sum_i c x_i Z_i
- i sum_i c^2 x_i x_(i+1) Z_i Z_(i+1))``, with *c* = :data:`BANDWIDTH`. The two diagonal layers that meet in the
middle of compute-uncompute, ``D(x)`` and the inverse of ``D(y)``, are one diagonal layer whose angles are
differences. This is an identity, not an approximation, and it halves the two-qubit gates, thus the error.

So every circuit of a task is the same gates with other angles: a QPU manager transpiles :func:`template`
once and binds it once a pair. Nothing here runs a circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, product, starmap

from qiskit.circuit import ParameterVector, QuantumCircuit

from tocsin.contracts.analysis import KernelResult, KernelTask, Vector
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError

MIN_QUBITS = 2
MAX_QUBITS = 8
"""Density matrices grow as 4^n: at 8 qubits a circuit costs 16 times what it costs at 6."""
MAX_CIRCUITS = 2048
"""Circuits of one task: 63 samples against themselves, or a minute and less of a QPU's time at 6 qubits."""

BANDWIDTH = 0.4
"""Factor on the angles. Without one the kernel concentrates: every two samples look equally unlike, and shots
cannot tell (Shaydulin and Wild, arXiv 2111.05451). Chosen among 0.3 to 1 on synthetic clusters at 2 to 6
qubits, 16 baseline samples and 1,024 shots, by the AUC of a one-class SVM (6 qubits: .70 against .52 at 1)."""


def template(qubits: int) -> QuantumCircuit:
    """Return the circuit of every pair of samples of ``qubits`` features, with its angles left open.

    The parameters are ``angle[0..2n-2]``, in the order of :func:`angles`; bit *i* is qubit *i*'s measurement.

    Raises:
        InvalidInputError: ``qubits`` is not from 2 to 8.
    """
    if not MIN_QUBITS <= qubits <= MAX_QUBITS:
        raise InvalidInputError(
            f"a kernel circuit has {MIN_QUBITS} to {MAX_QUBITS} qubits, not {qubits}", reason="bad_width"
        )
    angle = ParameterVector("angle", 2 * qubits - 1)
    circuit = QuantumCircuit(qubits, qubits, name=f"fidelity-kernel-{qubits}")
    circuit.h(range(qubits))
    for qubit in range(qubits):
        circuit.p(angle[qubit], qubit)
    # The ZZ terms commute. Even links first, then odd ones: two steps deep, whatever the width.
    for first in (*range(0, qubits - 1, 2), *range(1, qubits - 1, 2)):
        circuit.cx(first, first + 1)
        circuit.p(angle[qubits + first], first + 1)
        circuit.cx(first, first + 1)
    circuit.h(range(qubits))
    circuit.measure(range(qubits), range(qubits))
    return circuit


def angles(x: Vector, y: Vector) -> tuple[float, ...]:
    """Return the angles, in radians, that make the template measure the fidelity of samples ``x`` and ``y``."""
    single = (2 * BANDWIDTH * (a - b) for a, b in zip(x, y, strict=True))
    linked = (2 * BANDWIDTH**2 * (x[i] * x[i + 1] - y[i] * y[i + 1]) for i in range(len(x) - 1))
    return (*single, *linked)


def width(task: KernelTask) -> int:
    """Return how many qubits a task needs.

    Raises:
        InvalidInputError: Its vectors differ in length, or it needs more than :data:`MAX_CIRCUITS` circuits.
    """
    lengths = {len(vector) for vector in (*task.train, *task.test)}
    if len(lengths) != 1:
        raise InvalidInputError(f"vectors of different lengths: {sorted(lengths)}", reason="ragged_vectors")
    circuits = circuit_count(task)
    if circuits > MAX_CIRCUITS:
        raise InvalidInputError(
            f"{circuits} circuits, more than {MAX_CIRCUITS}; use fewer samples", reason="too_many_circuits"
        )
    return lengths.pop()


def circuit_count(task: KernelTask) -> int:
    """Return how many circuits a task runs."""
    return len(task.train) * (len(task.train) + 1) // 2 + len(task.test) * len(task.train)


def pairs(task: KernelTask) -> tuple[tuple[Vector, Vector], ...]:
    """Return the pairs to measure: the upper triangle of train by train with its diagonal, then test by train.

    The diagonal is 1 without noise; measured, it says what the noise costs.
    """
    return (*combinations_with_replacement(task.train, 2), *product(task.test, task.train))


def bindings(task: KernelTask) -> tuple[tuple[float, ...], ...]:
    """Return the template's angles for every pair of the task, in the order of :func:`pairs`."""
    return tuple(starmap(angles, pairs(task)))


def assemble(
    task: KernelTask, zeros: Sequence[float], *, qpu: str, estimated_fidelity: float, seconds: float
) -> KernelResult:
    """Return the kernel from the measured shares of all-zero readings.

    Args:
        task: What was asked.
        zeros: For each of :func:`pairs`, the share of its shots in which every qubit read 0.
        qpu: Where the circuits ran.
        estimated_fidelity: ESP of the transpiled circuit on the layout that was used.
        seconds: How long it took.
    """
    size = len(task.train)
    triangle = size * (size + 1) // 2
    if len(zeros) != circuit_count(task):
        raise InvariantBrokenError(f"{len(zeros)} results for {circuit_count(task)} circuits")
    values = dict(zip(combinations_with_replacement(range(size), 2), zeros[:triangle], strict=True))
    train = tuple(tuple(values[min(i, j), max(i, j)] for j in range(size)) for i in range(size))
    test = tuple(
        tuple(zeros[triangle + row * size : triangle + (row + 1) * size]) for row in range(len(task.test))
    )
    return KernelResult(
        train=train,
        test=test,
        circuits=len(zeros),
        shots=task.shots,
        qpu=qpu,
        estimated_fidelity=estimated_fidelity,
        seconds=seconds,
    )
