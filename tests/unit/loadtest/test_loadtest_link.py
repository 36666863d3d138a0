"""A link that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from _link import Link


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def connect(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(link.url).port)


async def says(link: Link, data: bytes) -> bytes:
    """Return what comes back over a new connection; nothing if it is not let through."""
    reader, writer = await connect(link)
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read(100)
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def test_a_cut_breaks_what_is_open_and_lets_nothing_through_until_it_is_healed(echo_port: int) -> None:
    async with Link(echo_port) as link:
        assert await says(link, b"before") == b"before"
        reader, writer = await connect(link)
        writer.write(b"still")
        assert await reader.read(100) == b"still"
        link.cut()
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read(100) == b""
        writer.transport.abort()
        assert await says(link, b"meanwhile") == b""
        link.heal()
        assert await says(link, b"after") == b"after"
