"""The router over a real broker: real buses of agents, hosts and fleet on both sides of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from support import DOMAIN, World, eventually

from tocsin.bus import Bus, Context, Sent
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AGENTS,
    ALERT_BACKUP,
    COORDINATION,
    DELIVER_AGENT,
    DELIVER_ALL,
    EVENT,
    INTELLIGENCE,
    PING,
    RECEIPT,
    RECEIPTS,
    ROUTE,
    THREAT_ALERT,
)
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.observations import Observations
from tocsin.contracts.operations import PingRequest
from tocsin.contracts.routing import (
    Coordination,
    Delivery,
    Intelligence,
    Receipt,
    Receipts,
    Refusal,
    ThreatAlert,
)
from tocsin.contracts.subjects import MessageType
from tocsin.crypto.sealing import SealingKey
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

ROSTER = {
    "sentinel-01": (Role.SENTINEL, "h1"),
    "guardian-01": (Role.GUARDIAN, "h1"),
    "analyst-01": (Role.ANALYST, "h2"),
    "guardian-02": (Role.GUARDIAN, "h2"),
}
SOMEBODY = SealingKey.generate()
"""To whom what must be sealed is sealed here: a key that nobody has published."""
CRITICAL = ThreatAlert(severity=Severity.CRITICAL, summary="burn")
HIGH = ThreatAlert(severity=Severity.HIGH, summary="smoke")


@dataclass
class Heard:
    """What the outside hears of the router."""

    bus: Bus
    deliveries: list[Delivery] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    async def on_event(self, body: Message, _: Context) -> None:
        if isinstance(body, Delivery):
            self.deliveries.append(body)
        elif isinstance(body, Refusal):
            self.refusals.append(body)


@dataclass
class Host:
    """A host process with its agents: takes alerts by either channel and sends receipts."""

    name: str
    bus: Bus
    agents: tuple[str, ...]
    receipts: bool = True
    core: list[bytes] = field(default_factory=list)
    stream: list[bytes] = field(default_factory=list)

    async def on_core(self, _: ThreatAlert, context: Context) -> None:
        self.core.append(context.data)
        if self.receipts:
            await self.confirm(context.leaf, context.now_ns, self.agents)

    async def confirm(self, leaf: bytes, taken_ns: int, agents: tuple[str, ...], **claim: Any) -> None:
        receipt = Receipt(leaf=leaf, agents=agents, channel="core", taken_ns=taken_ns)
        body = Receipts(**{"host": self.name, "receipts": (receipt,), **claim})
        await self.bus.publish(RECEIPT, RECEIPTS, body, at={"host": self.name})


@asynccontextmanager
async def router_on(world: World, instance: str = "0", **settings: Any) -> AsyncIterator[RouterService]:
    """A router that starts, and stops as on SIGTERM."""
    bus = await world.service(ServiceName.ROUTER, instance)
    quick = {"retry_first_s": 0.05, "retry_max_s": 0.1, "delivery_deadline_s": 0.6, "standby_grace_s": 0.3}
    service = RouterService(
        bus, RouterSettings(**{**world.settings().model_dump(), **quick, "instance": instance, **settings})
    )
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def enrol(world: World) -> None:
    """Write the records of the enrolled agents, as fleet does."""
    fleet = await world.service(ServiceName.FLEET)
    records = fleet.records(AGENTS)
    for name, (role, host) in ROSTER.items():
        await records.put(name, AgentRecord(name=name, role=role, host=host, key_id=bytes(32), enrolled_ns=0))


async def listen(world: World) -> Heard:
    monitor = await world.service(ServiceName.MONITOR)
    heard = Heard(monitor)
    await monitor.subscribe(EVENT, heard.on_event, at={"service": "router"})
    return heard


async def host_on(world: World, name: str, *, receipts: bool = True) -> Host:
    """A host of the roster: takes what is for everyone, and confirms it for its agents."""
    mine = tuple(agent for agent, (_, host) in ROSTER.items() if host == name)
    host = Host(name, await world.bus(SpiffeId.host(DOMAIN, name)), mine, receipts)
    await host.bus.subscribe(DELIVER_ALL, host.on_core)
    return host


async def send(
    bus: Bus,
    body: Message,
    kind: MessageType[Message] = THREAT_ALERT,
    *,
    audience: str = "all",
    priority: Priority = Priority.HIGH,
    at: dict[str, str] | None = None,
) -> Sent:
    where = {"type": kind.name, "priority": priority.token, "agent": bus.id.name, **(at or {})}
    seal_to = [SOMEBODY.public] if kind.cleared else None
    return await bus.publish(ROUTE, kind, body, audience=audience, priority=priority, seal_to=seal_to, at=where)


def collect(into: list[bytes]) -> Callable[[Message, Context], Any]:
    async def take(_: Message, context: Context) -> None:
        into.append(context.data)

    return take


async def test_the_senders_own_bytes_arrive_in_order(world: World) -> None:
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    await enrol(world)
    analyst = await world.agent(Role.ANALYST, "analyst-01")
    to_all: list[bytes] = []
    to_me: list[bytes] = []
    await analyst.subscribe(DELIVER_ALL, collect(to_all))
    await analyst.subscribe(DELIVER_AGENT, collect(to_me), at={"agent": "analyst-01"})
    async with router_on(world) as router:
        alert = await send(sentinel, HIGH)
        work = [
            await send(
                sentinel,
                Coordination(content=Observations(source="x", sequence=number)),
                COORDINATION,
                audience="agent.analyst-01",
            )
            for number in range(20)
        ]
        await eventually(lambda: len(to_all) == 1 and len(to_me) == 20)
        assert to_all == [alert.data]
        assert to_me == [sent.data for sent in work]
        assert router.metrics.counter("routed.coordination") == 20
        assert router.metrics.statistics().latencies["route"].summary.count == 21


async def test_two_routers_share_the_work_and_forward_each_message_once(world: World) -> None:
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    seen: list[bytes] = []
    analyst = await world.agent(Role.ANALYST, "analyst-01")
    await analyst.subscribe(DELIVER_ALL, collect(seen))
    async with router_on(world, "0") as first, router_on(world, "1") as second:
        sent = [await send(sentinel, HIGH) for _ in range(30)]
        await eventually(lambda: len(seen) == 30)
        assert sorted(seen) == sorted(message.data for message in sent)
        routed = [router.metrics.counter("routed.threat_alert") for router in (first, second)]
        assert sum(routed) == 30
        assert min(routed) > 0


@dataclass(frozen=True)
class Wrong:
    reason: str
    role: Role = Role.SENTINEL
    kind: MessageType[Message] = THREAT_ALERT
    body: Message = HIGH
    audience: str = "all"
    priority: Priority = Priority.HIGH


WRONG = [
    Wrong("audience_not_allowed", audience="mission.m1"),
    Wrong("bad_audience", audience="service.router"),
    Wrong("severity_mismatch", priority=Priority.CRITICAL),
    Wrong("severity_mismatch", body=CRITICAL),
    Wrong("no_need_to_know", kind=INTELLIGENCE, body=Intelligence(summary="s"), audience="agent.guardian-01"),
    Wrong("no_such_recipient", audience="agent.nobody"),
    Wrong("no_such_recipient", kind=INTELLIGENCE, body=Intelligence(summary="s"), audience="agent.nobody"),
    Wrong(
        "recipient_not_cleared", kind=INTELLIGENCE, body=Intelligence(summary="s"), audience="agent.analyst-01"
    ),
    Wrong(
        "content_not_allowed",
        role=Role.GUARDIAN,
        kind=COORDINATION,
        body=Coordination(content=Observations(source="x", sequence=0)),
        audience="agent.analyst-01",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.reason}-{wrong.kind.name}")
async def test_what_the_policy_refuses_is_told_and_goes_nowhere(world: World, wrong: Wrong) -> None:
    await enrol(world)
    heard = await listen(world)
    seen: list[bytes] = []
    watcher = await world.agent(Role.ANALYST, "analyst-01")
    await watcher.subscribe(DELIVER_ALL, collect(seen))
    await watcher.subscribe(DELIVER_AGENT, collect(seen))
    sender = await world.agent(wrong.role, "someone")
    async with router_on(world) as router:
        sent = await send(sender, wrong.body, wrong.kind, audience=wrong.audience, priority=wrong.priority)
        await eventually(lambda: len(heard.refusals) == 1)
        assert heard.refusals[0].message == sent.id
        assert (heard.refusals[0].agent, heard.refusals[0].reason) == ("someone", wrong.reason)
        assert router.metrics.counter(f"rejected.{wrong.reason}") == 1
        good = await send(sender, HIGH)
        await eventually(lambda: bool(seen))
        assert seen == [good.data]


async def test_what_the_envelope_forbids_never_reaches_the_policy(world: World) -> None:
    """Another's subject, another priority or type than the subject says, noise: refused unheard."""
    heard = await listen(world)
    seen: list[bytes] = []
    analyst = await world.agent(Role.ANALYST, "analyst-01")
    await analyst.subscribe(DELIVER_ALL, collect(seen))
    guardian = await world.agent(Role.GUARDIAN, "guardian-01")
    async with router_on(world) as router:
        await send(guardian, HIGH, at={"agent": "sentinel-01"})
        await send(guardian, HIGH, at={"priority": "critical"})
        await send(guardian, HIGH, at={"type": "coordination"})
        proposal = await guardian.make(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH)
        subject = ROUTE.at(type="threat_alert", priority="high", agent="guardian-01")
        flipped = bytearray(proposal.data)
        flipped[60] ^= 1
        for noise in (b"", b"\x00", os.urandom(3000), bytes(flipped)):
            await guardian.connection.publish(subject, noise)
            await guardian.connection.publish(RECEIPT.at(host="h1"), noise)
        good = await send(guardian, HIGH)
        await eventually(lambda: seen == [good.data])
        assert router.metrics.counter("rejected.wrong_subject") == 3
        assert router.metrics.counter("rejected.malformed") >= 6
        assert router.ready
        assert heard.refusals == []


async def test_a_flood_of_refusals_is_told_within_a_budget(world: World) -> None:
    heard = await listen(world)
    canary = await world.agent(Role.CANARY, "canary-01")
    async with router_on(world, refusals_per_sender_per_s=1) as router:
        for _ in range(50):
            await send(canary, HIGH, audience="mission.m1")
        await eventually(lambda: router.metrics.counter("refused.audience_not_allowed") == 50)
        untold = router.metrics.counter("refusals_untold")
        assert untold >= 40
        await eventually(lambda: len(heard.refusals) == 50 - untold)


async def test_an_emergency_takes_both_channels_and_its_receipts_complete_the_account(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    first, second = await host_on(world, "h1"), await host_on(world, "h2")
    # Another process: in one process the ledger would drop the second copy before we could see it.
    late = await world.agent(Role.ANALYST, "late")
    stored: list[bytes] = []
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world) as router:
        alert = await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 1)
        await late.consume(ALERT_BACKUP, collect(stored), durable="late")
        await eventually(lambda: stored == [alert.data])
        assert first.core == second.core == [alert.data]
        account = heard.deliveries[0]
        assert (account.message, account.leaf) == (alert.id, alert.leaf)
        assert (account.due, account.delivered, account.by_core, account.complete) == (4, 4, 4, True)
        assert account.first_ms is not None
        assert account.last_ms is not None
        assert 0 < account.first_ms <= account.last_ms < 5_000
        assert len(router.pursuit.tracker) == 0


async def test_below_critical_one_channel_serves(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    host = await host_on(world, "h1")
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world) as router:
        await send(sentinel, HIGH)
        await eventually(lambda: len(host.core) == 1)
        await eventually(lambda: router.metrics.counter("receipts_early") == 1)
        assert heard.deliveries == []
        assert router.metrics.counter("emergencies") == 0


async def test_a_missing_host_is_tried_again_and_listed_at_the_deadline(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    host = await host_on(world, "h1")
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    copies: list[bytes] = []
    raw = await world.agent(Role.CANARY, "raw")

    async def count(message: Any) -> None:
        copies.append(message.data)

    await raw.connection.subscribe(DELIVER_ALL.at(), count)
    await raw.flush()
    async with router_on(world):
        alert = await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 1)
        account = heard.deliveries[0]
        assert account.undelivered == ("analyst-01", "guardian-02")
        assert (account.due, account.delivered, account.complete) == (4, 2, False)
        assert len(copies) >= 4
        assert set(copies) == {alert.data}, "a retry sends identical bytes"
        assert host.core == [alert.data], "and who has had it drops it"


async def test_a_forged_receipt_confirms_nobody(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    first, second = await host_on(world, "h1", receipts=False), await host_on(world, "h2", receipts=False)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world) as router:
        alert = await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(router.pursuit.tracker) == 1 and bool(first.core))
        await second.confirm(alert.leaf, alert.issued_at, first.agents)
        await second.confirm(alert.leaf, alert.issued_at, first.agents, host="h1")
        await second.confirm(bytes(32), alert.issued_at, second.agents)
        await eventually(lambda: len(heard.deliveries) == 1)
        assert heard.deliveries[0].delivered == 0
        assert set(heard.deliveries[0].undelivered) == set(ROSTER)
        assert router.metrics.counter("rejected.receipt_not_its_agent") == 1
        assert router.metrics.counter("rejected.wrong_host") == 1
        assert router.metrics.counter("receipts_early") == 1


async def test_an_audience_restricts_who_is_due(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world):
        await send(sentinel, CRITICAL, audience="role.guardian", priority=Priority.CRITICAL)
        await send(sentinel, CRITICAL, audience="agent.analyst-01", priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 2)
    assert {delivery.undelivered for delivery in heard.deliveries} == {
        ("guardian-01", "guardian-02"),
        ("analyst-01",),
    }


async def test_only_who_forwarded_an_emergency_accounts_for_it(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    await host_on(world, "h1")
    await host_on(world, "h2")
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world, "0") as first, router_on(world, "1") as second:
        for _ in range(6):
            await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 6)
        assert all(delivery.complete for delivery in heard.deliveries)
        assert sum(router.metrics.counter("emergencies") for router in (first, second)) == 6


async def test_agents_that_enrol_while_the_router_runs_are_due(world: World) -> None:
    heard = await listen(world)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world) as router:
        await enrol(world)
        await eventually(lambda: len(list(router.roster.agents)) == 4)
        await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 1)
        assert heard.deliveries[0].due == 4


async def test_an_emergency_beyond_the_trackers_room_is_sent_and_said_to_be_unconfirmed(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    first, second = await host_on(world, "h1", receipts=False), await host_on(world, "h2", receipts=False)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world, max_emergencies=1, delivery_deadline_s=30) as router:
        held = await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(router.pursuit.tracker) == 1)
        beyond = await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 1)
        assert (heard.deliveries[0].message, heard.deliveries[0].delivered) == (beyond.id, 0)
        await eventually(lambda: len(first.core) == len(second.core) == 2)
    assert len(heard.deliveries) == 1
    async with router_on(world, "1", delivery_deadline_s=0.1):
        await eventually(lambda: len(heard.deliveries) == 2)
        assert heard.deliveries[1].message == held.id, "what was open is left to another router"
        assert len(heard.deliveries[1].undelivered) == 4


async def test_emergencies_that_cannot_be_stored_hold_up_no_other(world: World) -> None:
    """Whether they are tracked or for nobody: each goes out on core at once, within bounds of what waits."""
    host = await host_on(world, "h1", receipts=False)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world, max_emergencies=1) as router:
        await router.bus.connection.js.delete_stream("ALERTS")
        sent = [await send(sentinel, CRITICAL, priority=Priority.CRITICAL) for _ in range(4)]
        await eventually(lambda: host.core == [one.data for one in sent], within_s=2)
        assert router.metrics.counter("emergencies_not_storing") == 2


async def test_a_failure_while_catching_up_ends_no_pursuit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enrol(world)
    heard = await listen(world)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    async with router_on(world) as router:
        await eventually(lambda: router.pursuit.tracker.next_s() is None)
        with monkeypatch.context() as patched:
            patched.setattr(router.pursuit.tracker, "advance", fail)
            await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
            await eventually(lambda: router.metrics.counter("pursuit_failures") > 0)
        await eventually(lambda: len(heard.deliveries) == 1)


def fail(**_: object) -> None:
    raise ValueError


async def test_strangers_cannot_use_up_what_an_operator_may_send(world: World) -> None:
    """Not even before its first message here is verified: what it is certified for is known."""
    host = await host_on(world, "h1", receipts=False)
    operator = await world.service(ServiceName.CLI, "9")
    stranger = (await world.service(ServiceName.MONITOR)).connection
    async with router_on(world, messages_per_sender_per_s=1, burst_per_sender=2) as router:
        known = operator.credentials.key.signer.key_id
        await eventually(lambda: router.bus.trust.identity(known) is not None)
        for n in range(20):
            at = {"type": THREAT_ALERT.name, "priority": Priority.CRITICAL.token, "agent": f"made-up-{n}"}
            await stranger.publish(ROUTE.at(**at), b"anything")
        await eventually(lambda: router.metrics.counter("refused.rate_limited") == 18)
        alert = await send(operator, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: host.core == [alert.data])


async def test_a_router_answers_and_survives_a_broker_restart(world: World) -> None:
    await enrol(world)
    heard = await listen(world)
    hosts = [await host_on(world, "h1"), await host_on(world, "h2")]
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    monitor = await world.service(ServiceName.MONITOR, "1")
    async with router_on(world, delivery_deadline_s=20) as router:
        world.restart_broker()
        buses = [sentinel, monitor, heard.bus, router.bus, *(host.bus for host in hosts)]
        await eventually(
            lambda: all(bus.metrics.counter("broker_reconnects") and bus.connected for bus in buses),
            within_s=20,
        )
        await send(sentinel, CRITICAL, priority=Priority.CRITICAL)
        await eventually(lambda: len(heard.deliveries) == 1, within_s=20)
        assert heard.deliveries[0].complete
        pong = await monitor.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=5)
        assert pong.process == "service.router.0"
