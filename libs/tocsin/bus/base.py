"""What every part of the bus stands on: this process's identity, its keys, its connections, its tasks."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tocsin.bus.audit import RejectionLog
from tocsin.bus.connection import Connection
from tocsin.bus.credentials import Credentials
from tocsin.bus.intake import Reject
from tocsin.bus.opener import Opener
from tocsin.bus.revocations import NS_PER_S, RevocationBook
from tocsin.bus.settings import BusSettings
from tocsin.bus.signing import BatchSigner, SigningThreads
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import LocalKey, TrustStore, select_backend
from tocsin.telemetry import Metrics, get_logger

MAX_SIGNING_THREADS = 8
"""Most threads that sign for a process's agents with keys of their own."""

log = get_logger(__name__)


class BusBase:
    """A process on the bus, that neither sends nor receives yet."""

    def __init__(self, settings: BusSettings, credentials: Credentials, metrics: Metrics) -> None:
        self.settings = settings
        self.credentials = credentials
        self.metrics = metrics
        self.id = credentials.id
        self.backend = select_backend(settings.signature_backend)
        self.trust = TrustStore(credentials.root_pem, self.backend)
        started_ns = time.time_ns()
        self._revoked = RevocationBook(
            max_age_ns=int(settings.revocations_max_age_s * NS_PER_S), started_ns=started_ns
        )
        self.opener = Opener(self.trust, self.backend, started_ns=started_ns, revocations=self._revoked)
        self._threads = ThreadPoolExecutor(settings.verify_threads, thread_name_prefix="verify-other")
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._second: Connection | None = None
        self._signers: dict[str, BatchSigner] = {}
        self._agents_threads: SigningThreads | None = None
        self._main_signer = self.add_key(credentials.key, ())
        self._rejections = RejectionLog(metrics)
        self._on_reject: list[Reject] = []

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task for as long as the bus; a task that fails is logged, never silent."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.metrics.count("task_failures")
                log.error("task_failed", task=task.get_name(), exc_info=error)

        task.add_done_callback(ended)
        return task

    @property
    def connection(self) -> Connection:
        """The main connection."""
        if self._connection is None:
            raise UnavailableError("the bus is not open", reason="not_open")
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether the broker is there now, on every connection that this process has."""
        if self._connection is None or not self._connection.connected:
            return False
        return self._second is None or self._second.connected

    async def _second_connection(self) -> Connection:
        if self._second is None:
            self._second = await Connection.open(
                self.settings, self.metrics, name=self.id.token, label="second"
            )
        return self._second

    async def flush(self) -> None:
        """Wait until the broker has seen everything sent so far, subscriptions included."""
        await self.connection.flush()

    def add_key(self, key: LocalKey, ids: tuple[SpiffeId, ...]) -> BatchSigner:
        """Let this process sign as ``ids`` with ``key`` (an agent with a key of its own)."""
        if ids and self._agents_threads is None:
            # Some for all of them: a thread for each of a thousand keys is a thousand threads.
            self._agents_threads = SigningThreads(min(MAX_SIGNING_THREADS, os.cpu_count() or 1))
        signer = BatchSigner(key.signer, self.metrics, threads=self._agents_threads if ids else None)
        for spiffe_id in ids:
            self._signers[str(spiffe_id)] = signer
        if self._connection is not None:
            self.spawn(signer.run(), "signer")
        return signer

    def _all_signers(self) -> list[BatchSigner]:
        return [self._main_signer, *self._signers.values()]

    def reject(self, error: TocsinError, subject: str, data: bytes) -> None:
        """Count and audit an envelope that was refused."""
        self._rejections.add(error, subject, data)
        for told in self._on_reject:
            told(error, subject, data)

    def on_reject(self, told: Reject) -> None:
        """Call ``told`` with every envelope that is refused: its error, subject and bytes, nothing verified."""
        self._on_reject.append(told)
