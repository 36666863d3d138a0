"""The ``identities`` bucket, mirrored into the process's trust store.

Every entry is a certificate chain that the store checks against the root, so the bucket need not be
trusted: who can write to it can at worst withhold an identity. An entry that does not hold is counted and
skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tocsin.bus.connection import Connection, translate
from tocsin.bus.credentials import decode_chain, encode_chain
from tocsin.contracts.catalogue import IDENTITIES
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import TrustStore
from tocsin.telemetry import Metrics, get_logger

RETRY_S = 0.2
WATCH_POLL_S = 0.25
"""How soon a reconnection restarts the watch, which may not have survived it."""

log = get_logger(__name__)


class IdentityDirectory:
    """Publishes this process's chain and follows everyone else's."""

    def __init__(
        self,
        connection: Connection,
        trust: TrustStore,
        metrics: Metrics,
        threads: ThreadPoolExecutor,
        *,
        on_learned: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._trust = trust
        self._on_learned = on_learned
        self._metrics = metrics
        self._threads = threads
        self._complete = asyncio.Event()
        self._restart = asyncio.Event()
        connection.on_reconnect(self._restart.set)

    async def publish(self, spiffe_id: SpiffeId, chain: tuple[bytes, ...]) -> None:
        """Write a chain under its owner's token."""
        try:
            bucket = await self._connection.js.key_value(IDENTITIES)
            await bucket.put(spiffe_id.token, encode_chain(chain))
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, "identities") from error

    async def start(
        self, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]], *, timeout_s: float
    ) -> None:
        """Follow the bucket, and return once what it holds now is known.

        Raises:
            UnavailableError: ``no_identities``: the broker has no such bucket, nothing has been set up on it.
        """
        spawn(self._follow(), "identities")
        try:
            async with asyncio.timeout(timeout_s):
                await self._complete.wait()
        except TimeoutError as error:
            raise UnavailableError(
                "the broker has no identities bucket",
                reason="no_identities",
                advice="`tocsin up` and the fleet service set up the streams and buckets",
            ) from error

    async def _follow(self) -> None:
        while True:
            self._restart.clear()
            try:
                bucket = await self._connection.js.key_value(IDENTITIES)
                await self._watch(bucket)
            except (TimeoutError, nats.errors.Error) as error:
                self._metrics.count(f"identity_watch_failures.{type(error).__name__}")
                await asyncio.sleep(RETRY_S)

    async def _watch(self, bucket: KeyValue) -> None:
        """Follow until the connection was lost and found."""
        watcher = await bucket.watchall()
        try:
            while not self._restart.is_set():
                try:
                    entry = await watcher.updates(timeout=WATCH_POLL_S)  # type: ignore[no-untyped-call]
                except (TimeoutError, nats.errors.TimeoutError):
                    continue
                if entry is None:
                    self._complete.set()
                elif entry.value:
                    await self._learn(entry.key, entry.value)
        finally:
            # Must not replace a cancellation: the connection may be closed already.
            with contextlib.suppress(nats.errors.Error):
                await watcher.stop()  # type: ignore[no-untyped-call]

    async def _learn(self, key: str, value: bytes) -> None:
        try:
            chain = decode_chain(value)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._trust.add_chain, chain)
        except TocsinError as error:
            self._metrics.count(f"rejected.{error.reason}")
            log.warning("identity_refused", token=key, reason=error.reason)
        else:
            self._on_learned()
