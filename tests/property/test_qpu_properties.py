from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.errors import ExhaustedError
from tocsin.contracts.quantum import QpuReservations, Reservation
from tocsin.qpu_manager import reservations
from tocsin.qpu_manager.calibrations import Calibration, GateFigures
from tocsin.qpu_manager.layouts import best_chains
from tocsin.qpu_manager.scoring import (
    Candidate,
    CircuitFigures,
    Gate,
    Requirements,
    connectivity,
    estimated_success,
    rank,
    schedule,
    score,
)

shares = st.floats(0, 1)
seconds = st.floats(0, 1e-3)
circuits = st.builds(CircuitFigures, shares, seconds, seconds, shares)
candidates = st.builds(
    Candidate, st.from_regex("[a-z]{1,8}", fullmatch=True), circuits, st.floats(0, 100), st.floats(0, 1e4)
)
requirements = st.builds(Requirements, shares, st.floats(1e-6, 1, exclude_max=True))


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    """A QPU of two to six qubits, some of them blind, with any links, some of them dead."""
    qubits = draw(st.integers(2, 6))
    times = draw(st.lists(st.sampled_from([0.0, 2e-5, 1e-4, 3e-4]), min_size=qubits, max_size=qubits))
    figures = st.builds(GateFigures, st.one_of(st.floats(0, 0.2), st.just(1.0)), st.floats(1e-8, 1e-6))
    ends = st.tuples(st.integers(0, qubits - 1), st.integers(0, qubits - 1)).filter(lambda e: e[0] != e[1])
    gates: dict[tuple[str, tuple[int, ...]], GateFigures] = {
        ("cz", pair): draw(figures) for pair in draw(st.sets(ends, max_size=10))
    }
    gates |= {("sx", (qubit,)): draw(figures) for qubit in range(qubits)}
    readout = tuple(draw(figures) for _ in range(qubits))
    return Calibration("any", "", tuple(times), tuple(times), readout, gates)


@given(candidates, requirements)
def test_every_part_of_a_score_and_the_score_are_shares(candidate: Candidate, required: Requirements) -> None:
    # The model refuses anything else; that it accepts is the property.
    found = score(candidate, required)
    parts = (found.performance, found.availability, found.coherence, found.connectivity)
    assert min(parts) <= found.composite + 1e-12
    assert found.composite <= max(parts) + 1e-12


@given(candidates, requirements, shares)
def test_more_fidelity_coherence_or_connectivity_and_less_load_never_score_lower(
    candidate: Candidate, required: Requirements, by: float
) -> None:
    base, circuit = score(candidate, required).composite, candidate.circuit
    better = (
        replace(circuit, estimated_fidelity=min(1.0, circuit.estimated_fidelity + by)),
        replace(circuit, coherence_s=circuit.coherence_s + by),
        replace(circuit, duration_s=circuit.duration_s * (1 - by)),
        replace(circuit, connectivity=min(1.0, circuit.connectivity + by)),
    )
    for changed in better:
        assert score(replace(candidate, circuit=changed), required).composite >= base - 1e-12
    idler = replace(candidate, load_percent=candidate.load_percent * (1 - by))
    assert score(idler, required).composite >= base - 1e-12


@given(st.lists(candidates, max_size=8, unique_by=lambda c: c.qpu), requirements, st.randoms())
def test_the_ranking_does_not_depend_on_the_order_and_misfits_come_last(
    entries: list[Candidate], required: Requirements, random: Random
) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)
    ranked = rank(entries, required)
    assert ranked == rank(shuffled, required)
    fits = [entry.fits for entry in ranked]
    assert fits == sorted(fits, reverse=True)
    for entry in ranked:
        assert entry.fits == (entry.score.performance == 1.0 and entry.score.coherence == 1.0)


@given(calibrations(), st.integers(1, 5))
def test_chains_are_simple_paths_of_live_links(calibration: Calibration, width: int) -> None:
    for chain in best_chains(calibration, width, 4):
        assert len(set(chain)) == width
        assert calibration.usable.issuperset(chain)
        assert all(b in calibration.links[a] for a, b in pairwise(chain))


@given(calibrations(), st.data())
def test_success_is_a_share_and_no_gate_adds_to_it(calibration: Calibration, data: st.DataObject) -> None:
    on = st.sampled_from(sorted(calibration.gates))
    usable = [key for key in data.draw(st.lists(on, max_size=12)) if calibration.usable.issuperset(key[1])]
    gates = [Gate(name, qubits) for name, qubits in usable]
    timing = schedule(gates, calibration)
    success = estimated_success(gates, timing.idles, calibration)
    assert 0.0 <= success <= 1.0
    assert 0.0 <= connectivity(gates, calibration) <= 1.0
    longest = max((calibration.figures(g.name, g.qubits).duration_s for g in gates), default=0.0)
    total = sum(calibration.figures(g.name, g.qubits).duration_s for g in gates)
    assert longest <= timing.duration_s <= total + 1e-15
    assert all(0 < idle.seconds <= timing.duration_s for idle in timing.idles)
    assert estimated_success(gates, (), calibration) >= success


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.1, 30.0), st.integers(0, 90)), max_size=60))
def test_no_history_of_promises_overbooks_a_qpu(steps: list[tuple[int, float, int]]) -> None:
    book, now_ns = QpuReservations(qpu="any"), 10**18
    for number, expected_s, passed_s in steps:
        now_ns += passed_s * 10**8
        name = number.to_bytes(16, "big")
        if reservations.find(book, name) is not None:
            book = reservations.release(book, name)
            continue
        full = reservations.is_full(book, now_ns)
        try:
            book = reservations.reserve(
                book,
                Reservation(
                    reservation=name,
                    workflow=bytes(16),
                    qubits=4,
                    expected_s=expected_s,
                    expires_ns=now_ns + 10**10,
                ),
                now_ns,
            )
        except ExhaustedError:
            assert full
        else:
            assert not full
        assert 0.0 <= reservations.load_percent(book, now_ns) <= 100.0
        # The last promise may end beyond the minute, by no more than itself.
        assert reservations.promised_s(book, now_ns) < reservations.HORIZON_S + 30.0
        assert len(reservations.live(book, now_ns)) <= reservations.MAX_LIVE
