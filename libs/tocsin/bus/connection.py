"""One connection to the broker: what survives, what is bounded, and the errors that come out.

It reconnects for ever, with jitter; nothing that a callback does can end that (an exception in
``disconnected_cb`` would, nats.py issue 204: ours only count). The client buffers at most 8 MB while it is
away; beyond that a sender is told :class:`ExhaustedError`. Only this package imports the NATS client.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import urlsplit

import nats
import nats.errors
import nats.protocol.parser
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from tocsin.bus.credentials import read
from tocsin.bus.settings import BusSettings
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, TocsinError, UnavailableError
from tocsin.telemetry import Metrics, get_logger

PENDING_BYTES = 8 * 1024 * 1024
"""Bytes that wait for the broker to come back."""
SUBSCRIPTION_MESSAGES = 65_536
SUBSCRIPTION_BYTES = 64 * 1024 * 1024
"""A subscription's line; a message beyond it is dropped by the client and counted as a slow consumer."""
JETSTREAM_TIMEOUT_S = 5.0
PING_INTERVAL_S = 5
MAX_PINGS_UNANSWERED = 2
"""A broker that is silent for three such intervals counts as lost, whatever its socket says."""
MAX_STORING = 256
"""Publications into one stream that wait for their acknowledgement: beyond 10,000 of all clients together the server
refuses (429), and more than this many at once only wait longer."""
SAY_AGAIN_S = 1.0
"""Pause between two lines of the log about the same kind of error: a slow consumer makes one for each message."""

# The client's parser splits a control line at any white space, the broker at spaces and tabs only. With its own
# patterns a vertical tab in a subject ends the connection, or moves the message to another subscription.
nats.protocol.parser.MSG_RE = re.compile(
    rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n"
)
nats.protocol.parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
)


async def wait_for_socket(url: str, *, timeout_s: float) -> None:
    """Wait until something listens: a refused first connection would cost the client two seconds.

    Raises:
        UnavailableError: ``broker_down``.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 4222
    except ValueError:
        host, port = None, 0
    if host is None:
        raise InvalidInputError(f"{url!r} is no broker's address", reason="bad_address")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with asyncio.timeout(2.0):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
        except (OSError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"no broker at {host}:{port} within {timeout_s:g} s",
                    reason="broker_down",
                    advice="start one with `tocsin up`, or set TOCSIN_NATS_URL",
                ) from error
            await asyncio.sleep(0.02)
        else:
            return


def translate(error: Exception, what: str) -> TocsinError:
    """Turn the client's exception into ours."""
    if isinstance(error, nats.errors.OutboundBufferLimitError):
        return ExhaustedError(f"{what}: the broker is away and the buffer is full", reason="buffer_full")
    if isinstance(error, nats.errors.MaxPayloadError):
        return InvalidInputError(f"{what}: larger than the broker's maximum payload", reason="too_large")
    return UnavailableError(f"{what}: {type(error).__name__} {error}"[:300], reason="broker_unavailable")


log = get_logger(__name__)

Taker: TypeAlias = Callable[[bytes, str, str], None]
"""Takes a message's data, subject and reply subject, at once: it bounds what it keeps, and does not wait."""


class _Client(Client):
    """The client, made to outlive a message that it cannot read, and to hand messages on at once.

    A subscription with a taker has neither the client's own queue nor its task: they cost as much as a message's
    way through the rest of the client, and the bus has a bounded line of its own.

    A subject that is no UTF-8, or a header of eight bytes, raises inside the client's read loop and ends it
    while the connection looks alive (nats.py 2.16, ``_read_loop``): one publication would silence every
    subscriber. Here such a message is counted and dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.takers: dict[int, Taker] = {}

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            taker = self.takers.get(sid)
            if taker is None:
                await super()._process_msg(sid, subject, reply, data, headers)
            elif (subscription := self._subs.get(sid)) is None:
                del self.takers[sid]
            else:
                subscription._received += 1  # noqa: SLF001 - as the client counts
                taker(data, subject.decode(), reply.decode())
        except Exception as error:  # noqa: BLE001 - whatever it is, the next message must be read
            await self._error_cb(error)


class Connection:
    """A NATS connection with JetStream. Make it with :meth:`open`."""

    def __init__(self, client: _Client, metrics: Metrics, label: str) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream(timeout=JETSTREAM_TIMEOUT_S, publish_async_max_pending=256)
        self._metrics = metrics
        self._label = label
        self._on_reconnect: list[Callable[[], None]] = []
        self._said_s: dict[str, float] = {}
        self._storing: dict[str, asyncio.Semaphore] = {}

    @classmethod
    async def open(
        cls, settings: BusSettings, metrics: Metrics, *, name: str, label: str = "main"
    ) -> Connection:
        """Connect.

        Raises:
            UnavailableError: the broker does not listen or refuses the credentials.
        """
        await wait_for_socket(settings.nats_url, timeout_s=settings.connect_timeout_s)
        client = _Client()
        connection = cls(client, metrics, label)
        secret = read(settings.nats_token_file).decode().strip() if settings.nats_token_file else None
        user = (settings.nats_user or None) if secret else None

        refusals: list[Exception] = []
        opener = asyncio.current_task()

        async def on_error(error: Exception) -> None:
            connection._note(error)
            if opener is not None and opener is asyncio.current_task() and opener.cancelling():
                # Before Python 3.12 wait_for loses a cancellation that comes as the attempt fails, and the client
                # would try for ever.
                raise asyncio.CancelledError
            if "authorization" in str(error).lower():  # the client has a class for it and does not use it here
                refusals[:] = [error]

        async def on_disconnect() -> None:
            metrics.count("broker_disconnects")

        async def on_reconnect() -> None:
            metrics.count("broker_reconnects")
            for callback in connection._on_reconnect:
                try:
                    callback()
                except Exception as error:  # noqa: BLE001 - or the client would stop in the midst of reconnecting
                    connection._note(error)

        try:
            # To try for ever is right for a connection that stood: the first one has a deadline.
            async with asyncio.timeout(settings.connect_timeout_s):
                await client.connect(
                    settings.nats_url,
                    name=f"{name}/{label}",
                    user=user,
                    password=secret if user else None,
                    token=None if user else secret,
                    error_cb=on_error,
                    disconnected_cb=on_disconnect,
                    reconnected_cb=on_reconnect,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=random.uniform(0.1, 0.5),  # type: ignore[arg-type]  # noqa: S311 - jitter
                    connect_timeout=5,
                    ping_interval=PING_INTERVAL_S,
                    max_outstanding_pings=MAX_PINGS_UNANSWERED,
                    pending_size=PENDING_BYTES,
                    drain_timeout=5,
                )
        except (TimeoutError, nats.errors.Error, OSError) as error:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.close()
            if refusals:
                raise UnavailableError(
                    "the broker refuses the credentials",
                    reason="broker_refuses",
                    advice="are TOCSIN_NATS_USER and TOCSIN_NATS_TOKEN_FILE an account of this broker?",
                ) from error
            raise translate(error, "connecting") from error
        return connection

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after each reconnection; it must not block. What it raises is counted."""
        self._on_reconnect.append(callback)

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self.client.is_connected

    async def publish(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Publish bytes that are an envelope already."""
        try:
            await self.client.publish(subject, data, reply=reply)
        except (nats.errors.Error, ValueError) as error:
            raise translate(error, subject) from error

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Subscribe; a callback that waits holds its own subscription back and no other."""
        try:
            return await self.client.subscribe(
                subject,
                queue=queue,
                cb=callback,
                pending_msgs_limit=SUBSCRIPTION_MESSAGES,
                pending_bytes_limit=SUBSCRIPTION_BYTES,
            )
        except nats.errors.Error as error:
            raise translate(error, subject) from error

    async def take(self, subject: str, taker: Taker, *, queue: str = "") -> Subscription:
        """Subscribe with what takes every message at once, in the client's read loop; headers are not read."""

        async def early(message: Msg) -> None:
            taker(message.data, message.subject, message.reply)

        subscription = await self.subscribe(subject, early, queue=queue)
        self.client.takers[subscription._id] = taker  # noqa: SLF001 - the client has no public name for it
        return subscription

    def storing(self, stream: str) -> asyncio.Semaphore:
        """Return what is to be held while this stream's acknowledgement is waited for."""
        return self._storing.setdefault(stream, asyncio.Semaphore(MAX_STORING))

    def _note(self, error: Exception) -> None:
        """Count an error of the client or of a callback; say it, but not a thousand times a second."""
        kind = type(error).__name__
        self._metrics.count(f"broker_errors.{kind}")
        now_s = time.monotonic()
        if now_s - self._said_s.get(kind, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[kind] = now_s
            log.warning("broker_error", kind=kind, connection=self._label, detail=str(error)[:300])

    async def flush(self) -> None:
        """Wait until the broker has seen everything sent so far, subscriptions included."""
        try:
            await self.client.flush(timeout=5)
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, "flush") from error

    async def close(self) -> None:
        """Drain: no new messages, those that came are handled, what was published is flushed."""
        if self.client.is_closed:
            return
        try:
            if self.client.is_connected:
                async with asyncio.timeout(5.0):
                    await self.client.drain()
            else:
                await self.client.close()
        except (TimeoutError, nats.errors.Error, OSError, RuntimeError):
            # RuntimeError: uvloop's, when what is still to be written has a transport that the broker's end closed.
            self._metrics.count("broker_errors.drain")
            with contextlib.suppress(
                nats.errors.Error, OSError, RuntimeError
            ):  # what is left of it broke meanwhile
                await self.client.close()
