"""What the docs tell a reader to run is run here, as it stands on the page."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from support import World

from tocsin.contracts.catalogue import EVENT, EVENT_REFUSAL
from tocsin.contracts.identifiers import ServiceName
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
        async with asyncio.timeout(20):
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
    finally:
        process.kill()
        await process.wait()
