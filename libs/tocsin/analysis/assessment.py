"""How a security request becomes tasks, and how their results become an assessment.

    work = plan(request)                            # one kernel task, two classical tasks
    task = kernel_svm_task(kernel_result)           # the kernel as measured, for an SVM
    made = join(request, workflow, kernel=..., quantum=..., classical=...)

**Verdict.** The detector's score d of the primary finding, and the models that call its window anomalous
(baseline_quantile of at least 0.95), the quantum kernel's SVM and the classical ones with one voice each:

* malicious: d >= 0.5 and more than half of the models;
* benign: d < 0.5 and at most half of the models;
* suspicious: else, i.e. rule and models disagree.

**Confidence.** s = 0.5 d + 0.25 q + 0.25 c, with q the quantum model's baseline quantile and c the mean of the
classical ones; s for malicious and suspicious, 1 - s for benign. An agreement of the detectors, weighted; not a
probability.

The quantum model is a voice among others because the request asks for it, not because it is better: measured on
NSL-KDD it is not (quantum.md of the design), and every assessment says so beside its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tocsin.analysis.baseline import Baseline, baseline
from tocsin.analysis.hosts import is_internal
from tocsin.contracts.analysis import (
    AnomalyScore,
    Assessment,
    ClassicalKind,
    ClassicalTask,
    KernelResult,
    KernelTask,
    SecurityRequest,
    Verdict,
)
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import WindowFeatures
from tocsin.contracts.response import Action, Command

KERNEL_SAMPLES = 20
"""Baseline samples of the kernel: 20 * 19 / 2 pairs and 20 against the sample under test are 210 circuits, and
with 20 the quantile of 0.95 can just be reached."""

DETECTOR_THRESHOLD = 0.5
"""Where the detectors' rules just hold."""

DURATION_S = 3600
"""Of the recommended response: an hour, after which an analyst has looked or asks again."""

NO_ADVANTAGE = (
    "The quantum and the classical models stand side by side; no advantage of the quantum one is claimed: "
    "in our measurements tuned classical models do as well or better."
)

_FOREST_COST_S = 1.0
_RBF_COST_S = 0.05
_KERNEL_SVM_COST_S = 0.03
"""Seconds on the 2-core reference machine, measured: six forests on 200 rows 0.7 to 1.4, ten folds of the RBF
SVM 0.01 to 0.05, twenty leave-one-out fits of the kernel SVM 0.01 to 0.03."""

_CIRCUIT_COST_S = 0.03
"""Seconds of one noisy circuit of 1,024 shots once its noise model is built: 0.028 at best (quantum.md)."""

_PRIMARY_LINES = 16
_RELATED_LINES = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one request that can start at once."""

    kernel: KernelTask
    classical: tuple[ClassicalTask, ...]


def plan(request: SecurityRequest, fitted: Baseline | None = None, *, seed: int = 0) -> Plan:
    """Plan the tasks of a request.

    Args:
        request: Its primary finding must carry features.
        fitted: The baseline, where it is not one that is known by name.
        seed: Chooses the kernel's samples and seeds every task.

    Raises:
        InvalidInputError: ``no_features``, ``unknown_baseline``, ``wrong_baseline``.
    """
    features = request.incident.primary.features
    if features is None:
        raise InvalidInputError("the primary finding carries no features to score", reason="no_features")
    base = fitted or baseline(request.baseline)
    if base.name != request.baseline:
        raise InvalidInputError(
            f"the request names {request.baseline!r}, given is {base.name!r}", reason="wrong_baseline"
        )
    samples = base.samples(KERNEL_SAMPLES, seed)
    kernel = KernelTask(
        train=tuple(base.angles(sample, request.qubits) for sample in samples),
        test=(base.angles(features, request.qubits),),
        shots=request.shots,
        seed=seed,
    )
    return Plan(kernel, _classical_tasks(base, features, seed))


def classical_tasks(
    features: WindowFeatures, baseline_name: str, *, seed: int = 0
) -> tuple[ClassicalTask, ...]:
    """Return the classical tasks of a window, for whoever asks no QPU.

    Raises:
        InvalidInputError: ``unknown_baseline``.
    """
    return _classical_tasks(baseline(baseline_name), features, seed)


def _classical_tasks(base: Baseline, features: WindowFeatures, seed: int) -> tuple[ClassicalTask, ...]:
    rows, row = base.rows(), (base.scale(features),)
    kinds = (ClassicalKind.ISOLATION_FOREST, ClassicalKind.RBF_SVM)
    return tuple(ClassicalTask(kind=kind, train=rows, test=row, seed=seed) for kind in kinds)


def kernel_svm_task(kernel: KernelResult, *, seed: int = 0) -> ClassicalTask:
    """Return the task that makes a score of a kernel as measured."""
    return ClassicalTask(kind=ClassicalKind.KERNEL_SVM, train=kernel.train, test=kernel.test, seed=seed)


def circuits_of(task: KernelTask) -> int:
    """Return the number of circuits: each pair of training samples once, each test sample with each of them."""
    count = len(task.train)
    return count * (count - 1) // 2 + len(task.test) * count


def expected_cost_s(task: ClassicalTask | KernelTask) -> float:
    """Return the expected seconds of a task on a reference core, greater than zero."""
    if isinstance(task, KernelTask):
        return circuits_of(task) * _CIRCUIT_COST_S * task.shots / 1024
    if task.kind is ClassicalKind.ISOLATION_FOREST:
        return _FOREST_COST_S  # hardly depends on the samples: trees are grown on at most 256 of them
    if task.kind is ClassicalKind.RBF_SVM:
        return max(0.005, _RBF_COST_S * (len(task.train) / 200) ** 2)
    return max(0.005, _KERNEL_SVM_COST_S * (len(task.train) / 20) ** 2)


def join(
    request: SecurityRequest,
    workflow: bytes,
    *,
    kernel: KernelResult,
    quantum: AnomalyScore,
    classical: Sequence[AnomalyScore],
) -> Assessment:
    """Join the results of a request into its assessment.

    Args:
        request: What was asked.
        workflow: Id of the workflow, 16 bytes.
        kernel: The kernel as measured, for its QPU and fidelity.
        quantum: Score by the SVM on that kernel.
        classical: At least one score by a classical model.
    """
    if not classical:
        raise InvalidInputError("no classical score stands beside the quantum one", reason="no_companion")
    primary = request.incident.primary
    verdict = verdict_of(primary.score, [quantum, *classical])
    return Assessment(
        workflow=workflow,
        incident=request.incident.incident,
        subject=primary.subject,
        verdict=verdict,
        confidence=confidence_of(verdict, primary.score, quantum, classical),
        technique=primary.technique,
        quantum=quantum,
        classical=tuple(classical),
        qpu=kernel.qpu,
        estimated_fidelity=kernel.estimated_fidelity,
        evidence=_evidence(request, kernel, quantum, classical),
        finding=primary,
        recommended=None if verdict is Verdict.BENIGN else response_to(primary.subject),
        baseline=request.baseline,
    )


def verdict_of(detector: float, models: Sequence[AnomalyScore]) -> Verdict:
    """Return the verdict by the rule at the head of this module."""
    accused = detector >= DETECTOR_THRESHOLD
    majority = 2 * sum(model.anomalous for model in models) > len(models)
    if accused and majority:
        return Verdict.MALICIOUS
    return Verdict.SUSPICIOUS if accused or majority else Verdict.BENIGN


def confidence_of(
    verdict: Verdict, detector: float, quantum: AnomalyScore, classical: Sequence[AnomalyScore]
) -> float:
    """Return the confidence by the formula at the head of this module, in [0, 1]."""
    mean = fmean(score.baseline_quantile for score in classical)
    accusation = 0.5 * detector + 0.25 * quantum.baseline_quantile + 0.25 * mean
    return 1 - accusation if verdict is Verdict.BENIGN else accusation


def response_to(subject: str) -> Command:
    """Return the response that is recommended against a subject."""
    # Asked anew, not taken from the finding: whether a host is ours decides what is done to it.
    action = Action.CONTAIN if is_internal(subject) else Action.DENY
    return Command(action=action, address=subject, duration_s=DURATION_S)


def _evidence(
    request: SecurityRequest, kernel: KernelResult, quantum: AnomalyScore, classical: Sequence[AnomalyScore]
) -> tuple[str, ...]:
    primary = request.incident.primary
    lines = [
        f"{primary.kind.value} by {primary.subject}: detector score {primary.score:.2f}",
        *primary.evidence[:_PRIMARY_LINES],
    ]
    lines += [
        f"related: {related.kind.value} by {related.subject}, score {related.score:.2f}"
        for related in request.incident.related[:_RELATED_LINES]
    ]
    lines.append(
        f"quantum: {_reading(quantum)}; {kernel.circuits} circuits of {kernel.shots} shots on {kernel.qpu}, "
        f"estimated fidelity {kernel.estimated_fidelity:.3f}"
    )
    # One quantum line and one note: 32 - 1 - 16 - 6 - 2 leaves seven for the classical models.
    lines += [f"classical: {_reading(score)}" for score in classical[:7]]
    return (*lines, NO_ADVANTAGE)


def _reading(score: AnomalyScore) -> str:
    verdict = "anomalous" if score.anomalous else "not anomalous"
    return (
        f"{score.model} {score.score:.3f}, above {score.baseline_quantile:.0%} of {score.train_samples} "
        f"baseline samples: {verdict}"
    )
