"""What tests of missions share: agents whose work a test decides, and a client that starts missions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fleet_support import FleetWorld, tokens_for
from support import World

from tocsin.agent import Agent, AgentHost, ObjectiveContext
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import EVENT, FLEET_COORDINATE, FLEET_MISSION
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.missions import (
    MissionEvent,
    MissionQuestion,
    MissionRecord,
    MissionRequest,
    MissionState,
    Objective,
    ObjectiveRecord,
)
from tocsin.fleet.service import FleetService

HOSTS = {
    "h1": [("hunter-01", Role.HUNTER), ("sentinel-01", Role.SENTINEL)],
    "h2": [("hunter-02", Role.HUNTER), ("sentinel-02", Role.SENTINEL)],
}


@dataclass
class Script:
    """What the workers of a test do: each objective's end waits for its name among ``released``."""

    begun: list[tuple[str, str, int]] = field(default_factory=list)
    """Objective, agent, epoch."""
    released: set[str] = field(default_factory=set)
    fail: set[str] = field(default_factory=set)
    """Agents that raise."""
    ended: list[str] = field(default_factory=list)
    tasks: list[tuple[str, object]] = field(default_factory=list)

    def make(self, role: Role, name: str) -> Agent:
        """Make a worker of a role."""
        kind: type[Worker] = type(f"{role.value.title()}Worker", (Worker,), {"role": role})
        return kind(name, self)


class Worker(Agent):
    """Does what the script says."""

    capabilities = ("dig",)

    def __init__(self, name: str, script: Script) -> None:
        super().__init__(name)
        self.script = script

    async def on_objective(self, objective: Objective, context: ObjectiveContext) -> str:
        """Wait for the script."""
        self.script.begun.append((objective.name, self.name, context.epoch))
        if self.name in self.script.fail:
            raise UnavailableError("no shovel", reason="no_shovel")
        context.progress(0.5, "half")
        while objective.name not in self.script.released and "*" not in self.script.released:
            await asyncio.sleep(0.01)
        self.script.ended.append(self.name)
        return f"{objective.name} by {self.name}"

    async def on_task(self, content: object, _: object) -> None:
        """Note it."""
        self.script.tasks.append((self.name, content))


async def start(bus: Bus, *objectives: Objective, **more: object) -> str:
    """Start a mission; return its name."""
    request = MissionRequest(objectives=objectives, **more)
    return (await bus.request(FLEET_COORDINATE, request, timeout_s=10)).mission


async def look(bus: Bus, mission: str) -> MissionRecord:
    """Ask for a mission."""
    return (await bus.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=10)).record


async def until_ended(bus: Bus, mission: str, *, within_s: float = 30.0) -> MissionRecord:
    """Wait until a mission has ended."""
    async with asyncio.timeout(within_s):
        while True:
            record = await look(bus, mission)
            if record.state is not MissionState.RUNNING:
                return record
            await asyncio.sleep(0.05)


async def until_fit(service: FleetService, agents: int, *, within_s: float = 20.0) -> None:
    """Wait until fleet has so many agents to give work to."""
    async with asyncio.timeout(within_s):
        while len(service.missions.profiles.candidates({}, now_ns=time.time_ns())) < agents:
            await asyncio.sleep(0.02)


def of(record: MissionRecord, name: str) -> ObjectiveRecord:
    """Return one objective of a record."""
    return next(one for one in record.objectives if one.objective.name == name)


@dataclass
class System:
    """A fleet with two hosts, and a client."""

    fleet: FleetWorld
    service: FleetService
    cli: Bus
    script: Script
    hosts: dict[str, AgentHost]
    news: list[MissionEvent] = field(default_factory=list)


@asynccontextmanager
async def system(world: World, **settings: Any) -> AsyncIterator[System]:
    tokens = [one for host, agents in HOSTS.items() for one in tokens_for(host, agents)]
    async with FleetWorld(world, tokens, world.folder) as fleet:
        script = Script()
        service = await fleet.start_fleet(**settings)
        hosts = {name: await fleet.start_host(name, agents, script.make) for name, agents in HOSTS.items()}
        made = System(fleet, service, await world.service(ServiceName.CLI), script, hosts)

        async def on_news(event: MissionEvent, _: Context) -> None:
            made.news.append(event)

        await made.cli.subscribe(EVENT, on_news, at={"service": "fleet", "kind": "mission"})
        await until_fit(service, 4)
        try:
            yield made
        finally:
            script.released.add("*")
