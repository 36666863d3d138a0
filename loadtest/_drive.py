"""One run of traffic: workers are started, sent off, awaited and asked; CPU time is read around what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _ahead import MAX_SHIFT_S, Ahead
from _processes import Worker, cpu_s, machine_cpu_s
from _traffic import Outcome, Schedule, Tally, tally
from common import latency, say
from pydantic import BaseModel

from tocsin.contracts.errors import InvariantBrokenError

LEAD_S = 0.5
"""From the word to start to the first message: all workers have heard it by then."""
QUIET_S = 2.0
"""When nothing more has arrived for so long, what is missing is lost."""
POLL_S = 0.1
SETTLE_S = 0.3
"""After the last expected arrival: a duplicate would show."""


@dataclass(frozen=True, slots=True)
class Run:
    """One plane's traffic, ended."""

    tally: Tally
    outcomes: Sequence[Outcome]
    cpu_s: dict[str, float]
    """CPU time of the measured window, by group of processes."""
    others_cpu_s: float
    """What everything else on this machine used meanwhile."""
    window_s: float
    """From the first measured message's due moment until all had arrived, or would not any more."""
    signing: dict[str, float] | None = None
    """What was signed ahead: ``planned_s``, ``took_s`` and ``start_late_s``, by how much the start was moved."""

    def figures(self) -> dict[str, Any]:
        """Return what every plane has."""
        counted = self.tally
        ahead = {} if self.signing is None else {"signed_ahead": self.signing}
        return {
            "sent": counted.sent,
            "received": counted.received,
            "lost": counted.lost,
            "duplicates": counted.duplicates,
            "not_sent": counted.not_sent,
            "late_sends": counted.late_sends,
            "achieved_per_s": counted.achieved_per_s,
            "latency_ms": latency(counted.latencies_ms),
            "send_lag_ms": latency([max(0.0, lag) for lag in counted.lags_ms]),
            "send_ms": latency(counted.took_ms),
            **ahead,
        }

    def cpu_us_per_message(self) -> dict[str, float]:
        """Return the CPU time for each message received, in microseconds, by group."""
        received = max(self.tally.received, 1)
        return {group: round(used * 1e6 / received, 1) for group, used in self.cpu_s.items()}

    def cpu_cores(self) -> dict[str, float]:
        """Return how many cores each group kept busy, and ``others``: whatever else runs on this machine."""
        used_s = {**self.cpu_s, "others": self.others_cpu_s}
        return {group: round(used / self.window_s, 3) for group, used in used_s.items()}


async def drive(
    plan: Schedule,
    workers: Sequence[Worker],
    groups: Mapping[str, list[int]],
    *,
    ahead: Ahead | None = None,
) -> Run:
    """Start the traffic, wait until it has arrived or will not any more, and collect the outcomes.

    Args:
        plan: the traffic.
        workers: who sends and receives it.
        groups: the process ids whose CPU time is read, by what they do.
        ahead: the workers sign before the start.
    """
    start_ns, signing = await _start_of(workers, ahead)
    for worker in workers:
        worker.start(start_ns)
    await asyncio.sleep((start_ns + plan.due_ns(plan.warmup) - time.monotonic_ns()) / 1e9)
    before, machine_before_s, begun = _cpu_s(groups), machine_cpu_s(), time.monotonic()
    await _until_arrived(plan, workers)
    after, machine_s, window_s = _cpu_s(groups), machine_cpu_s() - machine_before_s, time.monotonic() - begun
    await asyncio.sleep(SETTLE_S)
    outcomes = []
    for worker in workers:
        outcome = (await worker.finish()).outcome
        if outcome is None:
            raise InvariantBrokenError(f"{worker.name} ended without an outcome", reason="bad_report")
        outcomes.append(outcome)
    used = {group: after[group] - before[group] for group in groups}
    others_s = max(0.0, machine_s - sum(used.values()))
    return Run(tally(plan, start_ns, outcomes), outcomes, used, others_s, window_s, signing)


async def _start_of(workers: Sequence[Worker], ahead: Ahead | None) -> tuple[int, dict[str, float] | None]:
    """Return when message 0 is due, by the monotonic clock, and how the signing ahead went."""
    begun_ns = time.monotonic_ns()
    if ahead is None:
        return begun_ns + round(LEAD_S * 1e9), None
    planned_ns = begun_ns + round(ahead.planned_s * 1e9)
    for worker in workers:
        worker.start(planned_ns)
    for worker in workers:
        await worker.signed(ahead.planned_s + MAX_SHIFT_S)
    took_ns = time.monotonic_ns() - begun_ns
    start_ns = max(planned_ns, begun_ns + took_ns + round(LEAD_S * 1e9))
    late_s = (start_ns - planned_ns) / 1e9
    ahead.shifted(late_s)
    await asyncio.sleep((start_ns - time.monotonic_ns()) / 1e9 - LEAD_S)
    figures = {"planned_s": ahead.planned_s, "took_s": took_ns / 1e9, "start_late_s": late_s}
    return start_ns, {name: round(value, 3) for name, value in figures.items()}


def _cpu_s(groups: Mapping[str, list[int]]) -> dict[str, float]:
    return {group: cpu_s(pids) for group, pids in groups.items()}


async def _until_arrived(plan: Schedule, workers: Sequence[Worker]) -> None:
    last, changed, told = -1, time.monotonic(), 0.0
    while True:
        for worker in workers:
            worker.check()
        received = sum(worker.said.received for worker in workers)
        sent = sum(worker.said.sent for worker in workers)
        if all(worker.said.state == "sent" for worker in workers):
            if received >= sent or time.monotonic() - changed > QUIET_S:
                return
        elif received == last:
            changed = time.monotonic()  # still sending: what is late may come
        if received != last:
            last, changed = received, time.monotonic()
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            say(f"  {received:,} of {plan.total:,} messages have arrived")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def started(folder: Path, script: str, plans: Mapping[str, BaseModel]) -> AsyncIterator[list[Worker]]:
    """Start a worker for each plan, wait until they are ready, and end them afterwards."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(Worker(name, script, plan, logs / f"{script}.{name}.log"))
            for name, plan in plans.items()
        ]
        for worker in workers:
            await worker.ready()
        yield workers
