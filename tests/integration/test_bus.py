"""The bus over a real broker: what travels, what is refused, what survives."""

from __future__ import annotations

import asyncio

import pytest
from support import DOMAIN, World, eventually

from tocsin.bus import Context
from tocsin.contracts.catalogue import (
    DELIVER_ALL,
    EVENT,
    EVENT_REFUSAL,
    HEARTBEAT,
    HEARTBEAT_TYPE,
    PING,
    THREAT_ALERT,
)
from tocsin.contracts.errors import DeniedError, ExhaustedError, UnavailableError
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.operations import PingRequest, Pong
from tocsin.contracts.routing import Refusal, ThreatAlert


async def test_a_published_message_reaches_a_subscriber_with_its_sender(world: World) -> None:
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    monitor = await world.service(ServiceName.MONITOR)
    seen: asyncio.Queue[tuple[Heartbeat, Context]] = asyncio.Queue()

    async def on_heartbeat(body: Heartbeat, context: Context) -> None:
        await seen.put((body, context))

    await monitor.subscribe(HEARTBEAT, on_heartbeat)
    sent = Heartbeat(host="h1", agents=("a1", "a2"), handled=3, failed=0)
    await host.publish(HEARTBEAT, HEARTBEAT_TYPE, sent, at={"host": "h1"})
    body, context = await asyncio.wait_for(seen.get(), 5)
    assert body == sent
    assert str(context.sender) == f"spiffe://{DOMAIN}/host/h1"


async def test_a_request_is_answered_and_an_error_keeps_its_family(world: World) -> None:
    monitor = await world.service(ServiceName.MONITOR)
    router = await world.service(ServiceName.ROUTER)
    full = False

    async def ping(_: PingRequest, __: Context) -> Pong:
        if full:
            raise ExhaustedError("no room", reason="queue_full")
        return Pong(process="p", version="1", signature_backend="openssl", name="0")

    await router.serve(PING[ServiceName.ROUTER], ping, queue="router")
    assert (await monitor.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=5)).process == "p"
    full = True
    with pytest.raises(ExhaustedError, match="no room") as caught:
        await monitor.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=5)
    assert caught.value.reason == "queue_full"


async def test_nobody_there_is_said_within_the_timeout(world: World) -> None:
    monitor = await world.service(ServiceName.MONITOR)
    with pytest.raises(UnavailableError, match="nobody serves it"):
        await monitor.request(PING[ServiceName.FLEET], PingRequest(), timeout_s=0.5)


async def test_a_stored_event_is_consumed_once_by_its_durable(world: World) -> None:
    router = await world.service(ServiceName.ROUTER)
    monitor = await world.service(ServiceName.MONITOR)
    seen: list[Refusal] = []

    async def on_event(body: Refusal, _: Context) -> None:
        seen.append(body)

    for number in range(3):
        await router.event(EVENT_REFUSAL, Refusal(message=bytes(16), agent=f"a{number}", reason="r", detail=""))
    await monitor.consume(EVENT, on_event, durable="test")
    await eventually(lambda: len(seen) == 3)
    assert [r.agent for r in seen] == ["a0", "a1", "a2"]


async def test_who_may_not_send_is_refused_by_the_receiver_too(world: World) -> None:
    """The sender's own check is a courtesy: a forged one must be refused on arrival."""
    guardian = await world.agent(Role.GUARDIAN, "g1")
    analyst = await world.agent(Role.ANALYST, "a1")
    with pytest.raises(DeniedError):
        await guardian.publish(
            HEARTBEAT,
            HEARTBEAT_TYPE,
            Heartbeat(host="g1", agents=("g1",), handled=0, failed=0),
            at={"host": "g1"},
        )
    seen: list[ThreatAlert] = []

    async def on_alert(body: ThreatAlert, _: Context) -> None:
        seen.append(body)

    await analyst.subscribe(DELIVER_ALL, on_alert)
    alert = ThreatAlert(severity=Severity.HIGH, summary="x")
    sent = await guardian.make(THREAT_ALERT, alert, audience="all")
    await guardian.send(DELIVER_ALL.at(), sent)
    flipped = bytearray(sent.data)
    flipped[len(flipped) // 2] ^= 1
    await guardian.connection.publish(DELIVER_ALL.at(), bytes(flipped))
    await guardian.connection.publish(DELIVER_ALL.at(), b"\xff\x00garbage")
    wrong = await guardian.make(THREAT_ALERT, alert, audience="role.admin")
    await guardian.send(DELIVER_ALL.at(), wrong)
    await guardian.send(DELIVER_ALL.at(), sent)
    await eventually(lambda: analyst.metrics.counter("duplicates.threat_alert") == 1)
    assert seen == [alert]
    assert analyst.metrics.counter("rejected.malformed") >= 1
    assert analyst.metrics.counter("rejected.wrong_audience") == 1


async def test_the_bus_survives_a_broker_restart(world: World) -> None:
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    monitor = await world.service(ServiceName.MONITOR)
    seen: list[int] = []

    async def on_heartbeat(body: Heartbeat, _: Context) -> None:
        seen.append(body.handled)

    await monitor.subscribe(HEARTBEAT, on_heartbeat)
    world.restart_broker()
    await eventually(lambda: host.connected and monitor.connected, within_s=20)
    number = 0
    async with asyncio.timeout(10):
        while not seen:
            number += 1
            await host.publish(
                HEARTBEAT,
                HEARTBEAT_TYPE,
                Heartbeat(host="h1", agents=("a",), handled=number, failed=0),
                at={"host": "h1"},
            )
            await asyncio.sleep(0.05)
    late = await world.bus(SpiffeId.host(DOMAIN, "h2"))
    await late.publish(
        HEARTBEAT, HEARTBEAT_TYPE, Heartbeat(host="h2", agents=("b",), handled=77, failed=0), at={"host": "h2"}
    )
    await eventually(lambda: 77 in seen)
