"""Real circuits on a real simulator with the noise of real calibrations; nothing stands in for anything."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import pi

import numpy as np
import pytest
from qiskit.quantum_info import Statevector

from tocsin.analysis import kernel
from tocsin.contracts.analysis import KernelTask
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.qpu_manager import snapshots
from tocsin.qpu_manager.calibrations import DEFAULT_POOL, EXCLUDED
from tocsin.qpu_manager.compilation import Compiler, compile_kernel
from tocsin.qpu_manager.execution import Executor

RNG = np.random.default_rng(7)
TASK = KernelTask(
    train=tuple(map(tuple, RNG.uniform(0, pi, (8, 4)).tolist())),
    test=tuple(map(tuple, RNG.uniform(0, pi, (3, 4)).tolist())),
    shots=4096,
    seed=11,
)
POOL = ("manila", "montreal", "sherbrooke", "boston")
"""One of each native two-qubit gate, and the smallest."""


@cache
def compiler() -> Compiler:
    return Compiler([snapshots.load(qpu) for qpu in POOL])


@cache
def executor() -> Executor:
    return Executor(compiler())


def ideal(task: KernelTask) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    circuit = kernel.template(len(task.train[0])).remove_final_measurements(inplace=False)
    states = (Statevector(circuit.assign_parameters(angles)) for angles in kernel.bindings(task))
    return np.array([abs(state.data[0]) ** 2 for state in states])


def flat(task: KernelTask, qpu: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    result = executor().run(qpu, task)
    size = len(task.train)
    train = [result.train[i][j] for i in range(size) for j in range(i, size)]
    return np.array(train + [value for row in result.test for value in row])


@pytest.mark.parametrize("qpu", POOL)
def test_a_noisy_kernel_is_the_ideal_one_dimmed(qpu: str) -> None:
    measured, exact = flat(TASK, qpu), ideal(TASK)
    esp = compiler().kernel(qpu, 4).figures.estimated_fidelity
    diagonal = measured[exact > 1 - 1e-9]
    assert len(diagonal) == 8
    # Every gate error dims the diagonal, less those that by luck leave |0000>: ESP is close, from below.
    assert esp - 0.02 < diagonal.mean() < 1.0
    assert diagonal.mean() == pytest.approx(esp, abs=0.1)
    assert np.corrcoef(measured, exact)[0, 1] > 0.99


def test_a_better_qpu_measures_a_better_kernel() -> None:
    exact = ideal(TASK)
    errors = {qpu: float(np.abs(flat(TASK, qpu) - exact).mean()) for qpu in ("manila", "boston")}
    assert errors["boston"] < errors["manila"] / 2


def test_the_seed_fixes_the_counts_and_another_gives_others() -> None:
    first, again = executor().run("boston", TASK), executor().run("boston", TASK)
    assert (first.train, first.test) == (again.train, again.test)
    other = executor().run("boston", TASK.model_copy(update={"seed": 12}))
    assert first.train != other.train
    # Equal circuits of one task are sampled on their own: the diagonal is not one number eight times.
    assert len({first.train[i][i] for i in range(8)}) > 1


def test_a_result_says_what_was_run() -> None:
    result = executor().run("sherbrooke", TASK)
    assert (result.circuits, result.shots, result.qpu) == (8 * 9 // 2 + 24, 4096, "sherbrooke")
    assert result.estimated_fidelity == compiler().kernel("sherbrooke", 4).figures.estimated_fidelity
    assert result.train == tuple(zip(*result.train, strict=True))


@pytest.mark.parametrize("qpu", POOL)
def test_our_schedule_lasts_as_long_as_qiskit_s(qpu: str) -> None:
    compiled = compiler().kernel(qpu, 4)
    by_qiskit_s = compiled.circuit.estimate_duration(compiled.target)
    assert compiled.figures.duration_s == pytest.approx(by_qiskit_s, rel=1e-6)


def test_idle_qubits_decohere() -> None:
    prepared = executor().prepare("boston", 6)
    idles = prepared.compiled.timing.idles
    assert idles
    assert prepared.circuit.count_ops()["kraus"] == len(idles)


def test_the_best_of_three_layouts_is_close_to_the_best_of_twenty() -> None:
    for qpu in POOL:
        calibration = compiler().calibrations[qpu]
        few, many = compile_kernel(calibration, 5), compile_kernel(calibration, 5, candidates=20)
        assert few is not None
        assert many is not None
        assert few.figures.estimated_fidelity >= many.figures.estimated_fidelity - 0.005


def test_a_layout_is_a_path_of_live_links() -> None:
    for qpu in POOL:
        compiled, links = compiler().kernel(qpu, 4), compiler().calibrations[qpu].links
        assert len(set(compiled.layout)) == 4
        assert all(b in links[a] for a, b in pairwise(compiled.layout))
        assert compiled.figures.connectivity == 1.0


def test_a_qpu_that_is_too_small_has_no_layout() -> None:
    assert compiler().find("manila", 6) is None
    with pytest.raises(UnavailableError) as refused:
        compiler().kernel("manila", 6)
    assert refused.value.reason == "no_layout"


@pytest.mark.parametrize(
    ("qpu", "reason", "words"),
    [
        ("no-such-qpu", "unknown_qpu", "there are"),
        ("fake_backend", "unknown_qpu", "there are"),
        ("kyoto", "excluded_qpu", "every two-qubit error"),
        ("london", "excluded_qpu", "without a duration"),
    ],
)
def test_unknown_and_excluded_qpus_are_refused(qpu: str, reason: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as refused:
        snapshots.load(qpu)
    assert refused.value.reason == reason


def test_the_default_pool_is_available_and_the_excluded_are_not() -> None:
    names = snapshots.available()
    assert set(DEFAULT_POOL) <= set(names)
    assert not set(names) & EXCLUDED.keys()


def test_a_calibration_says_what_the_snapshot_says() -> None:
    manila = compiler().calibrations["manila"]
    assert manila.qubits == 5
    assert {frozenset((a, b)) for a in manila.links for b in manila.links[a]} == {
        frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3), (3, 4))
    }
    # The medians of the snapshot, from quantum.md.
    assert np.median(manila.t1_s) * 1e6 == pytest.approx(145, abs=1)
    assert np.median(manila.t2_s) * 1e6 == pytest.approx(54, abs=1)
    assert manila.median_two_qubit_error() == pytest.approx(1.0e-2, abs=5e-4)
    assert manila.calibrated.startswith("2024-05-27")
