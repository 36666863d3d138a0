"""Find the highest rate that is held, in a bounded number of steps: for every program that searches one.

A rate is held when everything that was due was sent and came, once, and in time. One of two runs that holds it is
enough: what else the machine does for a moment must not end the search, so near the limit a lucky run counts.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from _drive import Run
from common import latency

from tocsin.contracts.errors import InvariantBrokenError

LOWEST_PER_S = 10.0
STEP = 1.5
"""By how much the search raises a rate that is held, until one is not."""
HALVINGS = 3
"""Rates tried between the two: the one found is within 1.5 ** (1 / 8), 5 %, of the next that was not held."""
TRIES = 2
"""Runs until a rate counts as not held."""
MAX_RATES = 16
"""Rates tried, at most: from where a search begins, up or down by a factor of 190 and then the halvings."""

T = TypeVar("T")


async def highest(
    held: Callable[[float], Awaitable[bool]], first: float, *, max_rates: int = MAX_RATES
) -> float:
    """Return the highest rate found that is held; 0 if none is.

    Args:
        held: tries a rate.
        first: the rate to begin with, in messages a second.
        max_rates: how many are tried, at most.
    """
    low, high = 0.0, math.inf
    rate = first
    left = max_rates
    while left and (not low or high == math.inf):
        left -= 1
        if await held(rate):
            low, rate = rate, round(rate * STEP)
        else:
            high, rate = rate, round(rate / STEP)
        if high <= LOWEST_PER_S:
            return 0.0
    for _ in range(min(HALVINGS, left)):
        rate = round(math.sqrt(low * high))
        if not low < rate < high:
            break
        if await held(rate):
            low = rate
        else:
            high = rate
    return low


def is_held(run: Run, p99_ms: float) -> bool:
    """Tell whether everything that was due was sent and came, once, and in time."""
    counted = run.tally
    complete = not (counted.lost or counted.duplicates or counted.not_sent)
    return complete and latency(counted.latencies_ms)["p99"] < p99_ms


@dataclass
class Search(Generic[T]):
    """One search, with what it has tried: all runs' figures, and the runs that are to be shown."""

    send: Callable[[float], Awaitable[T]]
    """Sends at a rate."""
    run_of: Callable[[T], Run]
    p99_ms: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Every run's figures, in order."""
    _best: tuple[float, T] | None = None
    _lowest: tuple[float, T] | None = None

    async def run(self, rate: float) -> bool:
        """Send at a rate; return whether it was held."""
        sent = await self.send(rate)
        run = self.run_of(sent)
        held = is_held(run, self.p99_ms)
        self.steps.append(_brief(rate, run, held=held))
        if held and (self._best is None or rate >= self._best[0]):
            self._best = rate, sent
        if self._lowest is None or rate <= self._lowest[0]:
            self._lowest = rate, sent
        return held

    async def highest(self, first: float, *, max_rates: int = MAX_RATES) -> float:
        """Return the highest rate that is held, at the latest by the last try; 0 if none is."""
        return await highest(self._held, first, max_rates=max_rates)

    def shown(self) -> tuple[float, T]:
        """Return the run at the highest rate that was held, or else at the lowest that was tried."""
        shown = self._best or self._lowest
        if shown is None:
            raise InvariantBrokenError("nothing was tried", reason="not_started")
        return shown

    async def _held(self, rate: float) -> bool:
        for _ in range(TRIES):
            if await self.run(rate):
                return True
        return False


def _brief(rate: float, run: Run, *, held: bool) -> dict[str, Any]:
    counted = run.tally
    return {
        "due_per_s": rate,
        "held": held,
        "sent": counted.sent,
        "received": counted.received,
        "lost": counted.lost,
        "duplicates": counted.duplicates,
        "not_sent": counted.not_sent,
        "late_sends": counted.late_sends,
        "latency_ms": latency(counted.latencies_ms),
        "cpu_cores": run.cpu_cores(),
    }
