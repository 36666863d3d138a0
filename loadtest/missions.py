"""Measure missions: from a proposal until the last agent has accepted what it is given, and how well time is used.

    python loadtest/missions.py --agents 847 --missions 20

One mission at a time, with an objective for each agent (of its role, so that the assignment is a real one), over the
real fleet service and real hosts; agents work by waiting, so that what is measured is coordination and not the work.
``coordination_ms`` is from the moment that the client made its request to the one at which fleet has the last
acceptance; both clocks are this machine's. ``efficiency`` is as docs/explanation/missions.md defines it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from _agents import FleetOptions, add_fleet_options, host_names
from _broadcast import StopWatch
from _embedded import Embedded, embedded
from _missions import Client, fleet_service, host_worker, objectives_for, plan_host
from _processes import until_terminated
from common import Environment, emit, exit_with, latency, positive_float, positive_int, say, show_table

from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.missions import MissionNews, MissionRecord, MissionRequest, MissionState

END_S = 90.0
"""For a mission to end, beyond its work."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One mission, ended."""

    record: MissionRecord
    answered_ms: float
    """From before the request was made to its answer."""
    seen_ms: float
    """From before the request was made until the client has heard that all have accepted."""

    @property
    def coordination_ms(self) -> float:
        """From the making of the request until fleet had the last acceptance."""
        return (self.record.coordinated_ns - self.record.proposed_ns) / 1e6


async def run_one(client: Client, request: MissionRequest, *, work: float) -> Ran:
    """Run one mission to its end."""
    begun_ns = time.monotonic_ns()
    mission = await client.start(request)
    answered_ns = time.monotonic_ns()
    seen_ns, _ = await client.news(mission, MissionNews.COORDINATED, timeout_s=END_S)
    await client.news(mission, MissionNews.ENDED, timeout_s=work + END_S)
    record = await client.record(mission)
    return Ran(record, (answered_ns - begun_ns) / 1e6, (seen_ns - begun_ns) / 1e6)


def results(runs: Sequence[Ran]) -> dict[str, Any]:
    """Return the figures of some missions."""
    records = [run.record for run in runs]
    return {
        "missions": len(runs),
        "complete": sum(record.state is MissionState.COMPLETE for record in records),
        "taken_over": sum(record.taken_over for record in records),
        "coordination_ms": latency([run.coordination_ms for run in runs]),
        "answered_ms": latency([run.answered_ms for run in runs]),
        "seen_ms": latency([run.seen_ms for run in runs]),
        "took_ms": latency([(record.ended_ns - record.proposed_ns) / 1e6 for record in records]),
        "efficiency": round(fmean(record.efficiency or 0.0 for record in records), 4),
        "efficiency_least": round(min(record.efficiency or 0.0 for record in records), 4),
        "utilisation": round(fmean(record.utilisation or 0.0 for record in records), 4),
        "links": records[-1].topology.links,
        "hops": records[-1].topology.hops,
    }


async def run_missions(system: Embedded, options: argparse.Namespace) -> dict[str, Any]:
    """Set everything up, and run the missions one after another."""
    fleet = system.fleet
    names = host_names(fleet.agents)
    took = StopWatch()
    workers = [host_worker(system, name, plan_host(system, name)) for name in names]
    await fleet.enrol()
    took.lap("records")
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(fleet_service(system))
        for worker in workers:
            await stack.enter_async_context(worker)
        for worker in workers:
            await worker.ready()
        client = await Client.listening(fleet.bus, supervisor.check)
        await client.until_healthy(options.agents)
        took.lap("hosts")
        say(f"{options.agents} agents are there")
        request = MissionRequest(
            objectives=objectives_for(fleet.agents, options.objectives or options.agents, work=options.work),
            deadline_s=options.work + END_S,
            channels=options.channels,
        )
        # The first one also pays for what is imported and kept once.
        first = await run_one(client, request, work=options.work)
        runs = []
        for number in range(options.missions):
            await asyncio.sleep(options.pause)
            runs.append(await run_one(client, request, work=options.work))
            say(f"mission {number + 1}: coordinated after {runs[-1].coordination_ms:.1f} ms")
        return {
            "agents": options.agents,
            "hosts": options.hosts,
            "keys": fleet.keys,
            "objectives": len(request.objectives),
            **results(runs),
            "first": results([first]),
            "setup_s": took.laps,
        }


def check(found: Mapping[str, Any]) -> None:
    """Fail where a mission is not complete.

    Raises:
        InvariantBrokenError: ``missions_incomplete``.
    """
    if found["complete"] < found["missions"]:
        raise InvariantBrokenError(
            f"{found['missions'] - found['complete']} missions are incomplete", reason="missions_incomplete"
        )


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options, type_name=THREAT_ALERT.name)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-missions-") as folder:
        async with embedded(fleet_options, Path(folder)) as system:
            return environment, await run_missions(system, options)


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, found = asyncio.run(until_terminated(measure(options)))
    rows: list[list[object]] = [
        [f"{name} {part} ms", found[f"{name}_ms"][part]]
        for name in ("coordination", "answered", "took")
        for part in ("p50", "p99", "max")
    ]
    rows += [[name, found[name]] for name in ("efficiency", "efficiency_least", "utilisation")]
    show_table(f"{found['objectives']} objectives, {found['agents']} agents", ["", "missions"], rows)
    emit("loadtest/missions.py", vars(options), environment, found)
    check(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_fleet_options(parser)
    parser.set_defaults(agents=847)
    add = parser.add_argument
    add("--missions", type=positive_int, default=20, help="how many, one after another")
    add(
        "--objectives",
        type=positive_int,
        default=None,
        help="in each; as many as there are agents if not given",
    )
    add("--work", type=positive_float, default=5.0, help="seconds that an agent works at an objective")
    add(
        "--channels",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="open the channels along each mission's topology meanwhile",
    )
    add("--pause", type=positive_float, default=0.3, help="seconds between two missions")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
