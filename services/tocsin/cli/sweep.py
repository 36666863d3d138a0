"""What follows a response in the demo: the hunters watch for the attacker together, and a lost host is made good.

It is a mission as anyone can start it (`tocsin mission start`). Where the demo has started the system itself, a host
that works on the mission is killed in the middle of it, as a power cut would: fleet learns it from the broker at once
and gives what it was doing to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tocsin.bus import Bus
from tocsin.cli.job import Job
from tocsin.cli.mission import follow
from tocsin.cli.system import System
from tocsin.contracts.catalogue import FLEET_COORDINATE, FLEET_MISSION
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import (
    MissionQuestion,
    MissionRecord,
    MissionRequest,
    MissionState,
    Objective,
    ObjectiveState,
)

WATCHERS = 6
"""Objectives at most."""
WORK_S = 2.0
"""How long each hunter watches."""
KILL_AFTER_S = 0.5
"""After the mission began: everyone has accepted by then."""
ASK_S = 5.0
STAGE = "mission"


@dataclass(frozen=True, slots=True)
class Swept:
    """How it went."""

    record: MissionRecord
    lost_host: str | None
    """The host that was killed."""


async def sweep(system: System, bus: Bus, job: Job, subject: str) -> Swept:
    """Have the hunters watch for ``subject``; kill a host meanwhile, if another can take its work.

    Raises:
        TocsinError: fleet refuses the mission, or does not answer.
    """
    hunters = [agent for agent in system.agents if agent.role is Role.HUNTER]
    objectives = tuple(
        Objective(
            name=f"watch-{number}",
            subject=subject,
            role=Role.HUNTER,
            work=WORK_S,
            deadline_s=30.0,
        )
        for number in range(1, min(WATCHERS, len(hunters)) + 1)
    )
    request = MissionRequest(title=f"Watch for {subject}", objectives=objectives, deadline_s=60.0)
    mission = (await bus.request(FLEET_COORDINATE, request, timeout_s=ASK_S)).mission
    job.note(STAGE, f"{mission}: {len(objectives)} hunters watch for {subject}", headline=True)
    killing = asyncio.create_task(_kill_one(system, bus, job, mission))
    try:
        view = await follow(bus, mission, _teller(job))
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    lost = killing.result() if killing.done() and not killing.cancelled() else None
    record = view.record
    job.note(STAGE, outcome_of(record, lost), headline=True)
    return Swept(record, lost)


def outcome_of(record: MissionRecord, lost_host: str | None) -> str:
    """Say in a line how a mission ended."""
    done = sum(one.state is ObjectiveState.DONE for one in record.objectives)
    ended = "complete" if record.state is MissionState.COMPLETE else "incomplete"
    coordinated = (record.coordinated_ns - record.proposed_ns) / 1e6 if record.coordinated_ns else None
    told = f", all accepted after {coordinated:.0f} ms" if coordinated is not None else ""
    taken = f"; {lost_host} was killed, {record.taken_over} taken over" if lost_host else ""
    return f"{ended}: {done} of {len(record.objectives)} objectives done{told}{taken}"


async def _kill_one(system: System, bus: Bus, job: Job, mission: str) -> str | None:
    """Kill the host of an objective that somebody on another host can take over; return its name."""
    await asyncio.sleep(KILL_AFTER_S)
    view = await bus.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=ASK_S)
    host_of = {agent.name: agent.host for agent in system.agents}
    for one in view.record.objectives:
        host = host_of.get(one.agent)
        spare = [name for name in one.standbys if host_of.get(name) != host]
        if one.state is ObjectiveState.RUNNING and host is not None and spare and system.kill_host(host):
            job.note(STAGE, f"{host} is killed (SIGKILL) while {one.agent} works")
            return host
    return None


def _teller(job: Job) -> Callable[[str], None]:
    def tell(line: str) -> None:
        job.note(STAGE, line)

    return tell
