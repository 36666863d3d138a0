"""Hear from the broker, at once, whose connection has ended.

The broker tells its system account of every client that leaves (advisory ``client_disconnect``). Only fleet has a
user there, on a connection of its own: nobody in the installation's account can publish these events.

What the event says of the client is what the client has said of itself, its name above all. So it is a reason to ask
whether a process lives, and no proof that it does not. While this connection is away, nothing is heard, and nobody is
told afterwards: who relies on it has a second way to notice (heartbeats).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nats.aio.msg import Msg

from tocsin.bus.accounts import DISCONNECTIONS
from tocsin.bus.connection import Connection
from tocsin.bus.settings import BusSettings
from tocsin.contracts.errors import InvalidInputError
from tocsin.telemetry import Metrics

MAX_EVENT_BYTES = 16 * 1024
"""The server's own are of about 1 kB; a client's name is in it, and whatever else it says of itself."""
MAIN = "/main"
"""What follows the id's token in the name of a process's main connection."""


def process_of(event: bytes) -> str:
    """Return the name of the process whose main connection has ended, as it called itself; else an empty text.

    Raises:
        InvalidInputError: ``malformed``: no event of this kind.
    """
    try:
        name = json.loads(event)["client"].get("name", "") if len(event) <= MAX_EVENT_BYTES else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidInputError("no event of the broker", reason="malformed") from error
    if not isinstance(name, str):
        raise InvalidInputError("no event of the broker", reason="malformed")
    return name.removesuffix(MAIN) if name.endswith(MAIN) else ""


class Presence:
    """A connection to the broker's system account; made by :meth:`open`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(
        cls,
        settings: BusSettings,
        metrics: Metrics,
        *,
        user: str,
        password_file: Path,
        name: str,
        ended: Callable[[str], None],
    ) -> Presence:
        """Listen; returns once the broker knows of it.

        Args:
            settings: where the broker is.
            metrics: the process's figures.
            user: of the system account.
            password_file: with its password.
            name: of this process.
            ended: is told the token of each process whose main connection has ended; must not block.

        Raises:
            UnavailableError: ``broker_refuses``: it has no such user; ``broker_down``; ``missing_file``.
        """
        own = settings.model_copy(update={"nats_user": user, "nats_token_file": password_file})
        connection = await Connection.open(own, metrics, name=name, label="system")

        async def heard(message: Msg) -> None:
            try:
                process = process_of(message.data)
            except InvalidInputError:
                metrics.count("presence_events_refused")
                return
            if process:
                ended(process)

        await connection.subscribe(DISCONNECTIONS, heard)
        await connection.flush()
        return cls(connection)

    @property
    def listening(self) -> bool:
        """Whether the broker is there now."""
        return self._connection.connected

    async def close(self) -> None:
        """Listen no more."""
        await self._connection.close()
