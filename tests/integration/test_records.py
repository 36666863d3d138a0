"""Who can write to the broker can neither invent a record nor a certificate, move one, nor roll it back."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from support import DOMAIN, World

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AGENTS, CERTIFICATES
from tocsin.contracts.errors import ConflictError, InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId


def record(name: str) -> AgentRecord:
    return AgentRecord(name=name, role=Role.CANARY, host="h1", key_id=bytes(32), enrolled_ns=1)


async def bucket_entry(bus: Bus, key: str) -> bytes:
    entry = await (await bus.connection.js.key_value(AGENTS.name)).get(key)
    return entry.value or b""


async def overwrite(bus: Bus, key: str, data: bytes) -> None:
    """Write to the bucket as somebody would who has the broker's token and no key."""
    await (await bus.connection.js.key_value(AGENTS.name)).put(key, data)


async def test_what_was_written_is_read_by_another(world: World) -> None:
    fleet, cli = await world.service(ServiceName.FLEET), await world.service(ServiceName.CLI)
    assert await fleet.records(AGENTS).put("a", record("a")) == 1
    assert await fleet.records(AGENTS).put("a", record("a")) == 2
    assert await cli.records(AGENTS).get("a") == record("a")
    assert await cli.records(AGENTS).get("b") is None
    assert await cli.records(AGENTS).all() == {"a": record("a")}


async def test_a_record_that_was_moved_or_rolled_back_is_refused(world: World) -> None:
    fleet, cli = await world.service(ServiceName.FLEET), await world.service(ServiceName.CLI)
    await fleet.records(AGENTS).put("a", record("a"))
    first = await bucket_entry(fleet, "a")
    await fleet.records(AGENTS).put("a", record("a"))
    reader = cli.records(AGENTS)
    assert await reader.get("a") == record("a")
    await overwrite(cli, "a", first)
    await overwrite(cli, "b", first)
    for key, reason in (("a", "rolled_back"), ("b", "moved_record")):
        with pytest.raises(TocsinError) as caught:
            await reader.get(key)
        assert caught.value.reason == reason
        assert cli.metrics.counter(f"rejected.{reason}") == 0
    assert await reader.all() == {}
    assert cli.metrics.counter("rejected.rolled_back") == cli.metrics.counter("rejected.moved_record") == 1


async def test_a_record_of_somebody_who_may_not_write_it_is_refused(world: World) -> None:
    router, cli = await world.service(ServiceName.ROUTER), await world.service(ServiceName.CLI)
    with pytest.raises(TocsinError) as caught:
        await router.records(AGENTS).put("a", record("a"))
    assert caught.value.reason == "sender_not_allowed"
    fleet = await world.service(ServiceName.FLEET)
    await fleet.records(AGENTS).put("a", record("a"))
    flipped = bytearray(await bucket_entry(fleet, "a"))
    flipped[len(flipped) // 2] ^= 1
    await overwrite(router, "a", bytes(flipped))
    with pytest.raises(TocsinError):
        await cli.records(AGENTS).get("a")


@pytest.mark.parametrize("garbage", [b"\xff\x00", b"x" * 100, bytes(70_000)], ids=["short", "text", "large"])
async def test_garbage_does_not_block_the_true_record(world: World, garbage: bytes) -> None:
    fleet = await world.service(ServiceName.FLEET)
    await overwrite(fleet, "a", garbage)
    with pytest.raises(InvalidInputError):
        await fleet.records(AGENTS).get("a")
    await fleet.records(AGENTS).put("a", record("a"))
    assert await fleet.records(AGENTS).get("a") == record("a")


async def test_a_writer_that_read_too_early_is_told(world: World) -> None:
    fleet = await world.service(ServiceName.FLEET)
    records, other = fleet.records(AGENTS), fleet.records(AGENTS)
    held = await records._read("a")
    await other.put("a", record("a"))
    with pytest.raises(ConflictError) as caught:
        await records._write("a", record("a"), held)
    assert caught.value.reason == "stale"


async def test_a_certificate_comes_back_as_it_was_put(world: World) -> None:
    consensus = await world.service(ServiceName.CONSENSUS)
    guardian = await world.bus(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "g"))
    data = bytes(range(256)) * 2_000
    await consensus.put_certificate("ab", data)
    assert await guardian.get_certificate("ab") == data
    with pytest.raises(UnavailableError):
        await guardian.get_certificate("cd")


async def test_a_certificate_that_is_replaced_while_it_is_read_is_one_of_both(world: World) -> None:
    """Two instances store one each, of the same decision; the broker drops the pieces of the first."""
    instances = [await world.service(ServiceName.CONSENSUS, name) for name in ("0", "1")]
    both = [bytes((number,)) * 1_500_000 for number in range(2)]
    await instances[0].put_certificate("ab", both[0])
    guardian = await world.bus(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "g"))

    async def replaced() -> None:
        for number in range(20):
            await instances[number % 2].put_certificate("ab", both[number % 2])

    putting = asyncio.create_task(replaced())
    while not putting.done():
        assert await guardian.get_certificate("ab") in both
    await putting


async def test_an_object_that_is_no_certificate_is_an_error_of_ours(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage, no digest, and pieces that are claimed and not there."""
    monkeypatch.setattr("tocsin.bus.certificates.CERTIFICATE_TIMEOUT_S", 0.5)
    guardian = await world.bus(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "g"))
    name = base64.urlsafe_b64encode(b"ab").decode()
    claimed = {"name": "ab", "bucket": CERTIFICATES, "nuid": "nowhere", "size": 10, "chunks": 1, "digest": "x"}
    for meta in (b"", b"\xff", b"[]", b"{}", b'{"name": 5}', json.dumps(claimed).encode()):
        await guardian.connection.js.publish(f"$O.{CERTIFICATES}.M.{name}", meta)
        with pytest.raises((InvalidInputError, UnavailableError)):
            await guardian.get_certificate("ab")


async def test_an_object_larger_than_any_certificate_is_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    consensus = await world.service(ServiceName.CONSENSUS)
    await consensus.put_certificate("ab", bytes(300_000))
    monkeypatch.setattr("tocsin.bus.certificates.MAX_CERTIFICATE_BYTES", 200_000)
    with pytest.raises(InvalidInputError) as caught:
        await consensus.get_certificate("ab")
    assert caught.value.reason == "bad_certificate"
