"""The traffic of the live-fire demo: ordinary clients first, then a port scan and a brute-force attempt.

Real TCP connections on this machine, against honeypots that announced themselves, bounded in number and time.
On loopback each actor has an address of its own where the system lets it bind one (Linux: all of 127.0.0.0/8);
against honeypots in containers all have the address that this machine has there. Canaries are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from tocsin.bus import Bus
from tocsin.contracts.catalogue import EVENT, EVENT_SENSOR
from tocsin.contracts.observations import SensorReady

CLIENTS = tuple(f"127.0.0.{last}" for last in range(11, 17))
SCANNER = "127.0.0.66"
BRUTE_FORCER = "127.0.0.77"
CONNECT_TIMEOUT_S = 2.0
ORDINARY_CONNECTIONS = 3
"""Of each client."""
LOGIN_ATTEMPTS = 40
CANARY = "canary"
ANNOUNCED_WITHIN_NS = 5_000_000_000
"""From an agent's first announcement to its last; it takes milliseconds, and a process longer to start again."""
LOGINS = ("ssh", "ftp", "telnet")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the driver did."""

    ordinary: int
    scan: int
    brute_force: int
    refused: int


async def drive(sensors: Sequence[SensorReady], *, seed: int = 7) -> Traffic:
    """Make the traffic; takes a few seconds."""
    targets = [sensor for sensor in sensors if sensor.imitates != CANARY]
    chance = random.Random(seed)  # noqa: S311 - which honeypot a client visits is no secret
    ordinary = refused = 0
    for _ in range(ORDINARY_CONNECTIONS):
        for client in CLIENTS:
            sensor = chance.choice([s for s in targets if s.imitates == "http"] or targets)
            visited = await _visit(client, sensor, b"GET / HTTP/1.0\r\nHost: intranet\r\n\r\n")
            ordinary, refused = ordinary + visited, refused + (not visited)
            await asyncio.sleep(0.02)
    scanned = await asyncio.gather(*(_probe(SCANNER, sensor) for sensor in targets))
    login = next((s for name in LOGINS for s in targets if s.imitates == name), targets[0])
    tried = 0
    for attempt in range(LOGIN_ATTEMPTS):
        tried += await _visit(BRUTE_FORCER, login, f"admin\r\npassword{attempt}\r\n".encode())
    return Traffic(ordinary, sum(scanned), tried, refused)


async def standing_sensors(bus: Bus) -> list[SensorReady]:
    """Return the honeypots and canaries that stand now, by what their agents have announced.

    An agent announces all of its own whenever it starts, within moments; what an earlier start of it announced
    is gone. One that has run for longer than the announcements are kept is not found.
    """
    kept_ms = EVENT_SENSOR.ttl_ms
    at = {"service": "agent", "kind": "sensor"}
    told = await bus.since(EVENT, start_ns=time.time_ns() - kept_ms * 1_000_000, at=at)
    newest: dict[str, int] = {}
    for _, context in told:
        name = context.sender.name
        newest[name] = max(newest.get(name, 0), context.content.issued_at)
    return [
        body
        for body, context in told
        if isinstance(body, SensorReady)
        and newest[context.sender.name] - context.content.issued_at <= ANNOUNCED_WITHIN_NS
    ]


async def _probe(source: str, sensor: SensorReady) -> bool:
    """Connect and leave at once, as a scanner does."""
    try:
        _, writer = await _connect(source, sensor)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _visit(source: str, sensor: SensorReady, says: bytes) -> bool:
    """Connect, say something, hear the answer, leave."""
    try:
        reader, writer = await _connect(source, sensor)
    except (OSError, TimeoutError):
        return False
    with contextlib.suppress(OSError, TimeoutError):
        writer.write(says)
        await writer.drain()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await reader.read(4096)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def _connect(source: str, sensor: SensorReady) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if not ip_address(sensor.address).is_loopback:
            return await asyncio.open_connection(sensor.address, sensor.port)
        try:
            return await asyncio.open_connection(sensor.address, sensor.port, local_addr=(source, 0))
        except OSError as error:
            if error.errno is None:
                raise
            # Only Linux has all of 127.0.0.0/8: elsewhere every actor is 127.0.0.1.
            return await asyncio.open_connection(sensor.address, sensor.port)
