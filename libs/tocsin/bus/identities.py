"""The ``identities`` bucket, mirrored into the process's trust store.

Every entry is a certificate chain that the store checks against the root, so the bucket need not be
trusted: who can write to it can at worst withhold an identity. An entry that does not hold is counted and
skipped.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nats.errors

from tocsin.bus.connection import Connection, translate
from tocsin.bus.credentials import decode_chain, encode_chain
from tocsin.bus.watch import BucketWatch
from tocsin.contracts.catalogue import IDENTITIES
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import TrustStore
from tocsin.telemetry import Metrics, get_logger

MAX_KNOWN = 65_536
"""Chains remembered as learned, 32 bytes each."""

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
        self._known: set[bytes] = set()

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
        watch = BucketWatch(self._connection, IDENTITIES, self._learn, self._metrics)
        await watch.start(spawn, timeout_s=timeout_s)

    async def _learn(self, key: str, value: bytes) -> None:
        digest = hashlib.sha256(value).digest()
        if digest in self._known:
            # After a reconnection all entries come again, and anybody can write them again: neither may cost
            # signatures, nor wake whatever waits for a certificate.
            return
        try:
            chain = decode_chain(value)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._trust.add_chain, chain)
        except TocsinError as error:
            self._metrics.count(f"rejected.{error.reason}")
            log.warning("identity_refused", token=key, reason=error.reason)
        else:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known.add(digest)
            self._on_learned()
