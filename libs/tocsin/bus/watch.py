"""Follow a KV bucket: what it holds now, then every change, across reconnections.

What an entry is worth is the business of whoever follows: the broker is not trusted here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tocsin.bus.connection import Connection
from tocsin.contracts.errors import UnavailableError
from tocsin.telemetry import Metrics

RETRY_S = 0.2
WATCH_POLL_S = 0.25
"""How soon a reconnection restarts the watch, which may not have survived it."""


class BucketWatch:
    """Hands every entry of one bucket to ``learn``, in the bucket's order; an entry may come again."""

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        learn: Callable[[str, bytes], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._bucket = bucket
        self._learn = learn
        self._metrics = metrics
        self._complete = asyncio.Event()
        self._restart = asyncio.Event()
        connection.on_reconnect(self._restart.set)

    async def start(
        self, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]], *, timeout_s: float
    ) -> None:
        """Follow the bucket, and return once what it holds now was handed over.

        Raises:
            UnavailableError: ``no_<bucket>``: the broker has no such bucket, nothing has been set up on it.
        """
        spawn(self._follow(), f"watch {self._bucket}")
        try:
            async with asyncio.timeout(timeout_s):
                await self._complete.wait()
        except TimeoutError as error:
            raise UnavailableError(
                f"the broker has no {self._bucket} bucket",
                reason=f"no_{self._bucket}",
                advice="`tocsin up` sets up the streams and buckets",
            ) from error

    async def _follow(self) -> None:
        while True:
            self._restart.clear()
            try:
                await self._watch(await self._connection.js.key_value(self._bucket))
            except (TimeoutError, nats.errors.Error) as error:
                self._metrics.count(f"watch_failures.{self._bucket}.{type(error).__name__}")
                await asyncio.sleep(RETRY_S)

    async def _watch(self, bucket: KeyValue) -> None:
        """Follow until the connection was lost and found."""
        held = (await bucket.status()).values
        watcher = await bucket.watchall()
        try:
            while not self._restart.is_set():
                try:
                    entry = await watcher.updates(timeout=WATCH_POLL_S)  # type: ignore[no-untyped-call]
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                if entry is None:
                    # The client's mark for "that was all" can overtake the entries themselves.
                    if not held:
                        self._complete.set()
                    continue
                if entry.value:
                    await self._learn(entry.key, entry.value)
                if not entry.delta:
                    self._complete.set()
        finally:
            # Must not replace a cancellation: the connection may be closed already.
            with contextlib.suppress(nats.errors.Error):
                await watcher.stop()  # type: ignore[no-untyped-call]
