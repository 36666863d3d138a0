"""A honeypot: a real TCP port with a dialogue behind it, and a record of each connection.

Everything is bounded: connections at a time, of one source and of all (:class:`Admission`), seconds, and bytes that
are read of each. Who is turned away costs one accept and one close: no task, no dialogue, no byte read.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tocsin.agent.roles.dialogues import Dialogue, Login
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import Flow, FlowState
from tocsin.telemetry import get_logger

MAX_CONNECTIONS = 64
"""At a time, of one honeypot; a further one is closed at once and recorded as rejected."""
MAX_TOTAL = 256
"""At a time, of all honeypots that share an admission: a quarter of the usual 1,024 file descriptors."""
MAX_PER_SOURCE = 16
"""At a time, of one source: a scan of seven ports and a few guesses; one source cannot take all the room."""
MAX_SECONDS = 10.0
"""Of a connection. An SSH client waits longer; a guess does not."""
MAX_BYTES = 4096
"""Read of a connection."""
FINISH_S = 1.0
"""How long a client may take to close after the last answer."""
READ_BYTES = 1024
BACKLOG = 128
PAUSE_S = 0.1
"""After a failure to accept: most likely the process has no file descriptor left."""

log = get_logger(__name__)


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


class Admission:
    """Who may come in: the honeypots of one agent share it."""

    def __init__(self, *, max_total: int = MAX_TOTAL, max_per_source: int = MAX_PER_SOURCE) -> None:
        self._max_total = max_total
        self._max_per_source = max_per_source
        self._inside: Counter[str] = Counter()

    def enter(self, source: str) -> bool:
        """Let a connection of ``source`` in, if there is room."""
        if self._inside.total() >= self._max_total or self._inside[source] >= self._max_per_source:
            return False
        self._inside[source] += 1
        return True

    def leave(self, source: str) -> None:
        """Note that a connection that was let in has ended."""
        self._inside[source] -= 1
        if self._inside[source] <= 0:
            del self._inside[source]


class Honeypot:
    """One port that pretends.

    Args:
        imitates: The service.
        dialogue: Makes a connection's dialogue.
        on_visit: Called with each connection when it has ended.
        now_s: Wall clock, seconds since the epoch.
        admission: Shared with other honeypots; by default one of its own.
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
        admission: Admission | None = None,
    ) -> None:
        self.imitates = imitates
        self.port = 0
        self._dialogue = dialogue
        self._on_visit = on_visit
        self._now_s = now_s
        self._max_connections = max_connections
        self._max_seconds = max_seconds
        self._admission = admission or Admission()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[_Connection, tuple[str, int]] = {}
        self._address = ""

    async def open(self, address: str) -> int:
        """Listen on a free port of ``address``; return the port.

        Raises:
            UnavailableError: ``no_port``.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.settimeout(0)
            listener.bind((address, 0))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise UnavailableError(
                f"no port for a honeypot on {address}: {error.strerror}", reason="no_port"
            ) from error
        self._listener, self._address = listener, address
        self.port = listener.getsockname()[1]
        self._run(self._accept(listener))
        return self.port

    async def close(self) -> None:
        """Stop listening and end all connections; those that are open are not recorded."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection, client in list(self._connections.items()):
            self._forget(connection, client)  # its task had not begun
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"honeypot {self.imitates}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("honeypot_failed", imitates=self.imitates, exc_info=error)

    async def _accept(self, listener: socket.socket) -> None:
        # By hand: of a client that is gone already, only accept(2) itself still tells the address.
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("honeypot_cannot_accept", imitates=self.imitates, error=error.strerror)
                await asyncio.sleep(PAUSE_S)
                continue
            client = (peer[0], peer[1])
            if len(self._connections) >= self._max_connections or not self._admission.enter(client[0]):
                accepted.close()
                self._record(client, self._now_s(), Ending.TURNED_AWAY)
                await asyncio.sleep(0)  # those who are inside have their turn, however many knock
                continue
            accepted.settimeout(0)
            connection = _Connection(accepted, self._dialogue())
            self._connections[connection] = client
            self._run(self._serve(connection, client))

    async def _serve(self, connection: _Connection, client: tuple[str, int]) -> None:
        at_s, begun_s = self._now_s(), asyncio.get_running_loop().time()
        try:
            ending = await connection.converse(self._max_seconds)
        finally:
            self._forget(connection, client)
        self._record(client, at_s, ending, asyncio.get_running_loop().time() - begun_s, connection)

    def _forget(self, connection: _Connection, client: tuple[str, int]) -> None:
        self._connections.pop(connection, None)
        self._admission.leave(client[0])
        connection.close()

    def _record(
        self,
        client: tuple[str, int],
        at_s: float,
        ending: Ending,
        duration_s: float = 0.0,
        connection: _Connection | None = None,
    ) -> None:
        self._on_visit(
            Visit(
                at_s=at_s,
                client=client,
                server=(self._address, self.port),
                imitates=self.imitates,
                duration_s=duration_s,
                received_bytes=connection.received_bytes if connection else 0,
                sent_bytes=connection.sent_bytes if connection else 0,
                ending=ending,
                logins=tuple(connection.logins) if connection else (),
            )
        )


class _Connection:
    """One client's conversation with a dialogue."""

    def __init__(self, accepted: socket.socket, dialogue: Dialogue) -> None:
        self._socket = accepted
        self._dialogue = dialogue
        self.received_bytes = 0
        self.sent_bytes = 0
        self.logins: list[Login] = []

    def close(self) -> None:
        """Close the connection, whatever its state."""
        self._socket.close()

    async def converse(self, max_seconds: float) -> Ending:
        """Talk until either side has had enough; return how it ended."""
        try:
            async with asyncio.timeout(max_seconds):
                await self._talk()
        except TimeoutError:
            return Ending.TIMED_OUT
        except OSError:
            return Ending.RESET
        return Ending.CLOSED

    async def _talk(self) -> None:
        await self._say(self._dialogue.greet())
        while self.received_bytes < MAX_BYTES:
            data = await self._hear(min(READ_BYTES, MAX_BYTES - self.received_bytes))
            if not data:
                return
            self.received_bytes += len(data)
            turn = self._dialogue.feed(data)
            self.logins += turn.logins
            await self._say(turn.reply)
            if turn.done:
                await self._finish()
                return

    async def _hear(self, most: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, most)

    async def _say(self, reply: bytes) -> None:
        if reply:
            await asyncio.get_running_loop().sock_sendall(self._socket, reply)
            self.sent_bytes += len(reply)

    async def _finish(self) -> None:
        """Close so that the last answer arrives: a reset would overtake it."""
        self._socket.shutdown(socket.SHUT_WR)
        # Whatever the client still sends is read and dropped, up to what a connection may send.
        left = MAX_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                while left > 0 and (data := await self._hear(READ_BYTES)):
                    left -= len(data)
