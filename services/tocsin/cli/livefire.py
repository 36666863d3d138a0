"""The traffic of the live-fire demo: ordinary clients first, then a port scan and a brute-force attempt.

Real TCP connections on loopback, against honeypots that announced themselves, bounded in number and time.
Each actor has a loopback address of its own where the system lets it bind one (Linux: all of 127.0.0.0/8).
Canaries are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tocsin.contracts.observations import SensorReady

CLIENTS = tuple(f"127.0.0.{last}" for last in range(11, 17))
SCANNER = "127.0.0.66"
BRUTE_FORCER = "127.0.0.77"
CONNECT_TIMEOUT_S = 2.0
ORDINARY_CONNECTIONS = 3
"""Of each client."""
LOGIN_ATTEMPTS = 40
CANARY = "canary"
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
        try:
            return await asyncio.open_connection(sensor.address, sensor.port, local_addr=(source, 0))
        except OSError as error:
            if error.errno is None:
                raise
            # Only Linux has all of 127.0.0.0/8: elsewhere every actor is 127.0.0.1.
            return await asyncio.open_connection(sensor.address, sensor.port)
