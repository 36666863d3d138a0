"""The ways that the same traffic can take over one broker: through routers, or through relays without envelopes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from _agents import host_names
from _ahead import Ahead, plan_ahead, signature_s
from _drive import Run, drive, started
from _embedded import Embedded, Routers
from _host import HostPlan
from _relay import RelayPlan
from _routed import Routed, through_routers
from _traffic import Schedule, schedule
from _worker import TrafficPlan
from common import DIGITS, SUMMARY, cores, say

from tocsin.contracts.operations import MetricsSnapshot


@dataclass(slots=True)
class Planes:
    """Both ways, for agents that are enrolled. Make it with :func:`enrolled`."""

    system: Embedded
    options: argparse.Namespace
    hosts: Mapping[str, HostPlan]
    setup_s: dict[str, float]
    """How long each part of the preparation took: ``certificates``, ``records``, ``routers`` and ``hosts``."""
    _signature_s: float = field(default=0.0)

    async def through_routers(self, routers: Routers, rate: float) -> Routed:
        """Send at a rate through Tocsin."""
        plan = self._schedule(rate)
        ahead = self._ahead(plan) if self.options.presigned else None
        say(f"{len(routers.names)} routers, {rate:g} messages a second")
        hosts = {name: host.model_copy(update={"schedule": plan}) for name, host in self.hosts.items()}
        groups = {"router": routers.pids, "broker": [self.system.broker.process.pid]}
        routed = await through_routers(self.system.fleet, plan, hosts, routers.names, groups, ahead=ahead)
        self.setup_s["hosts"] = round(routed.hosts_ready_s, 3)
        return routed

    async def through_relays(self, count: int, rate: float) -> Run:
        """Send the same traffic without envelopes, through so many relays."""
        fleet, plan = self.system.fleet, self._schedule(rate)
        say(f"{count} relays, {rate:g} messages a second")
        where = {"nats_url": fleet.nats_url, "nats_token_file": str(fleet.token_file)}
        relays = {f"relay-{number}": RelayPlan(**where) for number in range(count)}
        plans = {
            name: TrafficPlan(
                **where,
                schedule=plan,
                sender=host.sender,
                agents=host.agents,
                everyone=host.everyone,
                body_bytes=host.body_bytes,
                seed=host.seed,
            )
            for name, host in self.hosts.items()
        }
        async with (
            started(fleet.folder, "_relay.py", relays) as relaying,
            started(fleet.folder, "_plain.py", plans) as workers,
        ):
            groups = {
                "router": [relay.pid for relay in relaying],
                "broker": [self.system.broker.process.pid],
                "hosts": [worker.pid for worker in workers],
            }
            return await drive(plan, workers, groups)

    def _schedule(self, rate: float) -> Schedule:
        options = self.options
        return schedule(rate=rate, warmup_s=options.warmup, seconds=options.seconds, senders=options.hosts)

    def _ahead(self, plan: Schedule) -> Ahead:
        fleet = self.system.fleet.options
        self._signature_s = self._signature_s or signature_s(fleet.backend, fleet.algorithm)
        return plan_ahead(plan.total, self._signature_s, min(len(self.hosts), cores()))


async def enrolled(system: Embedded, options: argparse.Namespace) -> Planes:
    """Certify and enrol the agents."""
    fleet = system.fleet
    begun = time.monotonic()
    unused = schedule(rate=1.0, warmup_s=0.0, seconds=1.0, senders=options.hosts)
    hosts = {
        host: fleet.host_plan(host, unused, number, options.seed + number)
        for number, host in enumerate(host_names(fleet.agents))
    }
    certified = time.monotonic()
    await fleet.enrol()
    setup_s = {"certificates": certified - begun, "records": time.monotonic() - certified}
    return Planes(system, options, hosts, {name: round(took_s, 3) for name, took_s in setup_s.items()})


def stages(router: MetricsSnapshot) -> dict[str, Any]:
    """Return a router's own latencies: from a message's making to its forwarding, and the part inside.

    They are of all messages since its start, warm-up included; the percentiles are of the last 4,096.
    """
    return {
        f"{name}_ms": {part: round(getattr(router.latencies[name], part), DIGITS) for part in SUMMARY}
        for name in ("route", "route_inside")
        if name in router.latencies
    }


def with_cpu(run: Run) -> dict[str, Any]:
    """Return a run's figures and its CPU time: what both planes have."""
    cpu = {f"{group}_cpu_us_per_message": used for group, used in run.cpu_us_per_message().items()}
    return run.figures() | cpu | {"cpu_cores": run.cpu_cores()}
