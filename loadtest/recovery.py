"""Measure take-over: a host is killed with kill -9, and its agents' work accepted by others.

    python loadtest/recovery.py --agents 40 --kills 30

One mission runs; in each round a host that has work in hand is killed, and started again once its work is another's.
``recovery_ms`` is from just before the kill to the moment at which fleet has the last acceptance of what was taken over
(its own clock, which is this machine's). In the end the mission's objectives are all done: what is not is ``lost``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _agents import FleetOptions, add_fleet_options, host_names
from _broadcast import StopWatch
from _carrying import CarryingPlan
from _embedded import Embedded, embedded
from _missions import Client, fleet_service, host_worker, objectives_for, plan_host
from _processes import Worker, until_terminated
from common import Environment, emit, exit_with, latency, positive_float, positive_int, say, show_table

from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import InvariantBrokenError, UnavailableError
from tocsin.contracts.missions import (
    MissionNews,
    MissionRecord,
    MissionRequest,
    MissionState,
    ObjectiveState,
)

RECOVER_S = 45.0
"""For one take-over: heartbeats alone take 30 s to tell."""
END_S = 120.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One host's end."""

    host: str
    objectives: int
    """That its agents had in hand."""
    recovery_ms: float
    noticed_ms: float
    """Until fleet knew that the agents were gone."""


async def kill_one(client: Client, mission: str, name: str, worker: Worker, mine: frozenset[str]) -> Kill:
    """Kill a host that has work in hand; return how long its work took to be another's.

    Raises:
        UnavailableError: ``no_work``: nothing that runs is its agents'; ``no_news``.
    """
    record = await client.record(mission)
    held = [one for one in record.objectives if one.agent in mine and one.state is ObjectiveState.RUNNING]
    if not held:
        raise UnavailableError(f"{name} has nothing in hand", reason="no_work")
    client.heard.pop(mission, None)
    begun_ns = time.time_ns()
    os.kill(worker.pid, signal.SIGKILL)
    _, event = await client.news(mission, MissionNews.RECOVERED, timeout_s=RECOVER_S)
    record = await client.record(mission)
    taken = {one.objective.name: one for one in record.objectives}
    accepted_ns = max(taken[one.objective.name].accepted_ns for one in held)
    recovery_ms = (accepted_ns - begun_ns) / 1e6
    return Kill(name, len(held), recovery_ms, recovery_ms - (event.ms or 0.0))


async def kill_hosts(system: Embedded, options: argparse.Namespace) -> dict[str, Any]:
    """Set everything up, and kill a host again and again."""
    fleet = system.fleet
    names = host_names(fleet.agents)
    took = StopWatch()
    plans = {name: plan_host(system, name) for name in names}
    workers = {name: host_worker(system, name, plan) for name, plan in plans.items()}
    await fleet.enrol()
    took.lap("records")
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(fleet_service(system))
        for worker in workers.values():
            await stack.enter_async_context(worker)
        for worker in workers.values():
            await worker.ready()
        client = await Client.listening(fleet.bus, supervisor.check)
        await client.until_healthy(options.agents)
        took.lap("hosts")
        say(f"{options.agents} agents are there")
        kills: list[Kill] = []
        lost: list[MissionRecord] = []
        while len(kills) < options.kills:
            kills_here, record = await one_mission(
                stack, client, system, plans, workers, options, options.kills - len(kills)
            )
            kills += kills_here
            lost.append(record)
        return results(kills, lost, fleet.keys, took.laps, options)


async def one_mission(
    stack: AsyncExitStack,
    client: Client,
    system: Embedded,
    plans: dict[str, CarryingPlan],
    workers: dict[str, Worker],
    options: argparse.Namespace,
    wanted: int,
) -> tuple[list[Kill], MissionRecord]:
    """Run one mission, and kill each host once meanwhile: an objective goes to a few agents in turn at most."""
    agents = system.fleet.agents
    work = options.work
    request = MissionRequest(
        objectives=objectives_for(agents, options.objectives, work=work), deadline_s=work + END_S
    )
    mission = await client.start(request)
    await client.news(mission, MissionNews.COORDINATED, timeout_s=END_S)
    kills: list[Kill] = []
    for name in sorted(workers):
        if len(kills) >= wanted:
            break
        mine = frozenset(agent.name for agent in agents if agent.host == name)
        try:
            kills.append(await kill_one(client, mission, name, workers[name], mine))
        except UnavailableError as error:
            if error.reason != "no_work":
                raise
            continue
        say(f"{name}: {kills[-1].objectives} objectives recovered after {kills[-1].recovery_ms:.1f} ms")
        workers[name] = await stack.enter_async_context(host_worker(system, name, plans[name]))
        await workers[name].ready()
        await client.until_healthy(options.agents)
    await client.news(mission, MissionNews.ENDED, timeout_s=work * 4 + END_S)
    return kills, await client.record(mission)


def results(
    kills: list[Kill],
    records: list[MissionRecord],
    keys: int,
    setup_s: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the report's figures."""
    ended = [one for record in records for one in record.objectives]
    return {
        "agents": options.agents,
        "hosts": options.hosts,
        "keys": keys,
        "kills": len(kills),
        "missions": len(records),
        "complete": sum(record.state is MissionState.COMPLETE for record in records),
        "objectives": len(ended),
        "lost": sum(one.state is not ObjectiveState.DONE for one in ended),
        "taken_over": sum(record.taken_over for record in records),
        "fenced": sum(record.fenced for record in records),
        "recovery_ms": latency([kill.recovery_ms for kill in kills]),
        "noticed_ms": latency([kill.noticed_ms for kill in kills]),
        "by_kill": [{"host": kill.host, "objectives": kill.objectives} for kill in kills],
        "setup_s": setup_s,
    }


def check(found: Mapping[str, Any]) -> None:
    """Fail where work was lost.

    Raises:
        InvariantBrokenError: ``work_lost``.
    """
    if found["lost"]:
        raise InvariantBrokenError(f"{found['lost']} objectives were not done", reason="work_lost")


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options, type_name=THREAT_ALERT.name)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-recovery-") as folder:
        async with embedded(fleet_options, Path(folder)) as system:
            return environment, await kill_hosts(system, options)


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, found = asyncio.run(until_terminated(measure(options)))
    rows: list[list[object]] = [
        [f"{name} {part} ms", found[f"{name}_ms"][part]]
        for name in ("recovery", "noticed")
        for part in ("mean", "p50", "p99", "max")
    ]
    rows += [[name, found[name]] for name in ("kills", "taken_over", "lost")]
    show_table(f"{found['agents']} agents on {found['hosts']} hosts", ["", "kill -9 of a host"], rows)
    emit("loadtest/recovery.py", vars(options), environment, found)
    check(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_fleet_options(parser)
    add = parser.add_argument
    add("--kills", type=positive_int, default=30, help="how many hosts are killed, one after another")
    add("--objectives", type=positive_int, default=40, help="of each mission; one kills each host at most")
    add("--work", type=positive_float, default=20.0, help="seconds that an agent works at an objective")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
