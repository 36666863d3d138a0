"""A flood from one agent, over a real broker: it is refused, and what others say arrives as before."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from envelopes import content, seal
from router_support import Outside, running_router
from support import World, eventually

from tocsin.bus import Bus, Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import AGENTS, COORDINATION, DELIVER_ALL, DELIVER_ROLE, ROUTE, THREAT_ALERT
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.observations import Observations
from tocsin.contracts.routing import Coordination, ThreatAlert
from tocsin.telemetry.latency import summarise

FLOOD = 5_000
PER_S, BURST = 50, 100
QUIET = tuple(f"quiet-{number:02}" for number in range(5))
EACH = 30
PAUSE_S = 0.02


@dataclass
class Heard:
    """What the recipients' role was told: delays in milliseconds by sender."""

    delays_ms: dict[str, list[float]] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)

    async def on_task(self, _: Message, context: Context) -> None:
        delay_ms = (time.time_ns() - context.content.issued_at) / 1e6
        self.delays_ms.setdefault(context.sender.name, []).append(delay_ms)

    async def on_alert(self, _: Message, context: Context) -> None:
        self.alarms.append(context.sender.name)

    def of_quiet(self) -> list[float]:
        return [delay_ms for name in QUIET for delay_ms in self.delays_ms.get(name, [])]


async def enrol(world: World) -> None:
    """Write the records of the agents, as fleet does."""
    records = (await world.service(ServiceName.FLEET)).records(AGENTS)
    for name in ("flood-01", *QUIET):
        record = AgentRecord(name=name, role=Role.SENTINEL, host="h1", key_id=bytes(32), enrolled_ns=0)
        await records.put(name, record)


async def speak(agent: Bus) -> None:
    """Send some tasks at an ordinary pace."""
    body = Coordination(content=Observations(source="s", sequence=0))
    at = {"type": COORDINATION.name, "priority": "normal", "agent": agent.id.name}
    for _ in range(EACH):
        await agent.publish(ROUTE, COORDINATION, body, audience="role.hunter", at=at)
        await asyncio.sleep(PAUSE_S)


def a_flood(agent: Bus) -> list[bytes]:
    """Sign everything ahead, so that the test's own signing is not what slows the others down."""
    body = Coordination(content=Observations(source="flood", sequence=0))
    made = [
        content(
            agent.id, COORDINATION.name, body, audience="role.hunter", issued_at=time.time_ns(), ttl_ms=30_000
        )
        for _ in range(FLOOD)
    ]
    key = agent.credentials.key
    return [data for first in range(0, FLOOD, 500) for data in seal(key, made[first : first + 500])]


async def test_a_flood_is_refused_and_the_others_are_heard_as_before(world: World) -> None:
    outside = await Outside.of(world)
    await enrol(world)
    flooder = await world.agent(Role.SENTINEL, "flood-01")
    quiet = [await world.agent(Role.SENTINEL, name) for name in QUIET]
    hunter = await world.agent(Role.HUNTER, "hunter-01")
    heard, before = Heard(), Heard()
    async with running_router(world, messages_per_sender_per_s=PER_S, burst_per_sender=BURST) as router:
        alone = await hunter.subscribe(DELIVER_ROLE, before.on_task, at={"role": "hunter"})
        await asyncio.gather(*map(speak, quiet))
        await eventually(lambda: len(before.of_quiet()) == len(QUIET) * EACH)
        await alone.unsubscribe()
        await hunter.subscribe(DELIVER_ROLE, heard.on_task, at={"role": "hunter"})
        await hunter.subscribe(DELIVER_ALL, heard.on_alert)
        flood, subject = a_flood(flooder), ROUTE.at(type="coordination", priority="normal", agent="flood-01")

        async def pour() -> None:
            for number, data in enumerate(flood):
                await flooder.connection.publish(subject, data)
                if number % 50 == 0:
                    await asyncio.sleep(0.005)

        begun_s = time.monotonic()
        pouring = asyncio.gather(pour(), *map(speak, quiet))
        await eventually(lambda: router.metrics.counter("rejected.rate_limited") > 0)
        at = {"type": THREAT_ALERT.name, "priority": "critical", "agent": "flood-01"}
        alarm = ThreatAlert(severity=Severity.CRITICAL, summary="help")
        await flooder.publish(ROUTE, THREAT_ALERT, alarm, audience="all", priority=Priority.CRITICAL, at=at)
        await pouring
        counter = router.metrics.counter
        await eventually(
            lambda: counter("rejected.rate_limited") + len(heard.delays_ms.get("flood-01", [])) == FLOOD
        )
        took_s = time.monotonic() - begun_s
        await eventually(lambda: len(heard.of_quiet()) == len(QUIET) * EACH)
        print("others, before:", summarise(before.of_quiet()), "during:", summarise(heard.of_quiet()))  # noqa: T201 - for whoever measures
        assert len(heard.delays_ms["flood-01"]) <= BURST + PER_S * took_s + 1
        assert heard.alarms == ["flood-01"], "its own alarm has an allowance of its own"
        await eventually(lambda: any(one.reason == "rate_limited" for one in outside.refusals))
        assert {(one.agent, one.message) for one in outside.refusals} == {("flood-01", None)}
        await eventually(
            lambda: (
                outside.times_audited(router.bus.id.token, "rate_limited", subject)
                == counter("rejected.rate_limited")
            )
        )
        assert summarise(heard.of_quiet()).p99 < 1_000


async def test_an_emergency_overtakes_what_waits(world: World) -> None:
    """The broker has the whole flood before it has the alarm, and neither its senders nor its rate are limited."""
    await enrol(world)
    flooder = await world.agent(Role.SENTINEL, "flood-01")
    caller = await world.agent(Role.SENTINEL, "quiet-01")
    hunter = await world.agent(Role.HUNTER, "hunter-01")
    forwarded_before: list[int] = []
    async with running_router(world, messages_per_sender_per_s=100_000, burst_per_sender=FLOOD * 2) as router:

        async def on_alert(_: Message, context: Context) -> None:
            forwarded_before.append(router.metrics.counter("routed.coordination"))
            delay_ms = (time.time_ns() - context.content.issued_at) / 1e6
            print(f"alarm after {delay_ms:.0f} ms and {forwarded_before[0]} of {FLOOD}")  # noqa: T201 - as above

        await hunter.subscribe(DELIVER_ALL, on_alert)
        flood, subject = a_flood(flooder), ROUTE.at(type="coordination", priority="normal", agent="flood-01")
        at = {"type": THREAT_ALERT.name, "priority": "critical", "agent": "quiet-01"}
        alarm = ThreatAlert(severity=Severity.CRITICAL, summary="help")
        sent = await caller.make(THREAT_ALERT, alarm, audience="all", priority=Priority.CRITICAL)
        for data in flood:
            await flooder.connection.publish(subject, data)
        await flooder.flush()
        await caller.connection.publish(ROUTE.at(**at), sent.data)
        await eventually(
            lambda: router.metrics.counter("routed.coordination") == FLOOD and bool(forwarded_before)
        )
        assert forwarded_before[0] < FLOOD / 2
