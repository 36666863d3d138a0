"""One run of alerts: hosts and routers are started, alerts sent, and everybody asked what became of them."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from _agents import host_names
from _alerts import Alert, Fault, Heard, Told, join
from _drive import LEAD_S, started
from _embedded import Embedded, Routers
from _faults import break_in_turn
from _hosts import install_host
from _link import Link
from _listening import ListeningPlan
from _processes import Worker, cpu_s
from _traffic import Schedule
from common import say

from tocsin.contracts.catalogue import EVENT
from tocsin.contracts.errors import InvariantBrokenError, UnavailableError
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.contracts.routing import Delivery

SETTLE_S = 1.0
"""After the hosts are ready: their agents have made themselves known."""
POLL_S = 0.5


@dataclass(slots=True)
class Measured:
    """A run, ended."""

    alerts: list[Alert]
    hosts: dict[str, Heard]
    faults: list[Fault] = field(default_factory=list)
    full_verifications: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    window_s: float = 0.0
    setup_s: dict[str, float] = field(default_factory=dict)


async def send_alerts(system: Embedded, options: argparse.Namespace) -> Measured:
    """Set everything up and send the alerts."""
    fleet = system.fleet
    names = host_names(fleet.agents)
    schedule = Schedule(rate=1 / options.pause, warmup=0, measured=options.alerts, senders=1)
    async with Link(system.broker.port) as link:
        took = StopWatch()
        plans = {
            name: ListeningPlan(
                settings=install_host(
                    fleet, name, nats_url=link.url if options.faults and name == names[-1] else fleet.nats_url
                ).model_dump(mode="json"),
                sender=fleet.agents[0].name if name == names[0] else "",
                schedule=schedule,
            )
            for name in names
        }
        took.lap("certificates")
        await fleet.enrol()
        took.lap("records")
        async with system.routers(options.routers) as routers:
            took.lap("routers")
            async with started(fleet.folder, "_listening.py", plans) as workers:
                took.lap("hosts")
                say(f"{options.agents} agents are there")
                await asyncio.sleep(SETTLE_S)
                measured = await _send(system, routers, workers, link, options)
        measured.setup_s = took.laps
        return measured


async def _send(
    system: Embedded,
    routers: Routers,
    workers: Sequence[Worker],
    link: Link,
    options: argparse.Namespace,
) -> Measured:
    fleet = system.fleet
    before = await fleet.router_figures(routers.names)
    begun_wall_ns = time.time_ns()
    start_ns = time.monotonic_ns() + round(LEAD_S * 1e9)
    groups = {
        "router": routers.pids,
        "broker": [system.broker.process.pid],
        "hosts": [worker.pid for worker in workers],
    }
    cpu_before = {name: cpu_s(pids) for name, pids in groups.items()}
    for worker in workers:
        worker.start(start_ns)
    async with _faults(system, routers, link, options, start_ns) as faults:
        accounts = await _until_accounted(system, workers, begun_wall_ns, options)
    window_s = (time.monotonic_ns() - start_ns) / 1e9
    # Whoever was killed took its figures along.
    cpu_after = {} if options.faults else {name: cpu_s(pids) for name, pids in groups.items()}
    after = await fleet.router_figures(routers.names)
    hosts = {worker.name: await _heard(worker) for worker in workers}
    verified = {f"host.{name}": host.counters.get("full_verifications", 0) for name, host in hosts.items()}
    return Measured(
        join(list(hosts.values()), accounts),
        hosts,
        faults,
        verified | {name: _grown(before[name], one) for name, one in after.items()},
        {name: used - cpu_before[name] for name, used in cpu_after.items()},
        window_s,
    )


@asynccontextmanager
async def _faults(
    system: Embedded, routers: Routers, link: Link, options: argparse.Namespace, start_ns: int
) -> AsyncIterator[list[Fault]]:
    """Break things meanwhile, if that is asked for; the list is filled when it ends."""
    faults: list[Fault] = []
    if not options.faults:
        yield faults
        return
    lasting_s = options.alerts * options.pause
    breaking = asyncio.create_task(break_in_turn(system, routers, link, start_ns=start_ns, lasting_s=lasting_s))
    try:
        yield faults
        faults += await breaking
    finally:
        breaking.cancel()


async def _until_accounted(
    system: Embedded, workers: Sequence[Worker], begun_wall_ns: int, options: argparse.Namespace
) -> list[Told]:
    """Wait until every alert has its account and every agent has had it, or neither will come any more."""
    deadline: float | None = None
    told: list[Told] = []
    while True:
        for worker in workers:
            worker.check()
        all_sent = all(worker.said.state == "sent" for worker in workers)
        sent = sum(worker.said.sent for worker in workers)
        received = sum(worker.said.received for worker in workers)
        if all_sent:
            deadline = deadline or time.monotonic() + options.wait
            told = await _accounts(system, begun_wall_ns) or told
            complete = {one.account.leaf for one in told if one.account.complete}
            if (len(complete) >= sent and received >= sent * options.agents) or time.monotonic() > deadline:
                return told
        await asyncio.sleep(POLL_S)


async def _accounts(system: Embedded, begun_wall_ns: int) -> list[Told]:
    """Return the routers' accounts as stream EVENTS holds them, each verified; none while the broker is away."""
    at = {"service": "router", "kind": "delivery"}
    try:
        found = await system.fleet.bus.since(EVENT, start_ns=begun_wall_ns, at=at)
    except UnavailableError:
        return []
    wall_ns = time.time_ns() - time.monotonic_ns()
    return [Told(cast("Delivery", body), context.content.issued_at - wall_ns) for body, context in found]


async def _heard(worker: Worker) -> Heard:
    heard = (await worker.finish()).heard
    if heard is None:
        raise InvariantBrokenError(f"{worker.name} ended without an outcome", reason="bad_report")
    return heard


def _grown(before: MetricsSnapshot, after: MetricsSnapshot) -> int:
    """Return what a router verified meanwhile; all that it has, if it was started anew."""
    name = "full_verifications"
    earlier = before.counters.get(name, 0) if after.uptime_s > before.uptime_s else 0
    return after.counters.get(name, 0) - earlier


class StopWatch:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begun = time.monotonic()

    def lap(self, name: str) -> None:
        """End a part and begin the next."""
        now = time.monotonic()
        self.laps[name], self._begun = round(now - self._begun, 3), now
