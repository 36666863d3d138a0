from __future__ import annotations

import math
from random import Random

import pytest
from unit.analysis.traffic import flow, window

from tocsin.analysis.assessment import (
    KERNEL_SAMPLES,
    NO_ADVANTAGE,
    circuits_of,
    confidence_of,
    expected_cost_s,
    join,
    kernel_svm_task,
    plan,
    verdict_of,
)
from tocsin.analysis.baseline import ANGLE_ORDER, CLIP, OFFICE, Baseline, baseline
from tocsin.analysis.classical import psd_projected, run
from tocsin.analysis.detectors import judge
from tocsin.analysis.labels import compare
from tocsin.analysis.office import office_windows
from tocsin.analysis.records import Label
from tocsin.contracts.analysis import (
    AnomalyScore,
    ClassicalKind,
    ClassicalTask,
    KernelResult,
    SecurityRequest,
    Verdict,
)
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import FEATURES, Finding, FindingKind, FlowState, Incident
from tocsin.contracts.response import Action

WORKFLOW = bytes(16)


def scanner(source: str = "10.0.0.5") -> Finding:
    flows = [flow(i / 10, source=source, port=1000 + i, state=FlowState.REJECTED) for i in range(60)]
    return judge(window(flows), "test")[0]


def request(finding: Finding, **more: object) -> SecurityRequest:
    incident = Incident(incident=bytes(16), primary=finding, alerts=())
    return SecurityRequest.model_validate({"incident": incident, "baseline": OFFICE} | more)


def anomaly(quantile: float, model: str = "m") -> AnomalyScore:
    return AnomalyScore(
        model=model, score=0.1, baseline_quantile=quantile, anomalous=quantile >= 0.95, train_samples=20
    )


def fidelity(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    return math.prod(math.cos((a - b) / 2) ** 2 for a, b in zip(x, y, strict=True))


# Baseline


def test_office_is_the_same_for_everybody() -> None:
    assert office_windows() == office_windows()
    assert office_windows(seed=1) != office_windows()
    assert baseline(OFFICE) is baseline(OFFICE)
    assert len(baseline(OFFICE).windows) == 200


def test_unknown_baseline_is_refused_with_the_known_one() -> None:
    with pytest.raises(InvalidInputError) as caught:
        baseline("nobody")
    assert caught.value.reason == "unknown_baseline"
    assert OFFICE in (caught.value.advice() or "")


def test_scale_has_the_baselines_median_at_zero_and_is_bounded() -> None:
    base = baseline(OFFICE)
    columns = list(zip(*base.rows(), strict=True))
    for column in columns:
        assert sorted(column)[99] <= 1e-9 <= sorted(column)[101] + 1e-9
        assert all(abs(value) <= CLIP for value in column)
    wild = office_windows(1)[0].model_copy(
        update={"connections": 10**9, "distinct_ports": 65535, "rejected_share": 1.0, "bytes_sent": 10**18}
    )
    assert max(map(abs, base.scale(wild))) == CLIP
    assert all(0 < angle < math.pi for angle in base.angles(wild, 6))


def test_angles_take_the_documented_features_in_order() -> None:
    base = baseline(OFFICE)
    features = scanner().features
    assert features is not None
    six = base.angles(features, 6)
    scaled = dict(zip(FEATURES, base.scale(features), strict=True))
    assert six == tuple(math.pi / 2 + math.atan(scaled[name]) for name in ANGLE_ORDER)
    assert base.angles(features, 2) == six[:2]
    for qubits in (1, 7):
        with pytest.raises(InvalidInputError):
            base.angles(features, qubits)


def test_a_test_sample_never_moves_the_scale() -> None:
    base = baseline(OFFICE)
    before = base.rows()
    features = scanner().features
    assert features is not None
    base.scale(features)
    assert base.rows() == before


def test_baseline_of_ones_own() -> None:
    own = Baseline.fit_from(office_windows(300, seed=3), "file-mine", seed=5)
    assert len(own.windows) == 200
    assert own == Baseline.fit_from(office_windows(300, seed=3), "file-mine", seed=5)
    with pytest.raises(InvalidInputError):
        Baseline.fit_from(office_windows(19), "file-small")
    flat = Baseline.fit_from(office_windows(1) * 30, "file-flat")
    assert set(flat.rows()) == {(0.0,) * len(FEATURES)}


def test_samples_are_chosen_by_seed() -> None:
    base = baseline(OFFICE)
    assert base.samples(20, 1) == base.samples(20, 1)
    assert base.samples(20, 1) != base.samples(20, 2)
    assert len(set(base.samples(200, 0))) == len(set(base.windows))
    for count in (0, 201):
        with pytest.raises(InvalidInputError):
            base.samples(count, 0)


# Classical tasks


def cloud(count: int, seed: int = 0) -> tuple[tuple[float, ...], ...]:
    random = Random(seed)  # noqa: S311
    return tuple(tuple(random.gauss(0, 1) for _ in range(3)) for _ in range(count))


@pytest.mark.parametrize("kind", [ClassicalKind.ISOLATION_FOREST, ClassicalKind.RBF_SVM])
def test_an_outlier_is_anomalous_and_the_middle_is_not(kind: ClassicalKind) -> None:
    task = ClassicalTask(kind=kind, train=cloud(60), test=((9.0, -9.0, 9.0), (0.0, 0.0, 0.0)))
    outlier, middle = run(task).scores
    assert outlier.anomalous
    assert outlier.baseline_quantile >= 0.98
    assert not middle.anomalous
    assert outlier.score > middle.score
    assert outlier.train_samples == 60


@pytest.mark.parametrize("kind", list(ClassicalKind))
def test_same_seed_same_scores(kind: ClassicalKind) -> None:
    rows = tuple(tuple(fidelity(x, y) for y in cloud(20)) for x in cloud(20))
    task = ClassicalTask(kind=kind, train=rows, test=rows[:3], seed=4)
    assert run(task).scores == run(task).scores


def test_seconds_are_the_clocks() -> None:
    ticks = iter((10.0, 12.5))
    task = ClassicalTask(kind=ClassicalKind.RBF_SVM, train=cloud(10), test=cloud(1))
    assert run(task, clock=lambda: next(ticks)).seconds == 2.5


@pytest.mark.parametrize(
    ("kind", "train", "test"),
    [
        ("rbf_svm", ((1.0, 2.0), (1.0,)) * 5, ((1.0, 2.0),)),
        ("rbf_svm", cloud(10), ((1.0, 2.0),)),
        ("rbf_svm", cloud(3), cloud(1)),
        ("rbf_svm", ((1e200, 0.0),) * 5, ((1.0, 2.0),)),
        ("kernel_svm", cloud(10), cloud(1)),
        ("kernel_svm", ((0.0,) * 5,) * 5, ((0.0,) * 5,)),
    ],
)
def test_bad_matrices_are_refused(
    kind: str, train: tuple[tuple[float, ...], ...], test: tuple[tuple[float, ...], ...]
) -> None:
    with pytest.raises(InvalidInputError):
        run(ClassicalTask(kind=ClassicalKind(kind), train=train, test=test))


def test_not_finite_is_refused_even_unvalidated() -> None:
    task = ClassicalTask.model_construct(
        kind=ClassicalKind.RBF_SVM, train=((float("nan"), 1.0),) * 5, test=((1.0, 1.0),), seed=0
    )
    with pytest.raises(InvalidInputError):
        run(task)


def test_a_noisy_kernel_is_made_symmetric_and_psd_and_a_clean_one_is_left() -> None:
    import numpy as np

    points = cloud(12)
    clean = np.array([[fidelity(x, y) for y in points] for x in points])
    same, rows = psd_projected(clean, clean[:2])
    assert np.allclose(same, clean, atol=1e-9)
    assert np.allclose(rows, clean[:2], atol=1e-9)
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)
    projected, _ = psd_projected(noisy, noisy[:2])
    assert np.linalg.eigvalsh(noisy + noisy.T).min() < -1e-3
    assert np.linalg.eigvalsh(projected).min() > -1e-9
    assert np.allclose(projected, projected.T)


# Plan and join


def test_plan_makes_210_circuits_and_two_classical_tasks() -> None:
    work = plan(request(scanner(), qubits=5, shots=512), seed=3)
    assert circuits_of(work.kernel) == 210
    assert (len(work.kernel.train), len(work.kernel.train[0]), work.kernel.shots) == (KERNEL_SAMPLES, 5, 512)
    assert [task.kind for task in work.classical] == [ClassicalKind.ISOLATION_FOREST, ClassicalKind.RBF_SVM]
    assert {len(task.train) for task in work.classical} == {200}
    assert all(expected_cost_s(task) > 0 for task in work.classical)
    assert expected_cost_s(work.kernel) > 0
    assert plan(request(scanner(), qubits=5, shots=512), seed=3) == work


def test_plan_needs_features_and_the_named_baseline() -> None:
    bare = scanner().model_copy(update={"features": None})
    with pytest.raises(InvalidInputError) as caught:
        plan(request(bare))
    assert caught.value.reason == "no_features"
    with pytest.raises(InvalidInputError):
        plan(request(scanner(), baseline="unknown"))
    own = Baseline.fit_from(office_windows(30), "file-mine")
    assert len(plan(request(scanner(), baseline="file-mine"), own).classical[0].train) == 30
    with pytest.raises(InvalidInputError):
        plan(request(scanner()), own)


@pytest.mark.parametrize(
    ("detector", "quantiles", "verdict"),
    [
        (0.5, (1.0, 1.0, 0.0), Verdict.MALICIOUS),
        (0.99, (1.0, 0.0, 0.0), Verdict.SUSPICIOUS),
        (0.99, (0.0, 0.0, 0.0), Verdict.SUSPICIOUS),
        (0.49, (1.0, 1.0, 0.0), Verdict.SUSPICIOUS),
        (0.49, (1.0, 0.0, 0.0), Verdict.BENIGN),
        (0.2, (1.0, 0.0), Verdict.BENIGN),
        (0.0, (0.0, 0.0, 0.0), Verdict.BENIGN),
        (1.0, (0.95, 0.95, 0.949), Verdict.MALICIOUS),
    ],
)
def test_verdict(detector: float, quantiles: tuple[float, ...], verdict: Verdict) -> None:
    assert verdict_of(detector, [anomaly(quantile) for quantile in quantiles]) is verdict


def test_confidence_is_the_formula() -> None:
    scores = anomaly(0.8), [anomaly(1.0), anomaly(0.6)]
    assert confidence_of(Verdict.MALICIOUS, 0.9, *scores) == pytest.approx(0.45 + 0.2 + 0.2)
    assert confidence_of(Verdict.BENIGN, 0.9, *scores) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("subject", "action"),
    [("10.0.0.5", Action.CONTAIN), ("127.0.0.7", Action.CONTAIN), ("203.0.113.5", Action.DENY)],
)
def test_from_request_to_assessment(subject: str, action: Action) -> None:
    asked = request(scanner(subject))
    work = plan(asked)
    kernel = KernelResult(
        train=tuple(tuple(fidelity(x, y) for y in work.kernel.train) for x in work.kernel.train),
        test=tuple(tuple(fidelity(x, y) for y in work.kernel.train) for x in work.kernel.test),
        circuits=210, shots=1024, qpu="boston", estimated_fidelity=0.9, seconds=1.0,
    )  # fmt: skip
    quantum = run(kernel_svm_task(kernel)).scores[0]
    classical = [run(task).scores[0] for task in work.classical]
    made = join(asked, WORKFLOW, kernel=kernel, quantum=quantum, classical=classical)
    assert made.verdict is Verdict.MALICIOUS
    assert made.recommended is not None
    assert (made.recommended.action, made.recommended.address) == (action, subject)
    assert made.recommended.duration_s == 3600
    assert made.evidence[-1] == NO_ADVANTAGE
    assert any("boston" in line for line in made.evidence)
    assert 0.9 < made.confidence <= 1


def test_benign_recommends_nothing_and_a_companion_is_required() -> None:
    weak = scanner().model_copy(update={"score": 0.1, "kind": FindingKind.IDS})
    kernel = KernelResult(
        train=((1.0,),),
        test=((1.0,),),
        circuits=1,
        shots=1024,
        qpu="boston",
        estimated_fidelity=0.9,
        seconds=1.0,
    )
    made = join(request(weak), WORKFLOW, kernel=kernel, quantum=anomaly(0.2), classical=[anomaly(0.3)])
    assert (made.verdict, made.recommended) == (Verdict.BENIGN, None)
    with pytest.raises(InvalidInputError):
        join(request(weak), WORKFLOW, kernel=kernel, quantum=anomaly(0.2), classical=[])


def test_evidence_fits_the_model_whatever_comes_in() -> None:
    long = scanner().model_copy(update={"evidence": ("e" * 512,) * 16})
    asked = request(long)
    asked = asked.model_copy(update={"incident": asked.incident.model_copy(update={"related": (long,) * 32})})
    kernel = KernelResult(
        train=((1.0,),),
        test=((1.0,),),
        circuits=1,
        shots=1024,
        qpu="q" * 63,
        estimated_fidelity=0.9,
        seconds=1.0,
    )
    scores = [anomaly(1.0, "m" * 64)] * 8
    made = join(asked, WORKFLOW, kernel=kernel, quantum=scores[0], classical=scores)
    assert len(made.evidence) <= 32


# Labels


def test_compare_by_connection_and_host() -> None:
    bad, good, unknown = Label("Malicious", "x"), Label("benign", ""), Label("Unknown", "")
    finding = scanner().model_copy(update={"first_s": 0.0, "last_s": 10.0})
    compared = compare(
        [finding],
        [
            (flow(5), bad),
            (flow(10), good),
            (flow(11), bad),
            (flow(5, source="10.0.0.6"), good),
            (flow(5, source="10.0.0.7"), bad),
            (flow(5), unknown),
            (flow(5), None),
        ],
    )
    assert compared.unlabelled == 2
    connections = compared.connections
    assert (connections.true_positives, connections.false_positives) == (1, 1)
    assert (connections.true_negatives, connections.false_negatives) == (1, 2)
    assert connections.precision == pytest.approx(0.5)
    assert connections.recall == pytest.approx(1 / 3)
    assert (compared.hosts.true_positives, compared.hosts.false_negatives) == (1, 1)
    assert compared.hosts.true_negatives == 1
    assert compare([], []).connections.precision is None
