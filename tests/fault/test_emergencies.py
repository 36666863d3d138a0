"""An emergency survives the death of whoever carries it: real processes, killed with SIGKILL in the middle."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fleet_support import FleetWorld, tokens_for
from processes import environment_of, logged, process
from support import DOMAIN, World, eventually

from tocsin.bus import Bus, Sent
from tocsin.bus.reader import StreamReader
from tocsin.contracts.catalogue import EVENT, THREAT_ALERT
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.routing import Delivery, ThreatAlert

AGENTS = {
    "h1": [("hunter-01", Role.HUNTER), ("hunter-02", Role.HUNTER)],
    "h2": [("hunter-03", Role.HUNTER), ("hunter-04", Role.HUNTER)],
}
NAMES = sorted(name for carried in AGENTS.values() for name, _ in carried)
SCRIBE = """
import asyncio, sys
from tocsin.agent import Agent, run_agents
from tocsin.contracts.identifiers import Role

class Scribe(Agent):
    role = Role.HUNTER
    async def on_alert(self, alert, context):
        await asyncio.sleep(float(sys.argv[2]))
        with open(f"{sys.argv[1]}/{self.name}", "a") as file:
            file.write(alert.summary + "\\n")

run_agents(Scribe)
"""


@dataclass
class Stage:
    """Routers and hosts as processes, a fleet, and somebody who raises alarms."""

    world: World
    fleet: FleetWorld
    sender: Bus
    reader: StreamReader
    """Of the accounts."""
    processes: AsyncExitStack
    accounts: list[Delivery] = field(default_factory=list)

    async def router(self, instance: str, **settings: Any) -> asyncio.subprocess.Process:
        """Start a router and wait until it is ready."""
        folder = self.world.folder / f"router-{instance}"
        if not folder.exists():  # a restart finds the credentials that it had
            credentials = self.world.credentials(SpiffeId.service(DOMAIN, ServiceName.ROUTER, instance))
            credentials.save(folder, f"router-{instance}")
        quick = {"retry_first_s": 0.1, "retry_max_s": 0.3, "standby_grace_s": 0.3, "delivery_deadline_s": 15}
        own = {"instance": instance, "credentials_dir": folder, **quick, **settings}
        base = environment_of(self.world.settings())
        return await self._start(
            "service_ready", f"router-{instance}", "-m", "tocsin.router", **{**base, **own}
        )

    async def host(self, name: str, *, pause_s: float = 0.0) -> asyncio.subprocess.Process:
        """Start a host and wait until it is ready."""
        script, diary = self.world.folder / "scribe.py", self.diary
        script.write_text(SCRIBE)
        settings = self.fleet.host_settings(name, AGENTS[name])
        arguments = (str(script), str(diary), str(pause_s))
        return await self._start("host_ready", name, *arguments, **environment_of(settings))

    async def _start(
        self, ready: str, name: str, *arguments: str, **settings: Any
    ) -> asyncio.subprocess.Process:
        log = self.world.folder / f"{name}.log"
        before = log.read_text().count(ready) if log.exists() else 0
        child = await self.processes.enter_async_context(process(*arguments, log=log, **settings))
        await logged(child, log, ready, times=before + 1)
        return child

    @property
    def diary(self) -> Path:
        """Where each agent writes what it has handled, a line each."""
        folder = self.world.folder / "diary"
        folder.mkdir(exist_ok=True)
        return folder

    def handled(self, name: str) -> list[str]:
        """Return what an agent has handled, in order."""
        file = self.diary / name
        return file.read_text().split() if file.exists() else []

    async def raise_alarm(self, summary: str, *, timeout_s: float = 15) -> Sent:
        """Send an emergency; returns once a router has said that it is stored."""
        alert = ThreatAlert(severity=Severity.CRITICAL, summary=summary)
        sent = await self.sender.make(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)
        await self.sender.emergency(sent, self.sender.id, timeout_s=timeout_s)
        return sent

    async def all_accounted(self, sent: list[Sent], *, within_s: float = 20) -> None:
        """Wait until the stream has the account of each: everyone has it."""
        leaves = {one.leaf for one in sent}
        async with asyncio.timeout(within_s):
            while not leaves <= {account.leaf for account in self.accounts}:
                self.accounts += [cast("Delivery", stored.body) for stored in await self.reader.read()]
                await asyncio.sleep(0.02)
        for account in self.accounts:
            assert account.undelivered == (), account
            assert account.complete
            assert account.due == len(NAMES)


@asynccontextmanager
async def stage_in(world: World) -> AsyncIterator[Stage]:
    tokens = [token for host, carried in AGENTS.items() for token in tokens_for(host, carried)]
    async with FleetWorld(world, tokens, world.folder) as fleet, AsyncExitStack() as processes:
        await fleet.start_fleet()
        sender = await world.service(ServiceName.CLI)
        reader = sender.reader(EVENT, start_ns=time.time_ns(), at={"service": "router", "kind": "delivery"})
        stage = Stage(world, fleet, sender, reader, processes)
        yield stage


async def everyone_has(stage: Stage, summaries: list[str], *, in_order: bool = False) -> None:
    """Wait until every agent has handled everything, and check that it did so once."""
    await eventually(lambda: all(len(stage.handled(name)) >= len(summaries) for name in NAMES), within_s=20)
    key: Callable[[list[str]], list[str]] = list if in_order else sorted
    for name in NAMES:
        assert key(stage.handled(name)) == key(summaries), name


async def test_a_router_killed_under_load_loses_nothing(world: World) -> None:
    async with stage_in(world) as stage:
        first, _, _, _ = await asyncio.gather(
            stage.router("0"), stage.router("1"), stage.host("h1"), stage.host("h2")
        )
        summaries = [str(number) for number in range(40)]
        sending = []
        for number, summary in enumerate(summaries):
            sending.append(asyncio.create_task(stage.raise_alarm(summary)))
            await asyncio.sleep(0.01)
            if number == 20:
                first.kill()
        sent = await asyncio.gather(*sending)
        await stage.all_accounted(sent)
        await everyone_has(stage, summaries)
        doubles = Counter(account.leaf for account in stage.accounts)
        assert sum(doubles.values()) - len(doubles) <= 2, "a double only where a router died between two lines"


async def test_the_next_router_accounts_for_what_the_dead_one_had_taken(world: World) -> None:
    async with stage_in(world) as stage:
        router, away, _ = await asyncio.gather(stage.router("0"), stage.host("h1"), stage.host("h2"))
        away.kill()
        await away.wait()
        sent = await stage.raise_alarm("one")
        router.kill()
        await router.wait()
        await asyncio.gather(stage.router("0"), stage.host("h1"))
        await stage.all_accounted([sent])
        await everyone_has(stage, ["one"])
        assert len(stage.accounts) == 1


async def test_a_second_router_takes_over_at_once(world: World) -> None:
    """Nobody restarts the first one; who missed the alert is tried again by the other."""
    async with stage_in(world) as stage:
        first, _, away, _ = await asyncio.gather(
            stage.router("0"), stage.router("1"), stage.host("h1"), stage.host("h2")
        )
        away.kill()
        await away.wait()
        sent = [await stage.raise_alarm(str(number)) for number in range(6)]
        first.kill()
        await stage.host("h1")
        await stage.all_accounted(sent)
        await everyone_has(stage, [str(number) for number in range(6)])


async def test_a_broker_killed_in_the_middle_loses_nothing(world: World) -> None:
    async with stage_in(world) as stage:
        await asyncio.gather(stage.router("0"), stage.router("1"), stage.host("h1"), stage.host("h2"))
        summaries = [str(number) for number in range(30)]
        sending = []
        for number, summary in enumerate(summaries):
            sending.append(asyncio.create_task(stage.raise_alarm(summary)))
            await asyncio.sleep(0.01)
            if number == 10:
                await asyncio.to_thread(world.restart_broker)
        sent = await asyncio.gather(*sending)
        await stage.all_accounted(sent)
        await everyone_has(stage, summaries)


async def test_a_host_that_was_killed_gets_what_it_missed_once_and_in_order(world: World) -> None:
    async with stage_in(world) as stage:
        await asyncio.gather(stage.router("0"), stage.host("h2"))
        host = await stage.host("h1", pause_s=0.1)
        sent = [await stage.raise_alarm(str(number)) for number in range(4)]
        await stage.all_accounted(sent)
        host.kill()  # all are confirmed, and on its disk; the slow agents have handled some
        await host.wait()
        assert len(stage.handled("hunter-01")) < 4
        sent += [await stage.raise_alarm(str(number)) for number in range(4, 10)]
        await stage.host("h1", pause_s=0.01)
        await stage.all_accounted(sent)
        await everyone_has(stage, [str(number) for number in range(10)], in_order=True)
        assert len(stage.accounts) == 10
