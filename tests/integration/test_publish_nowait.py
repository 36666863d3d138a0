"""What is queued arrives, in order; what cannot be sent is counted."""

from __future__ import annotations

import pytest
from support import DOMAIN, World, eventually

from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import HEARTBEAT, HEARTBEAT_TYPE, RECEIPT, RECEIPTS
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.routing import Receipt, Receipts
from tocsin.telemetry import Metrics


def beat(number: int) -> Heartbeat:
    return Heartbeat(host="h1", agents=("a",), handled=number, failed=0)


async def test_what_is_queued_arrives_in_order_and_in_batches(world: World) -> None:
    host, monitor = await world.bus(SpiffeId.host(DOMAIN, "h1")), await world.service(ServiceName.MONITOR)
    seen: list[int] = []

    def on_heartbeat(body: Heartbeat, _: Context) -> None:
        seen.append(body.handled)

    await monitor.subscribe(HEARTBEAT, on_heartbeat)
    for number in range(500):
        host.publish_nowait(HEARTBEAT, HEARTBEAT_TYPE, beat(number), at={"host": "h1"})
    await eventually(lambda: len(seen) == 500)
    assert seen == list(range(500))
    assert host.metrics.counter("signatures_made") < 100


async def test_what_cannot_be_made_is_refused_at_once(world: World) -> None:
    monitor = await world.service(ServiceName.MONITOR)
    with pytest.raises(DeniedError):
        monitor.publish_nowait(HEARTBEAT, HEARTBEAT_TYPE, beat(1), at={"host": "h1"})
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    with pytest.raises(InvalidInputError):
        host.publish_nowait(HEARTBEAT, HEARTBEAT_TYPE, beat(1), at={"host": "not a token"})


async def test_what_is_too_large_is_counted(world: World) -> None:
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    agents = tuple(f"agent-{number:057d}" for number in range(4096))
    many = Receipts(host="h1", receipts=(Receipt(leaf=bytes(32), agents=agents, channel="core", taken_ns=0),))
    host.publish_nowait(RECEIPT, RECEIPTS, many, at={"host": "h1"})
    await eventually(lambda: host.metrics.counter("unsent.too_large") == 1)


async def test_what_is_queued_goes_out_before_a_bus_ends(world: World) -> None:
    monitor = await world.service(ServiceName.MONITOR)
    seen: list[int] = []

    def on_heartbeat(body: Heartbeat, _: Context) -> None:
        seen.append(body.handled)

    await monitor.subscribe(HEARTBEAT, on_heartbeat)
    async with Bus(world.settings(), world.credentials(SpiffeId.host(DOMAIN, "h1")), Metrics()) as host:
        for number in range(100):
            host.publish_nowait(HEARTBEAT, HEARTBEAT_TYPE, beat(number), at={"host": "h1"})
    await eventually(lambda: len(seen) == 100)
