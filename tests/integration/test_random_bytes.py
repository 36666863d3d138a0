"""Bad bytes on every subject disturb no service: it counts them, and goes on answering.

All services run here in one process, on a real broker. What is thrown at them: random bytes, real envelopes
that are truncated, bit-flipped or on subjects where they do not belong, garbage in buckets, and subjects and
headers that no client library would send.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from support import DOMAIN, World, eventually

from tocsin.bus import Bus, BusSettings, Service
from tocsin.contracts.catalogue import (
    BUCKETS,
    EVENT_DELIVERY,
    HEARTBEAT_TYPE,
    IDENTITIES,
    METRICS_TYPE,
    PING,
    REQUESTS,
    SUBJECTS,
    THREAT_ALERT,
)
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.contracts.routing import Delivery, ThreatAlert
from tocsin.contracts.subjects import Subject

SEED = 20261123
MODULES = {
    ServiceName.ROUTER: "tocsin.router",
    ServiceName.FLEET: "tocsin.fleet",
    ServiceName.CONSENSUS: "tocsin.consensus",
    ServiceName.QPU_MANAGER: "tocsin.qpu_manager",
    ServiceName.WORKFLOW: "tocsin.workflow",
    ServiceName.BALANCER: "tocsin.balancer",
    ServiceName.WORKER: "tocsin.balancer.worker",
    ServiceName.MONITOR: "tocsin.monitor",
    ServiceName.GATEWAY: "tocsin.gateway",
}
AnyService = Service[Any]


@dataclass
class Street:
    """Every service, and the broker's other side."""

    world: World
    cli: Bus
    services: dict[ServiceName, AnyService] = field(default_factory=dict)

    async def start(self, name: ServiceName) -> None:
        service_class, settings_class = classes_of(MODULES[name])
        settings = settings_class(**self.world.settings().model_dump(), **own_settings(name, self.world))
        service = service_class(await self.world.service(name), settings)
        await service.start()
        self.world.buses.push_async_callback(service.stop)
        self.services[name] = service

    async def everyone_answers(self) -> None:
        """Ask every service whether it is ready: one that hangs or has died fails this."""
        for name in self.services:
            pong = await self.cli.request(PING[name], PingRequest(), timeout_s=20)
            assert pong.process == f"service.{name.value}.0"

    def rejected(self, name: ServiceName) -> int:
        counters = self.services[name].metrics.statistics().counters
        return sum(count for counter, count in counters.items() if counter.startswith("rejected."))

    def failures(self) -> dict[str, int]:
        """What a service counts when something went wrong that it did not expect."""
        return {
            f"{name.value} {counter}": count
            for name, service in self.services.items()
            for counter in ("handler_failures", "task_failures")
            if (count := service.metrics.counter(counter))
        }


def classes_of(module: str) -> tuple[type[AnyService], type[BusSettings]]:
    service = only_subclass(importlib.import_module(f"{module}.service"), Service)
    settings = only_subclass(importlib.import_module(f"{module}.settings"), BusSettings)
    return service, settings


def only_subclass(module: Any, base: type[Any]) -> Any:
    found = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__
    ]
    assert len(found) == 1, (module.__name__, found)
    return found[0]


def own_settings(name: ServiceName, world: World) -> dict[str, Any]:
    """Return what a service needs beside the bus's settings, made here."""
    if name is ServiceName.FLEET:
        folder = world.folder / "fleet"
        folder.mkdir()
        world.authority.issue_intermediate("fleet", now=datetime.now(UTC)).save(folder, "fleet")
        tokens = folder / "tokens.json"
        tokens.write_text("[]")
        tokens.chmod(0o600)
        return {"authority_dir": folder, "tokens_file": tokens}
    if name is ServiceName.CONSENSUS:
        return {"state_dir": world.folder / "consensus"}
    if name is ServiceName.QPU_MANAGER:
        return {"warm_qubits": ()}
    return {}


@pytest.fixture
async def street(world: World, monkeypatch: pytest.MonkeyPatch) -> Street:
    """Start every service."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    street = Street(world, await world.service(ServiceName.CLI))
    for name in MODULES:
        await street.start(name)
    await street.everyone_answers()
    return street


def concrete(subject: Subject, chance: random.Random) -> str:
    """Return one subject of a family: tokens that mean something somewhere, or nothing."""
    meaningful = ("h1", "a1", "router", "delivery", "classical", "0", "critical", "threat_alert", "guardian-1")
    tokens = re.findall(r"{(\w+)}", subject.template)
    return subject.at(**{token: chance.choice((*meaningful, chance.randbytes(8).hex())) for token in tokens})


async def real_envelopes(street: Street) -> list[bytes]:
    """Return envelopes that are in order, of several types and classes."""
    host = await street.world.bus(SpiffeId.host(DOMAIN, "h1"))
    guardian = await street.world.agent(Role.GUARDIAN, "guardian-1")
    router = street.services[ServiceName.ROUTER].bus
    delivery = Delivery(
        message=bytes(16),
        leaf=bytes(32),
        due=1,
        delivered=1,
        by_core=1,
        by_stream=0,
        undelivered=(),
        first_ms=1,
        last_ms=1,
        complete=True,
    )
    made = [
        await host.make(
            HEARTBEAT_TYPE, Heartbeat(host="h1", agents=("a1",), handled=1, failed=0), audience="event"
        ),
        await host.make(METRICS_TYPE, host.metrics.snapshot("host.h1"), audience="event"),
        await guardian.make(THREAT_ALERT, ThreatAlert(severity=Severity.HIGH, summary="x"), audience="all"),
        await router.make(EVENT_DELIVERY, delivery, audience="event"),
        await street.cli.make(
            PING[ServiceName.ROUTER].request_type, PingRequest(), audience="service.router", ttl_ms=5_000
        ),
    ]
    return [one.data for one in made]


def bad_versions(whole: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield what an accident or an attacker makes of an envelope."""
    yield whole[: chance.randrange(len(whole))]
    flipped = bytearray(whole)
    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    yield bytes(flipped)
    yield whole + chance.randbytes(chance.randrange(1, 40))
    yield whole


async def test_bad_bytes_on_every_subject_disturb_nobody(street: Street) -> None:
    chance = random.Random(SEED)  # noqa: S311 - the same bytes every time
    real = await real_envelopes(street)
    before = {name: street.rejected(name) for name in street.services}
    attacker = street.cli.connection.client
    sent = 0
    for spec in [*SUBJECTS, *(request.subject for request in REQUESTS)]:
        noise = [b"", b"\x00", chance.randbytes(40), chance.randbytes(3_000), b"\xdc\xff\xff" * 5_000]
        for data in [*noise, *bad_versions(chance.choice(real), chance), *bad_versions(real[0], chance)]:
            reply = chance.choice(("", "tocsin.v1.reply.x.y", "tocsin.v1.metrics.host-h1"))
            await attacker.publish(concrete(spec, chance), data, reply=reply)
            sent += 1
    await street.cli.flush()
    assert sent > 400
    for name in street.services:
        await eventually(lambda name=name: street.rejected(name) > before[name])  # type: ignore[misc]  # mypy: lambda
    await street.everyone_answers()
    assert street.failures() == {}


async def test_garbage_in_buckets_disturbs_nobody(street: Street) -> None:
    chance = random.Random(SEED)  # noqa: S311 - the same bytes every time
    attacker = street.cli.connection.client
    real = await real_envelopes(street)
    for bucket in (IDENTITIES, *(one.name for one in BUCKETS)):
        for key in ("h1", "service.router.0", "fake_athens", chance.randbytes(16).hex()):
            for data in (b"", chance.randbytes(30), chance.choice(real), b"\x91" * 2_000):
                await attacker.publish(f"$KV.{bucket}.{key}", data)
    await street.cli.flush()
    await eventually(lambda: street.services[ServiceName.FLEET].metrics.counter("rejected.malformed") > 0)
    await street.everyone_answers()
    assert street.failures() == {}
    late = await street.world.bus(SpiffeId.host(DOMAIN, "late"))
    assert late.connected


HOSTILE = {
    "subject that is no UTF-8": b"PUB tocsin.v1.metrics.\xff\xfe 3\r\nabc\r\n",
    "subject with a vertical tab": b"PUB tocsin.v1.metrics.a\x0bb 3\r\nabc\r\n",
    "subject that seems to name another subscription": b"PUB tocsin.v1.metrics.a\x0c5 3\r\nabc\r\n",
    "subject with a NUL": b"PUB tocsin.v1.metrics.a\x00 3\r\nabc\r\n",
    "reply that is no UTF-8": b"PUB tocsin.v1.monitor.ping re\xffply 3\r\nabc\r\n",
    "reply with a vertical tab": b"PUB tocsin.v1.monitor.ping re\x0bply 3\r\nabc\r\n",
    "header of eight bytes": b"HPUB tocsin.v1.metrics.a 8 11\r\nNATS/1.0abc\r\n",
    "header that is no UTF-8": b"HPUB tocsin.v1.metrics.a 12 15\r\nNATS/1.0 \xff\xff\xffabc\r\n",
    "header that is none": b"HPUB tocsin.v1.metrics.a 4 7\r\nNAT\xffabc\r\n",
    "answer that says nobody is there": b"HPUB tocsin.v1.monitor.ping 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
}


async def publish_raw(world: World, lines: bytes) -> None:
    """Speak NATS by hand, and wait until the broker has taken it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.broker.port)
    token = world.broker.token_file.read_text().strip().encode()
    writer.write(b'CONNECT {"user":"tocsin","pass":"%s","verbose":false,"headers":true}\r\n' % token)
    writer.write(lines + b"PING\r\n")
    await writer.drain()
    async with asyncio.timeout(5):
        while (line := await reader.readline()) != b"PONG\r\n":
            assert line.startswith(b"INFO"), line
    writer.close()


async def test_no_publication_cuts_a_subscriber_off(world: World) -> None:
    """The client library's read loop ends, or reconnects, at such bytes: one message would silence a fleet."""
    street = Street(world, await world.service(ServiceName.CLI))
    await street.start(ServiceName.MONITOR)
    monitor = street.services[ServiceName.MONITOR]
    for name, lines in HOSTILE.items():
        await publish_raw(world, lines)
        await street.everyone_answers()
        assert monitor.metrics.counter("broker_disconnects") == 0, name
    # What names no subject is counted as the broker's error; headers are not read, and what is behind them is refused.
    counters = monitor.metrics.statistics().counters
    assert sum(count for counter, count in counters.items() if counter.startswith("broker_errors.")) >= 2
    assert sum(count for counter, count in counters.items() if counter.startswith("rejected.")) >= 3
    assert street.failures() == {}


def test_no_service_is_left_out() -> None:
    """One that is added later must have bad bytes thrown at it, too."""
    assert set(MODULES) == set(PING)
