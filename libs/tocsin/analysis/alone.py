"""An assessment without workflow: the classical models, fitted and asked in this process.

**Verdict**, with the detector's score d of the primary finding and the models that call its window anomalous:

* malicious: d >= 0.5 and more than half of the models;
* benign: d < 0.5 and at most half of the models;
* suspicious: else. A finding without features (of names, log-ins, notices) has no model to judge it, and is suspicious
  from d = 0.5 and never malicious.

**Confidence**: s = 0.5 d + 0.5 c with c the mean of the models' baseline quantiles, or d without models; s for
malicious and suspicious, 1 - s for benign. It is the rule of :mod:`tocsin.analysis.assessment` with the quantum
kernel's share given to the classical models.
"""

from __future__ import annotations

from statistics import fmean

from tocsin.analysis.assessment import DETECTOR_THRESHOLD, classical_tasks, response_to
from tocsin.contracts.analysis import AnomalyScore, Verdict
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import Incident
from tocsin.contracts.reports import ClassicalAssessment

_PRIMARY_LINES = 16
_RELATED_LINES = 6


def assess_alone(incident: Incident, baseline: str, *, why: str, models: bool = True) -> ClassicalAssessment:
    """Assess an incident. CPU-bound: about a second, and importing scikit-learn the first time.

    Args:
        incident: From a hunter.
        baseline: Name of the baseline that the models are fitted on.
        why: Why workflow is not asked.
        models: Whether to ask the models; without them the rule stands alone.

    Raises:
        InvalidInputError: ``unknown_baseline``.
        UnavailableError: ``no_models``: scikit-learn is not installed.
    """
    scores = _scores(incident, baseline) if models else ()
    primary = incident.primary
    accused = primary.score >= DETECTOR_THRESHOLD
    majority = 2 * sum(score.anomalous for score in scores) > len(scores)
    if accused and majority:
        verdict = Verdict.MALICIOUS
    else:
        verdict = Verdict.SUSPICIOUS if accused or majority else Verdict.BENIGN
    mean = fmean(score.baseline_quantile for score in scores) if scores else primary.score
    accusation = 0.5 * primary.score + 0.5 * mean
    return ClassicalAssessment(
        incident=incident.incident,
        subject=primary.subject,
        verdict=verdict,
        confidence=1 - accusation if verdict is Verdict.BENIGN else accusation,
        technique=primary.technique,
        classical=scores,
        evidence=_evidence(incident, scores, why),
        finding=primary,
        recommended=None if verdict is Verdict.BENIGN else response_to(primary.subject),
        baseline=baseline,
        why=why[:512],
    )


def _scores(incident: Incident, baseline: str) -> tuple[AnomalyScore, ...]:
    features = incident.primary.features
    if features is None:
        return ()
    try:
        from tocsin.analysis import classical  # noqa: PLC0415 - scikit-learn, where it is used
    except ImportError as error:
        raise UnavailableError(
            "scikit-learn is not installed", reason="no_models", advice="pip install 'tocsin[classical]'"
        ) from error
    return tuple(classical.run(task).scores[0] for task in classical_tasks(features, baseline))


def _evidence(incident: Incident, scores: tuple[AnomalyScore, ...], why: str) -> tuple[str, ...]:
    primary = incident.primary
    lines = [
        f"{primary.kind.value} by {primary.subject}: detector score {primary.score:.2f}",
        *primary.evidence[:_PRIMARY_LINES],
    ]
    lines += [
        f"related: {related.kind.value} by {related.subject}, score {related.score:.2f}"
        for related in incident.related[:_RELATED_LINES]
    ]
    for score in scores:
        verdict = "anomalous" if score.anomalous else "not anomalous"
        lines.append(
            f"classical: {score.model} {score.score:.3f}, above {score.baseline_quantile:.0%} of "
            f"{score.train_samples} baseline samples: {verdict}"
        )
    if not scores:
        missing = (
            "it is not installed here"
            if incident.primary.features
            else "the finding has no features of connections"
        )
        lines.append(f"no model was asked: {missing}")
    return (*lines[:31], f"classical alone: {why}"[:512])
