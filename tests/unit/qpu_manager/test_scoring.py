"""Numbers that were worked out by hand, on a QPU of three qubits in a line and one apart."""

from __future__ import annotations

from math import exp, log

import pytest

from tocsin.contracts.errors import UnavailableError
from tocsin.qpu_manager.calibrations import Calibration, GateFigures
from tocsin.qpu_manager.scoring import (
    Candidate,
    CircuitFigures,
    Gate,
    Requirements,
    connectivity,
    estimated_success,
    rank,
    require_fit,
    required_coherence_s,
    schedule,
    score,
)

US = 1e-6
LINE = Calibration(
    qpu="line",
    calibrated="2026-01-01",
    t1_s=(100 * US, 200 * US, 50 * US, 80 * US),
    t2_s=(80 * US, 100 * US, 60 * US, 80 * US),
    readout=(
        GateFigures(0.02, 1 * US),
        GateFigures(0.01, 1 * US),
        GateFigures(0.03, 1 * US),
        GateFigures(0.04, 1 * US),
    ),
    gates={
        ("sx", (0,)): GateFigures(0.001, 0.1 * US),
        ("sx", (1,)): GateFigures(0.001, 0.1 * US),
        ("sx", (2,)): GateFigures(0.001, 0.1 * US),
        ("cz", (0, 1)): GateFigures(0.01, 0.5 * US),
        ("cz", (1, 2)): GateFigures(0.02, 0.4 * US),
        ("cz", (2, 3)): GateFigures(1.0, 0.4 * US),
    },
)
CHAIN = (
    Gate("sx", (0,)),
    Gate("cz", (0, 1)),
    Gate("cz", (1, 2)),
    Gate("measure", (0,)),
    Gate("measure", (1,)),
    Gate("measure", (2,)),
)
GOOD = CircuitFigures(estimated_fidelity=0.9, duration_s=4 * US, coherence_s=100 * US, connectivity=1.0)
ASKED = Requirements(fidelity=0.8, tolerated_loss=0.1)


def candidate(
    qpu: str, circuit: CircuitFigures = GOOD, load_percent: float = 0.0, wait_s: float = 0.0
) -> Candidate:
    return Candidate(qpu, circuit, load_percent, wait_s)


def test_the_schedule_is_as_late_as_possible() -> None:
    timing = schedule(CHAIN, LINE)
    # 0.1 (sx) + 0.5 + 0.4 (the two cz) + 1 (readout), all on the critical path.
    assert timing.duration_s == pytest.approx(2.0 * US)
    # Qubit 0 waits for the second cz before it is read; nobody else waits after its first gate.
    (idle,) = timing.idles
    assert (idle.before, idle.qubit) == (3, 0)
    assert idle.seconds == pytest.approx(0.4 * US)


def test_estimated_success_is_the_product_of_gates_readouts_and_idling() -> None:
    expected = 0.999 * 0.99 * 0.98 * (0.98 * 0.99 * 0.97) * exp(-0.4 / 80)
    assert estimated_success(CHAIN, schedule(CHAIN, LINE).idles, LINE) == pytest.approx(expected)


def test_required_coherence_leaves_the_tolerated_loss() -> None:
    required = required_coherence_s(3 * US, 0.1)
    assert required == pytest.approx(3 * US / -log(0.9))
    assert exp(-3 * US / required) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (((0, 1), (1, 2)), 1.0),
        (((0, 1), (0, 2)), 0.75),  # the second pair is two links apart
        (((2, 3),), 0.0),  # their only link is dead
        (((0, 1), (0, 1), (2, 3), (0, 2)), 2.5 / 4),
        ((), 1.0),
    ],
)
def test_connectivity_is_the_mean_of_one_over_the_distance(
    pairs: tuple[tuple[int, int], ...], expected: float
) -> None:
    assert connectivity([Gate("cx", pair) for pair in pairs], LINE) == pytest.approx(expected)


def test_the_composite_is_the_specified_weighting() -> None:
    circuit = CircuitFigures(estimated_fidelity=0.6, duration_s=4 * US, coherence_s=19 * US, connectivity=0.5)
    found = score(candidate("line", circuit, load_percent=40.0), ASKED)
    required_us = 4 / -log(0.9)  # 37.96
    assert found.performance == pytest.approx(0.75)
    assert found.availability == pytest.approx(0.6)
    assert found.required_coherence_us == pytest.approx(required_us)
    assert found.coherence == pytest.approx(19 / required_us)
    assert found.composite == pytest.approx(0.3 * 0.75 + 0.25 * 0.6 + 0.25 * 19 / required_us + 0.2 * 0.5)


def test_above_the_requirements_the_score_saturates() -> None:
    found = score(candidate("line"), ASKED)
    assert (found.performance, found.coherence, found.composite) == (1.0, 1.0, 1.0)


def test_a_tie_goes_to_the_better_esp_then_the_earlier_then_the_name() -> None:
    better = CircuitFigures(0.95, 4 * US, 100 * US, 1.0)
    ranked = rank(
        [
            candidate("b", wait_s=1.0),
            candidate("c", wait_s=1.0),
            candidate("a", wait_s=2.0),
            candidate("z", better, wait_s=9.0),
        ],
        ASKED,
    )
    assert [entry.score.qpu for entry in ranked] == ["z", "b", "c", "a"]


def test_a_qpu_that_misses_a_requirement_never_wins() -> None:
    weak = CircuitFigures(0.79, 4 * US, 100 * US, 1.0)
    ranked = rank([candidate("weak", weak), candidate("busy", load_percent=99.0)], ASKED)
    assert [(entry.score.qpu, entry.fits) for entry in ranked] == [("busy", True), ("weak", False)]
    assert ranked[1].score.composite > ranked[0].score.composite


def test_requirements_that_none_fulfils_are_refused_with_the_numbers() -> None:
    weak, short = CircuitFigures(0.7, 4 * US, 100 * US, 1.0), CircuitFigures(0.95, 4 * US, 20 * US, 1.0)
    ranked = rank([candidate("weak", weak), candidate("short", short)], ASKED)
    with pytest.raises(
        UnavailableError, match=r"best, short, has fidelity 0.950 and 20.0 us .* 38.0 us"
    ) as refused:
        require_fit(ranked, ASKED, 4)
    assert refused.value.reason == "no_qpu_fits"
    with pytest.raises(UnavailableError, match="no QPU has 200"):
        require_fit((), ASKED, 200)


def test_dead_links_and_unknown_qubits_are_not_usable() -> None:
    assert LINE.links == {0: {1: 0.01}, 1: {0: 0.01, 2: 0.02}, 2: {1: 0.02}, 3: {}}
    blind = Calibration("blind", "", (0.0, US), (0.0, US), (GateFigures(0.0, US), GateFigures(0.6, US)), {})
    assert blind.usable == frozenset()
