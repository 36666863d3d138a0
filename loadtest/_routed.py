"""Traffic through routers, wherever these run: hosts send and receive it, and every process's counters are read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _ahead import Ahead
from _drive import Run, drive, started
from _fleet import Fleet
from _host import HostPlan
from _traffic import Schedule, sum_counters

from tocsin.contracts.operations import MetricsSnapshot


@dataclass(frozen=True, slots=True)
class Routed:
    """A run through routers, with what they counted meanwhile; all messages, warm-up included."""

    plan: Schedule
    run: Run
    hosts: tuple[str, ...]
    routers: dict[str, MetricsSnapshot]
    """Each router's figures after it, by process."""
    counted: dict[str, dict[str, int]]
    """How much each router's counters grew."""
    hosts_ready_s: float = 0.0
    """From the hosts' start until all were ready."""

    def verifications(self) -> dict[str, Any]:
        """Return what was signed, verified and refused."""
        outcomes = self.run.outcomes
        by_process = {f"host.{name}": one.counters for name, one in zip(self.hosts, outcomes, strict=True)}
        by_process |= self.counted
        everything = sum_counters(by_process.values())
        signing = sum_counters(one.counters for one in outcomes)
        full = {name: counters.get("full_verifications", 0) for name, counters in by_process.items()}
        return {
            "messages_with_warmup": self.plan.total,
            "batch_mean": round(signing["envelopes_signed"] / max(signing["signatures_made"], 1), 2),
            "full_verifications": full,
            "full_verifications_per_message": round(sum(full.values()) / self.plan.total, 4),
            "refused": {
                name: count
                for name, count in sorted(everything.items())
                if count
                and name.startswith(("broker_", "rejected.", "refused.", "duplicates.", "handler_", "unsent."))
            },
            "send_failures": dict(sum_counters(one.failures for one in outcomes)),
        }


async def through_routers(
    fleet: Fleet,
    plan: Schedule,
    hosts: Mapping[str, HostPlan],
    routers: Sequence[str],
    groups: Mapping[str, list[int]],
    *,
    ahead: Ahead | None = None,
) -> Routed:
    """Start the hosts, run the traffic and return it with what everyone counted.

    Args:
        fleet: whose agents they carry; its routers are ready.
        plan: the traffic.
        hosts: what each host is told.
        routers: the routers' instances.
        groups: process ids whose CPU time is read besides the hosts'.
        ahead: the hosts sign before the start.
    """
    script = "_host.py" if ahead is None else "_ahead.py"
    begun = time.monotonic()
    async with started(fleet.folder, script, hosts) as workers:
        ready_s = time.monotonic() - begun
        before = await fleet.router_figures(routers)
        run = await drive(plan, workers, {**groups, "hosts": [worker.pid for worker in workers]}, ahead=ahead)
        after = await fleet.router_figures(routers)
    counted = {
        name: {
            counter: value - before[name].counters.get(counter, 0) for counter, value in one.counters.items()
        }
        for name, one in after.items()
    }
    return Routed(plan, run, tuple(hosts), after, counted, ready_s)
