"""What the docs tell a reader to run is run here, as it stands on the page."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from support import DOMAIN, World

from tocsin.contracts.catalogue import EVENT, EVENT_REFUSAL
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.routing import Refusal

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_blocks(page: str) -> list[str]:
    """Return the Python programs of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


async def test_an_outside_tool_verifies_events_without_our_code(world: World, tmp_path: Path) -> None:
    (program,) = python_blocks("how-to/subscribe-your-own-tool.md")
    assert "tocsin." not in program.replace("tocsin.v1", "")
    (tmp_path / "watch.py").write_text(program)
    (tmp_path / "ca.pem").write_bytes(world.authority.certificate_pem)
    router = await world.service(ServiceName.ROUTER)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "watch.py"),
        world.broker.url,
        str(world.broker.token_file.with_name("reader-token")),
        str(tmp_path / "ca.pem"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(40):
            assert (await process.stderr.readline()).strip() == b"listening"
            body = Refusal(message=bytes(16), agent="sentinel-01", reason="too_fast", detail="d")
            await asyncio.gather(*(router.event(EVENT_REFUSAL, body) for _ in range(5)))
            lines = [await process.stdout.readline() for _ in range(5)]
            assert all(b"event.router.refusal" in line and b"too_fast" in line for line in lines)

            sent = await router.make(EVENT_REFUSAL, body, audience="event")
            forged = bytearray(sent.data)
            forged[len(forged) // 2] ^= 1
            where = EVENT.at(service="router", kind="refusal")
            await router.connection.publish(where, bytes(forged))
            assert b"refused on" in await process.stderr.readline()
            await router.connection.publish(where, b"\xc1 no msgpack")
            assert b"refused on" in await process.stderr.readline()
            late = await world.service(ServiceName.ROUTER, "1")
            await late.event(EVENT_REFUSAL, body)
            assert b"service/router/1" in await process.stdout.readline()

            # A renewal by fleet's authority is believed with the root's own certificate, and never without it.
            now = datetime.now(UTC)
            fleet = world.authority.issue_intermediate("fleet", now=now)
            held = world.credentials(SpiffeId.service(DOMAIN, ServiceName.ROUTER, "2"))
            renewed = fleet.renew(held.chain[0], now=now).chain_der
            other = world.credentials(SpiffeId.service(DOMAIN, ServiceName.ROUTER, "3"))
            for wrong in (renewed[:2], (*renewed[:2], other.chain[0])):
                await router.put_identity(held.id, wrong)
                assert b"refused certificate service.router.2" in await process.stderr.readline()
            again = await world.bus(credentials=replace(held, chain=renewed))
            line = asyncio.ensure_future(process.stdout.readline())
            while not line.done():
                # An event may overtake the certificate, and is refused then.
                await again.event(EVENT_REFUSAL, body)
                await asyncio.wait({line}, timeout=0.5)
            assert b"service/router/2" in line.result()
    finally:
        process.kill()
        await process.wait()
