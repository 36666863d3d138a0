"""A honeypot: a real TCP port with a dialogue behind it, and a record of each connection.

Everything is bounded: connections at a time, seconds, and bytes that are read of each. Credentials that are
tried are never kept: :func:`fingerprint` leaves a salted hash, by which only repetition shows.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from tocsin.agent.roles.dialogues import Dialogue, Login
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import Flow, FlowState

MAX_CONNECTIONS = 64
"""At a time, of one honeypot; a further one is closed at once and recorded as rejected."""
MAX_SECONDS = 10.0
"""Of a connection. An SSH client waits longer; a guess does not."""
MAX_BYTES = 4096
"""Read of a connection."""
FINISH_S = 1.0
"""How long a client may take to close after the last answer."""
READ_BYTES = 1024
BACKLOG = 128


class Ending(StrEnum):
    """How a connection ended."""

    CLOSED = "closed"
    """Either side closed it in good order."""
    RESET = "reset"
    """The client reset it."""
    TIMED_OUT = "timed_out"
    TURNED_AWAY = "turned_away"
    """There were too many."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One connection to a honeypot, as it was seen."""

    at_s: float
    client: tuple[str, int]
    server: tuple[str, int]
    imitates: str
    duration_s: float
    received_bytes: int
    """From the client."""
    sent_bytes: int
    ending: Ending
    logins: tuple[Login, ...] = ()


def flow_of(visit: Visit) -> Flow:
    """Return the connection record of a visit.

    State, in this order: REJECTED if the honeypot turned it away. UNANSWERED if the client never said a word,
    however it ended: a honeypot has no ordinary clients, and a connection that is opened and dropped leaves
    the greeting unanswered; that is how a connect scan of an open port looks from here, and the scan rule
    counts it as a contact that failed. RESET if the client spoke and then reset; else ESTABLISHED. A login
    that failed is part of its connection: guessing shows as many short connections to one login service.
    """
    if visit.ending is Ending.TURNED_AWAY:
        state = FlowState.REJECTED
    elif visit.received_bytes == 0:
        state = FlowState.UNANSWERED
    else:
        state = FlowState.RESET if visit.ending is Ending.RESET else FlowState.ESTABLISHED
    return Flow(
        at_s=visit.at_s,
        source=visit.client[0],
        source_port=visit.client[1],
        destination=visit.server[0],
        destination_port=visit.server[1],
        protocol="tcp",
        service=visit.imitates,
        duration_s=visit.duration_s,
        bytes_sent=visit.received_bytes,
        bytes_received=visit.sent_bytes,
        state=state,
    )


def fingerprint(value: bytes, salt: bytes) -> str:
    """Return 16 hex digits of a keyed hash: equal for equal values under one salt, and nothing more."""
    return hashlib.blake2b(value, key=salt, digest_size=8).hexdigest()


class Honeypot:
    """One port that pretends.

    Args:
        imitates: The service.
        dialogue: Makes a connection's dialogue.
        on_visit: Called with each connection when it has ended.
        now_s: Wall clock, seconds since the epoch.
    """

    def __init__(
        self,
        imitates: str,
        dialogue: Callable[[], Dialogue],
        on_visit: Callable[[Visit], None],
        *,
        now_s: Callable[[], float],
        max_connections: int = MAX_CONNECTIONS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        self.imitates = imitates
        self.port = 0
        self._dialogue = dialogue
        self._on_visit = on_visit
        self._now_s = now_s
        self._max_connections = max_connections
        self._max_seconds = max_seconds
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._address = ""

    async def open(self, address: str) -> int:
        """Listen on a free port of ``address``; return the port."""
        try:
            self._server = await asyncio.start_server(self._serve, address, 0, limit=MAX_BYTES, backlog=BACKLOG)
        except OSError as error:
            raise UnavailableError(
                f"no port for a honeypot on {address}: {error.strerror}", reason="no_port"
            ) from error
        self._address = address
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._server is None:
            return
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task
        self._serving.add(task)
        connection = _Connection(reader, writer, self._dialogue())
        try:
            if len(self._serving) > self._max_connections:
                connection.ending = Ending.TURNED_AWAY
            await self._record(connection)
        except asyncio.CancelledError:
            # Ends here and not in asyncio's own callback, which would call it an error: we are closing.
            connection.ending = Ending.TURNED_AWAY
        finally:
            self._serving.discard(task)
            if connection.ending is Ending.CLOSED:
                writer.close()
            else:
                writer.transport.abort()  # it takes nothing more: do not wait until it does

    async def _record(self, connection: _Connection) -> None:
        at_s, begun_s = self._now_s(), asyncio.get_running_loop().time()
        client = connection.client
        if client is None:
            return  # gone before it could be asked who it is
        try:
            async with asyncio.timeout(self._max_seconds):
                await connection.converse()
        except TimeoutError:
            connection.ending = Ending.TIMED_OUT
        except OSError:
            connection.ending = Ending.RESET
        self._on_visit(
            Visit(
                at_s=at_s,
                client=client,
                server=(self._address, self.port),
                imitates=self.imitates,
                duration_s=asyncio.get_running_loop().time() - begun_s,
                received_bytes=connection.received_bytes,
                sent_bytes=connection.sent_bytes,
                ending=connection.ending,
                logins=tuple(connection.logins),
            )
        )


class _Connection:
    """One client's conversation with a dialogue."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialogue: Dialogue) -> None:
        self._reader = reader
        self._writer = writer
        self._dialogue = dialogue
        self.ending = Ending.CLOSED
        self.received_bytes = 0
        self.sent_bytes = 0
        self.logins: list[Login] = []
        peer = writer.get_extra_info("peername")
        self.client: tuple[str, int] | None = (peer[0], peer[1]) if peer else None

    async def converse(self) -> None:
        """Talk until either side has had enough."""
        if self.ending is Ending.TURNED_AWAY:
            return
        await self._say(self._dialogue.greet())
        while self.received_bytes < MAX_BYTES:
            data = await self._reader.read(min(READ_BYTES, MAX_BYTES - self.received_bytes))
            if not data:
                return
            self.received_bytes += len(data)
            turn = self._dialogue.feed(data)
            self.logins += turn.logins
            await self._say(turn.reply)
            if turn.done:
                await self._finish()
                return

    async def _say(self, reply: bytes) -> None:
        if reply:
            self._writer.write(reply)
            self.sent_bytes += len(reply)
            await self._writer.drain()

    async def _finish(self) -> None:
        """Close so that the last answer arrives: a reset would overtake it."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        # Whatever the client still sends is read and dropped, up to what a connection may send.
        left = MAX_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                while left > 0 and (data := await self._reader.read(READ_BYTES)):
                    left -= len(data)
