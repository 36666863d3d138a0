"""Summarise latencies: the one definition of a percentile, for services and for the load tests alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.operations import LatencySummary

MAX_SAMPLE_MS = 1e12
"""Greatest latency accepted, in ms: 31 years. Sums of samples below it stay finite."""


def summarise(samples_ms: Sequence[float]) -> LatencySummary:
    """Return the nearest-rank percentiles, the maximum and the mean of ``samples_ms``.

    Nearest rank: the p-th percentile of n sorted samples is the one at rank ceil(p * n / 100), counted
    from 1; so every percentile is a sample that was measured. No samples give zeros. O(n log n).

    Args:
        samples_ms: latencies in milliseconds, in any order, each from 0 to ``MAX_SAMPLE_MS``.

    Raises:
        InvalidInputError: a sample is negative, too great or not a number.
    """
    for sample in samples_ms:
        if not 0.0 <= sample <= MAX_SAMPLE_MS:
            raise InvalidInputError(
                f"latency of {sample!r} ms is not within 0 to {MAX_SAMPLE_MS:g}", reason="latency_out_of_bounds"
            )
    return summarise_valid(samples_ms)


def summarise_valid(samples_ms: Sequence[float]) -> LatencySummary:
    """Do as ``summarise`` does, for samples whose bounds the caller has checked."""
    ordered = sorted(samples_ms)
    if not ordered:
        return LatencySummary(count=0, p50=0.0, p95=0.0, p99=0.0, max=0.0, mean=0.0)
    # The division rounds: the mean of equal samples could pass their maximum by one unit in the last place.
    mean = min(max(fsum(ordered) / len(ordered), ordered[0]), ordered[-1])
    return LatencySummary(
        count=len(ordered),
        p50=_nearest_rank(ordered, 50),
        p95=_nearest_rank(ordered, 95),
        p99=_nearest_rank(ordered, 99),
        max=ordered[-1],
        mean=mean,
    )


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    rank = -(-percent * len(ordered) // 100)  # ceiling, in integers
    return ordered[rank - 1]
