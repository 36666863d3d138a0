"""A sender whose clock is off by minutes is refused, and told so after its message was verified."""

from __future__ import annotations

import time

import pytest
from router_support import running_router
from support import World, eventually

from tocsin.bus import Bus, Context
from tocsin.bus.envelope import encode_body, encode_content, make_content
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import EVENT, ROUTE
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.routing import Refusal, ThreatAlert

NS_PER_S = 1_000_000_000
WHERE = ROUTE.at(type="threat_alert", priority="high", agent="sentinel-01")


async def listen(world: World) -> list[Refusal]:
    refusals: list[Refusal] = []
    bus = await world.service(ServiceName.MONITOR)

    async def on_event(body: Message, _: Context) -> None:
        if isinstance(body, Refusal):
            refusals.append(body)

    await bus.subscribe(EVENT, on_event, at={"service": "router", "kind": "refusal"})
    return refusals


async def made_at(bus: Bus, now_ns: int) -> tuple[bytes, bytes]:
    """Make an alert as a process does whose clock shows ``now_ns``: its id and its envelope."""
    content = make_content(
        type_name="threat_alert",
        sender=str(bus.id),
        audience="all",
        body=encode_body(ThreatAlert(severity=Severity.HIGH, summary="smoke")),
        now_ns=now_ns,
        ttl_ms=5_000,
        priority=Priority.HIGH,
    )
    return content.id, await bus._main_signer.envelope(encode_content(content))


@pytest.mark.parametrize(("offset_s", "side"), [(300, "ahead of"), (-300, "behind")])
async def test_a_sender_whose_clock_is_off_is_told_by_how_much(world: World, offset_s: int, side: str) -> None:
    async with running_router(world) as router:
        refusals = await listen(world)
        sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
        await eventually(lambda: router.bus.trust.identity(sentinel.credentials.key.signer.key_id) is not None)
        message, data = await made_at(sentinel, time.time_ns() + offset_s * NS_PER_S)
        await sentinel.connection.publish(WHERE, data)
        await eventually(lambda: len(refusals) == 1)
        (told,) = refusals
        assert (told.message, told.agent, told.reason) == (message, "sentinel-01", "clock")
        shown_s, _, rest = told.detail.removeprefix("issued ").partition(" s ")
        assert abs(float(shown_s) - 300) < 5
        assert rest.startswith(side)
        assert router.metrics.counter("routed.threat_alert") == 0


async def test_what_does_not_verify_is_told_to_nobody_and_a_flood_is_not_all_verified(world: World) -> None:
    async with running_router(world) as router:
        refusals = await listen(world)
        sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
        await eventually(lambda: router.bus.trust.identity(sentinel.credentials.key.signer.key_id) is not None)
        _, data = await made_at(sentinel, time.time_ns() + 300 * NS_PER_S)
        await sentinel.connection.publish(WHERE, data.replace(b"smoke", b"smoka"))
        await eventually(lambda: router.metrics.counter("clocks_untold.bad_signature") == 1)
        for number in range(100):
            _, data = await made_at(sentinel, time.time_ns() + (300 + number) * NS_PER_S)
            await sentinel.connection.publish(WHERE, data)
        await eventually(lambda: router.metrics.counter("rejected.issued_in_future") == 101)
        await eventually(
            lambda: router.metrics.counter("clocks_told") + router.metrics.counter("clocks_untold") == 100
        )
        assert router.metrics.counter("clocks_untold") > 50
        assert len(refusals) <= router.metrics.counter("clocks_told")
