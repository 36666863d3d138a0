"""Missions to measure: the real fleet service beside hosts that are real, and a client that starts and follows them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from _agents import PlannedAgent
from _carrying import CarryingPlan
from _embedded import Embedded
from _fleet import READY_TIMEOUT_S
from _hosts import install_host
from _processes import Worker

from tocsin.bus import Bus, Context
from tocsin.bus.accounts import system_password
from tocsin.bus.roster import read_roster
from tocsin.cli.authority import issue_service
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.catalogue import EVENT, FLEET_COORDINATE, FLEET_MISSION
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.missions import (
    MissionEvent,
    MissionNews,
    MissionQuestion,
    MissionRecord,
    MissionRequest,
    Objective,
)

INSTANCE = "2"
"""Fleet's: what a run does in fleet's name has the others."""
POLL_S = 0.1
SCRIPT = "_carrying.py"


@asynccontextmanager
async def fleet_service(system: Embedded) -> AsyncIterator[Supervisor]:
    """Run the service fleet as a process of its own, with its connection to the broker's system account."""
    fleet = system.fleet
    folder = fleet.folder / "fleet"
    folder.mkdir(parents=True, exist_ok=True)
    fleet.root.issue_intermediate("fleet", now=datetime.now(UTC)).save(folder, "fleet")
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([]))
    credentials = folder / "credentials"
    issue_service(fleet.root, ServiceName.FLEET, INSTANCE, credentials, backend=fleet.options.backend)
    supervisor = Supervisor(fleet.folder / "logs")
    supervisor.start(
        "fleet",
        "tocsin.fleet",
        nats_url=system.broker.url,
        nats_token_file=str(system.broker.token_file),
        nats_system_token_file=str(system_password(system.broker.folder)),
        credentials_dir=str(credentials),
        authority_dir=str(folder),
        tokens_file=str(tokens),
        instance=INSTANCE,
        signature_backend=fleet.options.backend.name,
        log_level="warning",
    )
    try:
        yield supervisor
        await supervisor.stop()
    finally:
        supervisor.kill()


def plan_host(system: Embedded, name: str) -> CarryingPlan:
    """Write a host's folder, once: a host that comes back has the keys that it had."""
    settings = install_host(system.fleet, name, nats_url=system.fleet.nats_url)
    return CarryingPlan(settings=settings.model_dump(mode="json"))


def host_worker(system: Embedded, name: str, plan: CarryingPlan) -> Worker:
    """Return a worker that carries a host's agents, not started."""
    logs = system.fleet.folder / "logs"
    logs.mkdir(exist_ok=True)
    return Worker(name, SCRIPT, plan, logs / f"host.{name}.log")


def objectives_for(agents: Sequence[PlannedAgent], count: int, *, work: float) -> tuple[Objective, ...]:
    """Return objectives that ask for the agents' roles in turn."""
    return tuple(
        Objective(
            name=f"objective-{number + 1:04d}",
            role=agents[number % len(agents)].id.role,
            work=work,
            deadline_s=work + 60.0,
        )
        for number in range(count)
    )


@dataclass
class Client:
    """Starts missions and hears of them. Make it with :meth:`listening`."""

    bus: Bus
    check: Callable[[], None]
    """Raises if a process that is needed has ended."""
    heard: dict[str, list[tuple[int, MissionEvent]]] = field(default_factory=dict)
    """What was heard of each mission, and when, by the monotonic clock, in nanoseconds."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def listening(cls, bus: Bus, check: Callable[[], None]) -> Client:
        """Listen for news of missions."""
        client = cls(bus, check)

        async def on_news(event: MissionEvent, _: Context) -> None:
            client.heard.setdefault(event.mission, []).append((time.monotonic_ns(), event))
            client._changed.set()

        await bus.subscribe(EVENT, on_news, at={"service": "fleet", "kind": "mission"})
        return client

    async def start(self, request: MissionRequest) -> str:
        """Start a mission; return its name."""
        return (await self.bus.request(FLEET_COORDINATE, request, timeout_s=10.0)).mission

    async def record(self, mission: str) -> MissionRecord:
        """Return all of a mission."""
        return (await self.bus.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=10.0)).record

    async def news(self, mission: str, news: MissionNews, *, timeout_s: float) -> tuple[int, MissionEvent]:
        """Wait for news of a mission.

        Raises:
            UnavailableError: ``no_news`` in time.
        """
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            self.check()
            for at_ns, event in self.heard.get(mission, ()):
                if event.news is news:
                    return at_ns, event
            self._changed.clear()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
        raise UnavailableError(f"{mission} is not {news.value} within {timeout_s:g} s", reason="no_news")

    async def until_healthy(self, count: int) -> None:
        """Wait until fleet takes so many agents for healthy.

        Raises:
            UnavailableError: ``agents_missing`` in time.
        """
        until_s = time.monotonic() + READY_TIMEOUT_S
        healthy = 0
        while time.monotonic() < until_s:
            self.check()
            try:
                roster = await read_roster(self.bus, timeout_s=2.0)
            except UnavailableError:
                continue
            healthy = sum(entry.state is AgentState.HEALTHY for entry in roster.entries)
            if healthy >= count:
                return
            await asyncio.sleep(POLL_S)
        raise UnavailableError(f"{healthy} of {count} agents are healthy", reason="agents_missing")
