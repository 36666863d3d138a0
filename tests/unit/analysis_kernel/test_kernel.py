from __future__ import annotations

from math import pi, prod

import numpy as np
import pytest
from qiskit.circuit import ParameterExpression, QuantumCircuit
from qiskit.circuit.library import zz_feature_map
from qiskit.quantum_info import Statevector

from tocsin.analysis import kernel
from tocsin.contracts.analysis import KernelTask
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError


def vectors(count: int, qubits: int, seed: int) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, np.random.default_rng(seed).uniform(0, pi, (count, qubits)).tolist()))


def library_state(x: tuple[float, ...]) -> Statevector:
    """The feature map by Qiskit's own library: written by others, without our merged middle layer."""

    def phase(values: list[ParameterExpression]) -> ParameterExpression:
        return prod(kernel.BANDWIDTH * value for value in values)

    feature_map = zz_feature_map(len(x), reps=1, entanglement="linear", data_map_func=phase)
    return Statevector(feature_map.assign_parameters(x))


def zero_probability(circuit: QuantumCircuit) -> float:
    state = Statevector(circuit.remove_final_measurements(inplace=False))
    return float(abs(state.data[0]) ** 2)


@pytest.mark.parametrize("qubits", [2, 3, 4, 6])
def test_the_template_measures_the_fidelity_of_the_library_s_zz_feature_map(qubits: int) -> None:
    template = kernel.template(qubits)
    x, y = vectors(2, qubits, seed=qubits)
    bound = template.assign_parameters(kernel.angles(x, y))
    expected = abs(library_state(y).inner(library_state(x))) ** 2
    assert zero_probability(bound) == pytest.approx(expected, abs=1e-12)
    assert expected < 0.99  # the case can fail


def test_a_sample_is_certainly_like_itself() -> None:
    (x,) = vectors(1, 4, seed=1)
    bound = kernel.template(4).assign_parameters(kernel.angles(x, x))
    assert zero_probability(bound) == pytest.approx(1.0)


def test_the_merged_layer_needs_two_cx_a_link() -> None:
    assert kernel.template(6).count_ops()["cx"] == 2 * 5
    assert kernel.template(6).num_parameters == 11


@pytest.mark.parametrize("qubits", [1, 9])
def test_a_width_out_of_bounds_is_refused(qubits: int) -> None:
    with pytest.raises(InvalidInputError, match=f"not {qubits}") as refused:
        kernel.template(qubits)
    assert refused.value.reason == "bad_width"


def test_pairs_are_the_upper_triangle_then_test_by_train() -> None:
    a, b, c = (0.1, 0.2), (0.3, 0.4), (0.5, 0.6)
    task = KernelTask(train=(a, b), test=(c,), shots=128)
    assert kernel.pairs(task) == ((a, a), (a, b), (b, b), (c, a), (c, b))
    assert kernel.circuit_count(task) == 5
    assert kernel.bindings(task)[1] == kernel.angles(a, b)


def test_assembling_mirrors_the_triangle() -> None:
    task = KernelTask(train=((0.1, 0.2), (0.3, 0.4)), test=((0.5, 0.6),), shots=128)
    result = kernel.assemble(
        task, (0.9, 0.5, 0.8, 0.3, 0.2), qpu="boston", estimated_fidelity=0.97, seconds=0.1
    )
    assert result.train == ((0.9, 0.5), (0.5, 0.8))
    assert result.test == ((0.3, 0.2),)
    assert (result.circuits, result.shots, result.qpu) == (5, 128, "boston")


def test_results_that_do_not_match_the_task_are_our_own_bug() -> None:
    task = KernelTask(train=((0.1, 0.2),), test=((0.5, 0.6),), shots=128)
    with pytest.raises(InvariantBrokenError):
        kernel.assemble(task, (1.0,), qpu="boston", estimated_fidelity=0.9, seconds=0.1)


def test_a_task_must_be_rectangular_and_bounded() -> None:
    ragged = KernelTask(train=((0.1, 0.2),), test=((0.5, 0.6, 0.7),), shots=128)
    with pytest.raises(InvalidInputError) as refused:
        kernel.width(ragged)
    assert refused.value.reason == "ragged_vectors"
    huge = KernelTask(train=vectors(64, 2, seed=0), test=vectors(1, 2, seed=1), shots=128)
    with pytest.raises(InvalidInputError, match="2144 circuits") as refused:
        kernel.width(huge)
    assert refused.value.reason == "too_many_circuits"
