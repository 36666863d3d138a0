from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.errors import InvalidInputError
from tocsin.telemetry import MAX_SAMPLE_MS, summarise


def test_nearest_rank_on_one_to_a_hundred() -> None:
    summary = summarise([float(n) for n in range(100, 0, -1)])
    assert (summary.count, summary.p50, summary.p95, summary.p99) == (100, 50.0, 95.0, 99.0)
    assert (summary.max, summary.mean) == (100.0, 50.5)


@pytest.mark.parametrize(
    ("samples", "p50", "p95", "p99"),
    [
        ([7.0], 7.0, 7.0, 7.0),
        ([2.0, 1.0], 1.0, 2.0, 2.0),
        # The textbook case of nearest rank: the median of these is an element, not a mean of two.
        ([15.0, 20.0, 35.0, 40.0, 50.0], 35.0, 50.0, 50.0),
        ([3.0, 6.0, 7.0, 8.0, 8.0, 10.0, 13.0, 15.0, 16.0, 20.0], 8.0, 20.0, 20.0),
    ],
)
def test_percentiles_are_samples(samples: list[float], p50: float, p95: float, p99: float) -> None:
    summary = summarise(samples)
    assert (summary.p50, summary.p95, summary.p99) == (p50, p95, p99)


def test_nothing_gives_zeros() -> None:
    assert set(summarise([]).model_dump().values()) == {0}


@pytest.mark.parametrize("bad", [-0.001, math.nan, math.inf, -math.inf, MAX_SAMPLE_MS * 1.01])
def test_what_is_no_latency_is_refused(bad: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        summarise([1.0, bad, 2.0])
    assert caught.value.reason == "latency_out_of_bounds"


SAMPLES = st.lists(st.floats(min_value=0, max_value=MAX_SAMPLE_MS), min_size=1, max_size=300)


@given(SAMPLES)
def test_every_percentile_is_a_sample_with_enough_samples_below(samples: list[float]) -> None:
    summary = summarise(samples)
    for percent, value in ((50, summary.p50), (95, summary.p95), (99, summary.p99)):
        assert value in samples
        assert 100 * sum(sample <= value for sample in samples) >= percent * len(samples)
        assert 100 * sum(sample < value for sample in samples) < percent * len(samples)
    assert summary.p50 <= summary.p95 <= summary.p99 <= summary.max == max(samples)
    assert min(samples) <= summary.mean <= summary.max
    assert summary.count == len(samples)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples: list[float], chance: random.Random) -> None:
    shuffled = list(samples)
    chance.shuffle(shuffled)
    assert summarise(shuffled) == summarise(samples)


@given(st.lists(st.floats()))
def test_any_floats_give_a_summary_or_our_error(samples: list[float]) -> None:
    try:
        assert summarise(samples).count == len(samples)
    except InvalidInputError:
        assert any(not 0 <= sample <= MAX_SAMPLE_MS for sample in samples)
