"""The bus: the one way in and out of a process.

    async with Bus(settings, credentials, metrics) as bus:
        await bus.event(EVENT_STAGE, stage)
        placement = await bus.request(BALANCER_PLACE, operation, timeout_s=0.5)
        await bus.subscribe(HEARTBEAT, self.on_heartbeat)

What goes out is a model made into an envelope by the batch signer; what comes in has passed all twelve
steps of :mod:`tocsin.bus.opener` before a handler sees it. Rejections are counted and audited, with their
reason and never their body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from tocsin.bus import certificates
from tocsin.bus.connection import Connection
from tocsin.bus.credentials import Credentials
from tocsin.bus.ending import end_tasks
from tocsin.bus.identities import IdentityDirectory
from tocsin.bus.receiving import Receiving
from tocsin.bus.records import Records
from tocsin.bus.renewal import CertificateKeeper
from tocsin.bus.requests import Replies
from tocsin.bus.revocations import RevocationFollower
from tocsin.bus.settings import BusSettings
from tocsin.bus.standings import Standings
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import AUDIT, AUDIT_REJECTED, METRICS, METRICS_TYPE
from tocsin.contracts.errors import TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import Kind, SpiffeId
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.contracts.subjects import Bucket
from tocsin.crypto import LocalKey
from tocsin.telemetry import Metrics, get_logger

M = TypeVar("M", bound=Message)

ENDING_POLL_S = 0.005
"""How often a bus that ends looks whether what was queued has gone out."""

log = get_logger(__name__)


class Bus(Receiving):
    """One process's bus. Use with ``async with``; the constructor does not connect."""

    def __init__(self, settings: BusSettings, credentials: Credentials, metrics: Metrics) -> None:
        super().__init__(settings, credentials, metrics)
        self.revocations = RevocationFollower(self, self._revoked)
        self.standings = Standings(self)
        """Who is quarantined; empty until the process follows it."""
        self._directory: IdentityDirectory | None = None
        self._on_identities: list[Callable[[], Coroutine[Any, Any, None]]] = []

    async def __aenter__(self) -> Self:
        connection = await Connection.open(self.settings, self.metrics, name=self.id.token)
        self._connection = connection
        try:
            for signer in {id(s): s for s in self._all_signers()}.values():
                self.spawn(signer.run(), "signer")
            self.spawn(self._prover.run(), "prover")
            self.spawn(self._outbox.run(connection), "outbox")
            self._replies = Replies(connection, self.opener, self._threads, self.id, reject=self.reject)
            await self._replies.start()
            self._directory = IdentityDirectory(
                connection, self.trust, self.metrics, self._threads, on_learned=self._identities_changed
            )
            if self.credentials.chain:
                self.trust.add_chain(self.credentials.chain)
            await self._directory.start(self.spawn, timeout_s=self.settings.connect_timeout_s)
            if self.credentials.chain:
                # What the bucket has may be a renewal that this process could not write down.
                self.adopt_latest()
                await self._directory.publish(self.id, self.credentials.chain)
            await self.revocations.start()
            # A revoked authority's renewal gives way to what the root itself has certified.
            self.adopt_latest()
            self.require_not_revoked(self.id, self.credentials.key)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        if self.credentials.chain:
            self.start_reporting()
        if self.credentials.source is not None and self.id.kind is Kind.SERVICE:
            keeper = CertificateKeeper(self, self.credentials.source)
            self.spawn(keeper.run(), "certificate")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for consumer in self._consumers:
            await consumer.stop()
        try:
            async with asyncio.timeout(5.0):
                await self._end_subscriptions()
                for intake in self._intakes:
                    await intake.idle()
                while self._outbox or any(signer.unsigned for signer in self._all_signers()):  # noqa: ASYNC110
                    await asyncio.sleep(ENDING_POLL_S)
        except TimeoutError:
            self.metrics.count("intake_abandoned")
        for connection in (self._second, self._connection):
            if connection is not None:
                await connection.close()
        if abandoned := await end_tasks(self._tasks):
            log.error("tasks_abandoned", tasks=[task.get_name() for task in abandoned])
        for signer in self._all_signers():
            signer.close()
        if self._agents_threads is not None:
            self._agents_threads.close()
        self._prover.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def start_reporting(self) -> None:
        """Begin to publish figures and rejections: once this process has an identity."""
        self.spawn(self._report(), "report")

    @property
    def certified(self) -> bool:
        """Whether this process has a certificate that is valid now: else nobody believes it."""
        identity = self.trust.identity(self.credentials.key.signer.key_id)
        return identity is not None and identity.valid_at(time.time_ns())

    def require_not_revoked(self, spiffe_id: SpiffeId, key: LocalKey) -> None:
        """Check that a key of this process's own still counts: with a revoked one nobody would believe it.

        Raises:
            UntrustedError: ``revoked``.
        """
        if self.trust.is_revoked(key.signer.key_id):
            raise UntrustedError(
                f"the key of {spiffe_id} was revoked",
                reason="revoked",
                advice="give it a new key: docs/how-to/revoke-a-key.md",
            )

    def adopt_latest(self) -> None:
        """Take the latest chain that is known of the own key as this process's own."""
        identity = self.trust.identity(self.credentials.key.signer.key_id)
        if identity is not None and identity.chain != self.credentials.chain:
            self.credentials = replace(self.credentials, chain=identity.chain)

    # --- State --------------------------------------------------------------------------------

    def records(self, bucket: Bucket[M], *, sender: SpiffeId | None = None) -> Records[M]:
        """Return the signed records of a bucket, written by the process or by one of its agents."""
        return Records(self, bucket, sender=sender)

    def on_identities(self, again: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call ``again`` whenever a certificate has become known: for whoever keeps what waits for one."""
        self._on_identities.append(again)

    async def put_identity(self, spiffe_id: SpiffeId, chain: tuple[bytes, ...]) -> None:
        """Make a certificate chain known to everyone."""
        if self._directory is None:
            raise UnavailableError("the bus is not open", reason="not_open")
        await self._directory.publish(spiffe_id, chain)

    async def put_certificate(self, name: str, data: bytes) -> None:
        """Keep a decision's certificate in the object store."""
        await certificates.put(self.connection.js, name, data)

    async def get_certificate(self, name: str) -> bytes:
        """Fetch a decision's certificate; whoever acts on it verifies it. See :func:`certificates.get`."""
        return await certificates.get(self.connection.js, name)

    # --- Inside -------------------------------------------------------------------------------

    def _identities_changed(self) -> None:
        for intake in self._intakes:
            intake.identities_changed()
        if self._replies is not None:
            self.spawn(self._replies.identities_changed(), "identities changed")
        for again in self._on_identities:
            self.spawn(again(), "identities changed")

    async def _snapshot(self) -> MetricsSnapshot:
        """Return the figures, with what the backend itself counts: full signatures and verifications."""
        snapshot = await asyncio.to_thread(self.metrics.snapshot, self.id.token)
        counted = self.backend.counters
        full = {"full_signatures": counted.signatures, "full_verifications": counted.verifications}
        return snapshot.model_copy(update={"counters": snapshot.counters | full})

    async def _report(self) -> None:
        """Publish this process's figures and what it rejected, again and again."""
        process = self.id.token.replace(".", "-")
        while True:
            await asyncio.sleep(self.settings.metrics_interval_s)
            try:
                await self.publish(METRICS, METRICS_TYPE, await self._snapshot(), at={"process": process})
                for rejected in self._rejections.sums(self.id.token):
                    await self.publish(AUDIT, AUDIT_REJECTED, rejected, at={"kind": "rejected"})
                    self._rejections.told(rejected)
            except TocsinError as error:
                self.metrics.count(f"report_failures.{error.reason}")
