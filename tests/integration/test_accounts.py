"""What the account for tools from outside may do on a real broker, and what it may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import APIError
from support import World

from tocsin.bus import Bus
from tocsin.bus.accounts import READER_INBOX, READER_USER
from tocsin.cli import livefire
from tocsin.contracts.catalogue import EVENT_REFUSAL, EVENT_SENSOR
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.observations import SensorReady
from tocsin.contracts.routing import Refusal

FORBIDDEN_WORDS = (
    "tocsin.v1.event.router.refusal",
    "tocsin.v1.route.threat_alert.critical.sentinel-01",
    "tocsin.v1.reply.x",
    "$KV.identities.x",
    "$JS.API.STREAM.DELETE.EVENTS",
    "$JS.API.STREAM.PURGE.KV_identities",
    "$JS.API.CONSUMER.CREATE.ALERTS",
    "$JS.API.CONSUMER.DURABLE.CREATE.ALERTS.host-host-1-alerts",
    "$JS.API.CONSUMER.DELETE.KV_identities.x",
    "$JS.API.CONSUMER.MSG.NEXT.WORK.work-classical",
    "$JS.API.STREAM.MSG.GET.WORK",
    "$JS.ACK.ALERTS.x",
)
FORBIDDEN_EARS = (
    "tocsin.v1.route.>",
    "tocsin.v1.deliver.role.>",
    "tocsin.v1.reply.>",
    "_INBOX.>",
    ">",
    "$JS.>",
)


@asynccontextmanager
async def reader(world: World) -> AsyncIterator[tuple[Client, list[str]]]:
    """Connect as a reader; what the broker refuses is kept."""
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error))

    password = world.broker.token_file.with_name("reader-token").read_text()
    client = await nats.connect(
        world.broker.url, user=READER_USER, password=password, inbox_prefix=READER_INBOX, error_cb=on_error
    )
    try:
        yield client, refused
    finally:
        await client.close()


async def test_a_reader_changes_nothing_and_hears_no_answer_of_others(world: World) -> None:
    async with reader(world) as (client, refused):
        for subject in FORBIDDEN_WORDS:
            await client.publish(subject, b"x")
        for subject in FORBIDDEN_EARS:
            await client.subscribe(subject)
        await client.flush()
        await asyncio.sleep(0.3)
    assert len(refused) == len(FORBIDDEN_WORDS) + len(FORBIDDEN_EARS), refused
    assert all("permissions violation" in one for one in refused)


async def test_a_reader_fetches_what_it_missed_one_by_one(world: World) -> None:
    router = await world.service(ServiceName.ROUTER)
    body = Refusal(message=bytes(16), agent="sentinel-01", reason="too_fast", detail="d")
    sent = await router.event(EVENT_REFUSAL, body)
    async with reader(world) as (client, refused):
        message = await client.jetstream().get_msg("EVENTS", 1)
        assert message.data == sent.data
        with pytest.raises((APIError, TimeoutError, nats.errors.TimeoutError)):
            await client.jetstream(timeout=0.3).get_msg("WORK", 1)
    assert len(refused) == 1


async def test_sensors_that_stand_are_those_of_each_agents_last_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = await world.service(ServiceName.CLI)
    deception = await world.agent(Role.DECEPTION, "deception-01")
    canary = await world.agent(Role.CANARY, "canary-01")

    async def announce(bus: Bus, port: int) -> None:
        ready = SensorReady(agent=bus.id.name, address="127.0.0.1", port=port, imitates="ssh")
        await bus.event(EVENT_SENSOR, ready)

    await announce(deception, 1000)
    await announce(canary, 2000)
    await asyncio.sleep(1.5)
    monkeypatch.setattr(livefire, "ANNOUNCED_WITHIN_NS", 1_000_000_000)  # it starts anew, sooner than it could
    await announce(deception, 1001)
    await announce(deception, 1002)
    for _ in range(2):  # reading takes nothing from anybody
        assert {sensor.port for sensor in await livefire.standing_sensors(asks)} == {1001, 1002, 2000}
