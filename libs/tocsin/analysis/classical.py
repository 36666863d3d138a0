"""The classical tasks: isolation forest, and one-class SVMs with an RBF kernel or a measured one.

The only module here that needs numpy and scikit-learn; only workers import it.

Scores: ``score`` is the model's own scale turned so that larger is more anomalous (isolation forest: Liu et
al.'s anomaly score in (0, 1]; SVMs: minus the decision function). ``baseline_quantile`` is the share of the
baseline's samples that score strictly lower, each scored by a model that was fitted without it: leave-one-out
up to LEAVE_ONE_OUT samples, else k-fold with FOLDS folds (FOREST_FOLDS for the forest), shuffled by the task's
seed. A sample is ``anomalous`` from ANOMALOUS_QUANTILE on: one ordinary window in twenty is called so too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

from tocsin.contracts.analysis import AnomalyScore, ClassicalKind, ClassicalResult, ClassicalTask
from tocsin.contracts.errors import InvalidInputError

ANOMALOUS_QUANTILE = 0.95

NU = 0.1
"""Upper bound on the share of training errors of the SVMs (Schoelkopf et al. 2001, proposition 3). Twice the
5% that are called anomalous, so that the boundary is supported by more than one of twenty samples."""

TREES = 100
"""Liu, Ting, Zhou, "Isolation forest" (ICDM 2008), section 5.2: path lengths converge well before 100."""

LEAVE_ONE_OUT = 32
FOLDS = 10
FOREST_FOLDS = 5
"""Fewer for the forest: a fit is 0.1 s where an SVM's is 1 ms."""

MIN_TRAIN = 4

Array: TypeAlias = NDArray[np.float64]

_Fit: TypeAlias = Callable[[Array, NDArray[np.intp]], Callable[[Array], Array]]
"""Fits on the training rows of these indices; what it returns scores rows (larger is more anomalous)."""


def run(task: ClassicalTask, *, clock: Callable[[], float] = time.perf_counter) -> ClassicalResult:
    """Do one task; deterministic by its seed but for ``seconds``, which ``clock`` measures."""
    started = clock()
    train, test = _matrix(task.train, "train"), _matrix(task.test, "test")
    if train.shape[1] != test.shape[1]:
        raise InvalidInputError(
            f"train has {train.shape[1]} columns and test {test.shape[1]}", reason="bad_shape"
        )
    if len(train) < MIN_TRAIN:
        raise InvalidInputError(f"{len(train)} training samples, at least {MIN_TRAIN}", reason="bad_shape")
    fit: _Fit = _rbf_svm
    folds = FOLDS
    if task.kind is ClassicalKind.ISOLATION_FOREST:
        fit, folds = _isolation_forest(task.seed), FOREST_FOLDS
    elif task.kind is ClassicalKind.KERNEL_SVM:
        train, test = psd_projected(train, test)
        fit = _kernel_svm
    held_out = _held_out_scores(train, fit, folds, task.seed)
    scores = fit(train, np.arange(len(train)))(test)
    return ClassicalResult(
        scores=tuple(_anomaly_score(task.kind, float(score), held_out) for score in scores),
        seconds=max(0.0, clock() - started),
    )


def _matrix(rows: Sequence[Sequence[float]], name: str) -> Array:
    try:
        matrix = np.array(rows, dtype=np.float64)
    except ValueError:  # rows of different lengths
        raise InvalidInputError(f"the rows of {name} differ in length", reason="bad_shape") from None
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InvalidInputError(f"{name} is no matrix", reason="bad_shape")
    if not np.isfinite(matrix).all():
        raise InvalidInputError(f"{name} has values that are not finite", reason="not_finite")
    # libsvm squares what it is given; beyond this the squares of differences are no longer finite.
    if np.abs(matrix).max() > 1e100:
        raise InvalidInputError(f"{name} has values beyond 1e100", reason="out_of_bounds")
    return matrix


def psd_projected(train: Array, test: Array) -> tuple[Array, Array]:
    """Make a kernel that was measured with noise one that an SVM may use.

    The training kernel is symmetrised, and its negative eigenvalues, which shot noise makes, are set to zero
    (spectrum clipping; Chen et al., "Similarity-based classification", JMLR 10 (2009), section 4.1). The test
    rows are projected on the space that is left, so that both sides are changed alike (their section 4.3).
    """
    if train.shape[0] != train.shape[1]:
        raise InvalidInputError(f"a training kernel of shape {train.shape}, must be square", reason="bad_shape")
    values, vectors = np.linalg.eigh((train + train.T) / 2)
    kept = vectors[:, values > 0]
    if kept.shape[1] == 0:
        raise InvalidInputError("the training kernel has no positive eigenvalue", reason="bad_kernel")
    projected = (kept * values[values > 0]) @ kept.T
    return projected, test @ kept @ kept.T


def _rbf_svm(train: Array, index: NDArray[np.intp]) -> Callable[[Array], Array]:
    # gamma="scale": 1 / (features x variance), with the variance of the training rows.
    model = OneClassSVM(kernel="rbf", nu=NU, gamma="scale").fit(train[index])
    return lambda rows: -np.asarray(model.decision_function(rows), dtype=np.float64)


def _kernel_svm(train: Array, index: NDArray[np.intp]) -> Callable[[Array], Array]:
    model = OneClassSVM(kernel="precomputed", nu=NU).fit(train[np.ix_(index, index)])
    return lambda rows: -np.asarray(model.decision_function(rows[:, index]), dtype=np.float64)


def _isolation_forest(seed: int) -> _Fit:
    def fit(train: Array, index: NDArray[np.intp]) -> Callable[[Array], Array]:
        model = IsolationForest(n_estimators=TREES, random_state=seed, n_jobs=1).fit(train[index])
        return lambda rows: -np.asarray(model.score_samples(rows), dtype=np.float64)

    return fit


def _held_out_scores(train: Array, fit: _Fit, folds: int, seed: int) -> Array:
    count = len(train)
    order = np.random.default_rng(seed).permutation(count)
    parts = np.array_split(order, count if count <= LEAVE_ONE_OUT else folds)
    scores = np.empty(count)
    for part in parts:
        scores[part] = fit(train, np.setdiff1d(order, part))(train[part])
    return scores


def _anomaly_score(kind: ClassicalKind, score: float, held_out: Array) -> AnomalyScore:
    quantile = float(np.mean(held_out < score))
    return AnomalyScore(
        model=kind.value,
        score=score,
        baseline_quantile=quantile,
        anomalous=quantile >= ANOMALOUS_QUANTILE,
        train_samples=len(held_out),
    )
