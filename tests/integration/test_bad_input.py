"""Bad input over a real broker: a table of what somebody with the broker's token, or a captured agent, may try.

Each is refused by whom it reaches, with a reason of its own, counted and audited; no agent hears of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from envelopes import content, seal
from fleet_support import FleetWorld, Recorder, tokens_for
from router_support import Outside, running_router
from support import DOMAIN, World, eventually

from tocsin.agent import AgentHost
from tocsin.bus import Bus
from tocsin.bus.envelope import Content
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AGENTS,
    ALERT_BACKUP,
    DELIVER_AGENT,
    DELIVER_ALL,
    DELIVER_ROLE,
    DISCOVERY_BACKUP,
    RECEIPT,
    ROUTE,
)
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Priority, Role, Severity, SpiffeId
from tocsin.contracts.observations import Observations
from tocsin.contracts.response import Action, Command, ResponseOrder
from tocsin.contracts.routing import Coordination, Discovery, Intelligence, Receipt, Receipts, ThreatAlert
from tocsin.crypto import Algorithm, LocalKey
from tocsin.router.service import RouterService

ONE = [
    ("hunter-01", Role.HUNTER),
    ("sentinel-01", Role.SENTINEL),
    ("guardian-01", Role.GUARDIAN),
    ("admin-01", Role.ADMIN),
]
BURST = 40
HIGH = ThreatAlert(severity=Severity.HIGH, summary="bad")
CRITICAL = ThreatAlert(severity=Severity.CRITICAL, summary="bad")
WORK = Coordination(content=Observations(source="bad", sequence=0))
ORDER = ResponseOrder(
    decision=bytes(32),
    certificate=bytes(32),
    command=Command(action=Action.CONTAIN, address="10.0.0.1", duration_s=60),
)


@dataclass
class Scene:
    """A router, a host with four agents, and insiders: agents with keys of their own and the broker's token."""

    world: World
    router: RouterService
    host: AgentHost
    other_host: Bus
    insiders: dict[Role, Bus]

    def forge(self, role: Role, type_name: str, body: Message | bytes, **changes: object) -> Content:
        """Make a content that is in order but for ``changes``: what an honest bus would not make."""
        fields = {"issued_at": time.time_ns(), "audience": "all", **changes}
        return content(self.insiders[role].id, type_name, body, **fields)

    async def put(self, subject: str, made: Content, *, key: LocalKey | None = None) -> bytes:
        """Sign a content, by default with its sender's key, and publish it."""
        sender = SpiffeId.parse(made.sender)
        by = self.insiders[sender.role] if sender.role else self.other_host
        (data,) = seal(key or by.credentials.key, [made])
        await by.connection.publish(subject, data)
        return data

    def route_of(self, role: Role, type_name: str, priority: str = "normal") -> str:
        return ROUTE.at(type=type_name, priority=priority, agent=self.insiders[role].id.name)


Attack = Callable[[Scene], Awaitable[str]]
"""Do one thing wrong; return the subject that it was done on."""


@dataclass(frozen=True)
class Case:
    why: str
    at: str
    """Whom it reaches: ``router`` or ``host``."""
    reason: str
    attack: Attack
    times: int = 1


def routed(
    type_name: str, body: Message | bytes, role: Role = Role.CANARY, *, on: str | None = None, **changes: object
) -> Attack:
    """Send something to the router."""

    async def attack(scene: Scene) -> str:
        made = scene.forge(role, type_name, body, **changes)
        subject = scene.route_of(role, on or type_name, Priority(made.priority).token)
        await scene.put(subject, made)
        return subject

    return attack


def delivered(
    subject: str, type_name: str, body: Message | bytes, role: Role = Role.CANARY, **changes: object
) -> Attack:
    """Send something to the agents, past every router."""

    async def attack(scene: Scene) -> str:
        await scene.put(subject, scene.forge(role, type_name, body, **changes))
        return subject

    return attack


async def a_stolen_name(scene: Scene) -> str:
    made = scene.forge(Role.SENTINEL, "threat_alert", HIGH)
    subject = scene.route_of(Role.SENTINEL, "threat_alert")
    await scene.put(subject, made, key=scene.insiders[Role.CANARY].credentials.key)
    return subject


async def a_key_of_nobody(scene: Scene) -> str:
    subject = scene.route_of(Role.HUNTER, "threat_alert")
    key = LocalKey.generate(scene.world.backend, Algorithm.ML_DSA_44)
    await scene.put(subject, scene.forge(Role.HUNTER, "threat_alert", HIGH), key=key)
    return subject


async def a_flipped_bit(scene: Scene) -> str:
    subject = scene.route_of(Role.CANARY, "threat_alert")
    key = scene.insiders[Role.CANARY].credentials.key
    (data,) = seal(key, [scene.forge(Role.CANARY, "threat_alert", HIGH)])
    flipped = data.replace(b"bad", b"BAD", 1)
    await scene.insiders[Role.CANARY].connection.publish(subject, flipped)
    return subject


async def an_id_again(scene: Scene) -> str:
    subject = scene.route_of(Role.CANARY, "coordination")
    first = scene.forge(Role.CANARY, "coordination", WORK, audience="agent.hunter-01")
    await scene.put(subject, first._replace(audience="group.nowhere"))
    await scene.put(subject, first._replace(audience="group.elsewhere"))
    return subject


async def another_priority(scene: Scene) -> str:
    subject = scene.route_of(Role.CANARY, "threat_alert", "urgent")
    await scene.put(subject, scene.forge(Role.CANARY, "threat_alert", HIGH))
    return subject


async def too_many_tokens(scene: Scene) -> str:
    subject = scene.route_of(Role.CANARY, "threat_alert") + ".more"
    await scene.put(subject, scene.forge(Role.CANARY, "threat_alert", HIGH))
    return subject


async def a_flood(scene: Scene) -> str:
    subject = scene.route_of(Role.DECEPTION, "coordination")
    for _ in range(2 * BURST):
        await scene.put(
            subject, scene.forge(Role.DECEPTION, "coordination", WORK, audience="group.nowhere", sealed=0)
        )
    return subject


def receipts(host: str, agent: str, **changes: object) -> Attack:
    """Confirm an emergency that is under way."""

    async def attack(scene: Scene) -> str:
        emergency = scene.router.pursuit.tracker._running
        await eventually(lambda: len(emergency) == 1)
        (leaf,) = emergency
        receipt = Receipt(leaf=leaf, agents=(agent,), channel="core", taken_ns=time.time_ns())
        fields = {"issued_at": time.time_ns(), "audience": "service.router", **changes}
        body = Receipts(host=host, receipts=(receipt,))
        await scene.put(RECEIPT.at(host="h2"), content(scene.other_host.id, "receipts", body, **fields))
        return RECEIPT.at(host="h2")

    return attack


async def a_receipt_by_another_key(scene: Scene) -> str:
    body = Receipts(
        host="h1",
        receipts=(Receipt(leaf=bytes(32), agents=("hunter-01",), channel="core", taken_ns=time.time_ns()),),
    )
    made = content(
        SpiffeId.host(DOMAIN, "h1"),
        "receipts",
        body,
        issued_at=time.time_ns(),
        audience="service.router",
    )
    await scene.put(RECEIPT.at(host="h1"), made, key=scene.other_host.credentials.key)
    return RECEIPT.at(host="h1")


LONG_AGO = time.time_ns() - 120_000_000_000
TO_ALL, TO_HUNTER, TO_HUNTERS = (
    DELIVER_ALL.at(),
    DELIVER_AGENT.at(agent="hunter-01"),
    DELIVER_ROLE.at(role="hunter"),
)
TO_GUARDIAN, TO_ADMINS = DELIVER_AGENT.at(agent="guardian-01"), DELIVER_ROLE.at(role="admin")
SECRET = Intelligence(summary="bad")
URGENT = int(Priority.CRITICAL)
UNDER_WAY = ThreatAlert(severity=Severity.CRITICAL, summary="under way")
"""An emergency that nobody confirms while the table is gone through."""

CASES = [
    # What reaches a router.
    Case("an unknown type", "router", "unknown_type", routed("nonsense", HIGH)),
    Case("a type that its role may not send", "router", "sender_not_allowed", routed("intelligence", SECRET)),
    Case(
        "an audience that names no agents",
        "router",
        "bad_audience",
        routed("threat_alert", HIGH, audience="service.router"),
    ),
    Case("too old", "router", "expired", routed("coordination", WORK, issued_at=LONG_AGO)),
    Case("an id on another content", "router", "replayed", an_id_again),
    Case("too large", "router", "too_large", routed("threat_alert", b"x" * 70_000)),
    Case("another's name", "router", "wrong_sender", a_stolen_name),
    Case("a key that nobody certified", "router", "unknown_key", a_key_of_nobody),
    Case("changed on the way", "router", "bad_signature", a_flipped_bit),
    Case(
        "for somebody who is not",
        "router",
        "no_such_recipient",
        routed("coordination", WORK, audience="agent.nobody"),
    ),
    Case("no priority in the subject", "router", "bad_priority", another_priority),
    Case("no subject of agents", "router", "bad_subject", too_many_tokens),
    Case("a flood", "router", "rate_limited", a_flood, times=BURST),
    Case("a receipt by another's key", "router", "wrong_sender", a_receipt_by_another_key),
    Case("a receipt in another's name", "router", "wrong_host", receipts("h1", "hunter-01")),
    Case("a receipt for another's agent", "router", "receipt_not_its_agent", receipts("h2", "hunter-01")),
    Case("a receipt for somebody who is not", "router", "receipt_not_due", receipts("h2", "nobody")),
    # What goes past the routers.
    Case(
        "for others than the subject's",
        "host",
        "wrong_audience",
        delivered(TO_ALL, "threat_alert", HIGH, audience="role.hunter"),
    ),
    Case("a fact that is no message", "host", "unknown_type", delivered(TO_ALL, "heartbeat", HIGH)),
    Case(
        "work for everyone",
        "host",
        "audience_not_allowed",
        delivered(TO_ALL, "coordination", WORK, Role.SENTINEL),
    ),
    Case(
        "work as an emergency",
        "host",
        "priority_not_allowed",
        delivered(TO_HUNTER, "coordination", WORK, Role.SENTINEL, audience="agent.hunter-01", priority=URGENT),
    ),
    Case(
        "what a role does not produce",
        "host",
        "content_not_allowed",
        delivered(TO_HUNTERS, "coordination", WORK, Role.GUARDIAN, audience="role.hunter"),
    ),
    Case(
        "a catastrophe without its path",
        "host",
        "severity_mismatch",
        delivered(TO_HUNTERS, "threat_alert", CRITICAL, audience="role.hunter"),
    ),
    Case(
        "a sentinel's order",
        "host",
        "order_not_allowed",
        delivered(
            TO_ALL,
            "threat_alert",
            CRITICAL.model_copy(update={"order": ORDER}),
            Role.SENTINEL,
            priority=URGENT,
        ),
    ),
    Case(
        "a sentinel's order, by the stream",
        "host",
        "order_not_allowed",
        delivered(
            ALERT_BACKUP.at(severity="critical"),
            "threat_alert",
            CRITICAL.model_copy(update={"order": ORDER}),
            Role.SENTINEL,
            priority=URGENT,
        ),
    ),
    Case(
        "intelligence in the open",
        "host",
        "not_sealed",
        delivered(TO_GUARDIAN, "intelligence", SECRET, Role.HUNTER, audience="agent.guardian-01"),
    ),
    Case(
        "another's introduction",
        "host",
        "not_itself",
        delivered(
            TO_ADMINS,
            "discovery",
            Discovery(agent="bad", role=Role.ADMIN, host="h9"),
            audience="role.admin",
        ),
    ),
    Case(
        "another's introduction, by the stream",
        "host",
        "not_itself",
        delivered(
            DISCOVERY_BACKUP.at(reach="role", name="admin"),
            "discovery",
            Discovery(agent="bad", role=Role.ADMIN, host="h9"),
            audience="role.admin",
        ),
    ),
]


async def test_each_bad_input_is_refused_with_its_reason_counted_and_audited(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", ONE), world.folder) as fleet:
        service = await fleet.start_fleet()
        outside = await Outside.of(world)
        insiders = {role: await world.agent(role, f"{role.value}-66") for role in Role}
        for role, bus in insiders.items():
            record = AgentRecord(name=bus.id.name, role=role, host="h2", key_id=bytes(32), enrolled_ns=0)
            await service.bus.records(AGENTS).put(bus.id.name, record)
        async with running_router(
            world, messages_per_sender_per_s=1, burst_per_sender=BURST, delivery_deadline_s=60
        ) as router:
            host = await fleet.start_host("h1", ONE)
            scene = Scene(world, router, host, await world.bus(SpiffeId.host(DOMAIN, "h2")), insiders)
            # Due to all four, and its first receipt is never the last: it stays open for receipts to lie about.
            host._receipts.add = lambda receipt: None  # type: ignore[method-assign]  # noqa: ARG005 - nobody confirms
            await scene.put(
                scene.route_of(Role.HUNTER, "threat_alert", "critical"),
                scene.forge(Role.HUNTER, "threat_alert", UNDER_WAY, priority=URGENT),
            )
            processes = {"router": router.bus.id.token, "host": "host.h1"}
            done = [(case, await case.attack(scene)) for case in CASES]

            def unrefused() -> list[str]:
                return [
                    case.why
                    for case, subject in done
                    if outside.times_audited(processes[case.at], case.reason, subject) < case.times
                ]

            try:
                await eventually(lambda: not unrefused())
            except TimeoutError:
                pytest.fail(f"not refused as expected: {unrefused()}; audited: {outside.audited}")
            for case in CASES:
                figures = {"router": router.metrics, "host": host.metrics}[case.at]
                assert figures.counter(f"rejected.{case.reason}") >= 1
            heard = [agent for agent in host.agents.values() if isinstance(agent, Recorder)]
            assert [alert.summary for agent in heard for alert, _ in agent.alerts] == ["under way"] * 4
            assert [agent.tasks for agent in heard] == [[]] * 4
            assert all("bad" not in {one.agent for one in agent.discoveries} for agent in heard)
            assert {one.reason for one in outside.refusals} >= {
                "bad_audience",
                "no_such_recipient",
                "rate_limited",
            }
            assert router.ready
            assert host.ready


async def test_a_copy_in_identical_bytes_is_dropped_counted_and_no_attack(world: World) -> None:
    """Of every class that travels by the router but proposals, which consensus knows by their leaf."""
    outside = await Outside.of(world)
    sentinel, hunter = await world.agent(Role.SENTINEL, "sentinel-66"), await world.agent(Role.HUNTER, "h-66")
    seen: list[bytes] = []

    async def take(_: Message, context: object) -> None:
        seen.append(getattr(context, "data", b""))

    await hunter.subscribe(DELIVER_ALL, take)
    await hunter.subscribe(DELIVER_ROLE, take, at={"role": "hunter"})
    async with running_router(world) as router:
        made = [
            content(sentinel.id, "threat_alert", HIGH, issued_at=time.time_ns(), audience="all"),
            content(sentinel.id, "coordination", WORK, issued_at=time.time_ns(), audience="role.hunter"),
        ]
        sent = seal(sentinel.credentials.key, made)
        for one, data in zip(made, sent, strict=True):
            subject = ROUTE.at(type=one.type, priority="normal", agent="sentinel-66")
            for _ in range(3):
                await sentinel.connection.publish(subject, data)
        for kind in ("threat_alert", "coordination"):
            await eventually(lambda kind=kind: router.metrics.counter(f"duplicates.{kind}") == 2)  # type: ignore[misc]  # bound now
        await eventually(lambda: len(seen) == 2)
        # A router that sends twice, or two routers that were sent the same, make no second delivery either.
        await router.bus.connection.publish(DELIVER_ALL.at(), sent[0])
        await router.bus.connection.publish(DELIVER_ROLE.at(role="hunter"), sent[1])
        await eventually(lambda: hunter.metrics.counter("duplicates.coordination") == 1)
        await eventually(lambda: hunter.metrics.counter("duplicates.threat_alert") == 1)
    assert sorted(seen) == sorted(sent)
    assert outside.audited == []


async def test_an_introduction_that_an_admin_missed_comes_by_the_stream(world: World) -> None:
    agents = [("admin-01", Role.ADMIN), ("hunter-01", Role.HUNTER)]
    async with FleetWorld(world, tokens_for("h1", agents), world.folder) as fleet:
        await fleet.start_fleet()
        canary = await world.agent(Role.CANARY, "canary-66")
        known = Discovery(agent="canary-66", role=Role.CANARY, host="h9")

        async def introduce() -> None:
            made = content(
                canary.id, "discovery", known, issued_at=time.time_ns(), audience="role.admin", priority=2
            )
            (data,) = seal(canary.credentials.key, [made])
            await canary.connection.publish(
                ROUTE.at(type="discovery", priority="high", agent="canary-66"), data
            )

        async with running_router(world) as router:
            async with fleet.make_host("h1", agents) as host:
                admin = host.agents["admin-01"]
                assert isinstance(admin, Recorder)
                await introduce()
                await eventually(lambda: admin.discoveries.count(known) == 1)
                # Whichever copy came second.
                copies = ("duplicates.DISCOVERY_BACKUP", "duplicates.discovery")
                await eventually(lambda: sum(map(host.metrics.counter, copies)) >= 1)
                assert host.metrics.counter("rejected.replayed") == 0
                # What was not acknowledged would come to the next process again.
                js = router.bus.connection.js
                async with asyncio.timeout(10):
                    while (await js.consumer_info("DISCOVERIES", "host-h1-discoveries")).num_ack_pending:
                        await asyncio.sleep(0.01)
            await introduce()
            await eventually(lambda: router.metrics.counter("routed.discovery") >= 4)
            again = await fleet.start_host("h1", agents)
            back = again.agents["admin-01"]
            assert isinstance(back, Recorder)
            await eventually(lambda: back.discoveries.count(known) == 1)
