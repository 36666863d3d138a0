"""The search for the highest rate that is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
from _drive import Run
from _search import HALVINGS, STEP, TRIES, Search, highest, is_held
from _traffic import Tally

from tocsin.contracts.errors import InvariantBrokenError

GOOD = Tally(
    sent=100,
    received=100,
    lost=0,
    duplicates=0,
    not_sent=0,
    late_sends=3,
    latencies_ms=[1.0] * 99 + [500.0],
    lags_ms=[],
    took_ms=[],
    achieved_per_s=99.0,
)


@pytest.mark.parametrize("limit", [40, 199, 200, 201, 333, 1000, 4321.5])
async def test_the_search_ends_close_below_the_limit(limit: float) -> None:
    tried = []

    async def held(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = await highest(held, 200.0)
    assert found in tried
    assert found <= limit
    # Rates are whole numbers, so the next one may be one further away.
    assert limit <= found * STEP ** (1 / 2**HALVINGS) + 2
    assert len(tried) == len(set(tried))


async def test_the_search_gives_up_where_nothing_is_held() -> None:
    tried = []

    async def held(rate: float) -> bool:
        tried.append(rate)
        return False

    assert await highest(held, 200.0) == 0.0
    assert len(tried) < 10


@pytest.mark.parametrize(
    ("tally", "held"),
    [
        (GOOD, True),
        (replace(GOOD, lost=1), False),
        (replace(GOOD, duplicates=1), False),
        (replace(GOOD, not_sent=1), False),
        (replace(GOOD, latencies_ms=[1.0] * 98 + [50.0] * 2), False),
    ],
)
def test_a_rate_is_held_when_all_came_once_and_in_time(tally: Tally, held: bool) -> None:
    assert is_held(run(tally), p99_ms=50.0) is held


@pytest.mark.parametrize("limit", [1.0, 1e9])
async def test_the_search_is_bounded(limit: float) -> None:
    tried = []

    async def held(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = await highest(held, 200.0, max_rates=5)
    assert len(tried) == 5
    assert found == (max(tried) if limit > 1 else 0.0)


async def test_one_of_two_runs_is_enough_and_both_are_kept() -> None:
    runs = {100.0: [replace(GOOD, lost=1), GOOD], 150.0: [replace(GOOD, lost=1)] * TRIES}

    async def send(rate: float) -> Run:
        return run(runs[rate].pop(0) if rate in runs else replace(GOOD, lost=1))

    search = Search(send, lambda sent: sent, p99_ms=50.0)
    assert await search.highest(100.0, max_rates=2) == 100.0
    assert [(step["due_per_s"], step["held"]) for step in search.steps] == [
        (100.0, False),
        (100.0, True),
        (150, False),
        (150, False),
    ]
    rate, shown = search.shown()
    assert (rate, shown.tally) == (100.0, GOOD)


async def test_where_nothing_is_held_the_lowest_rate_is_shown() -> None:
    async def send(rate: float) -> Run:
        return run(replace(GOOD, lost=1, sent=int(rate)))

    search = Search(send, lambda sent: sent, p99_ms=50.0)
    with pytest.raises(InvariantBrokenError):
        search.shown()
    assert await search.highest(100.0) == 0.0
    rate, shown = search.shown()
    assert rate == shown.tally.sent == min(step["due_per_s"] for step in search.steps)


def run(tally: Tally) -> Run:
    return Run(tally, outcomes=[], cpu_s={"router-1": 0.5}, others_cpu_s=0.2, window_s=2.0)
