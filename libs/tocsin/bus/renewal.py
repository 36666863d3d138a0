"""A service's certificate, kept fresh for as long as the service runs.

The root certifies a service once; at half of the certificate's life the service asks fleet for a longer one, which
fleet's intermediate may give for exactly this key, id and generation (:func:`tocsin.crypto.certificates.renews`). It
asks sooner when that intermediate has a successor. What comes is checked against the root here, made known to
everyone, and written beside the key. Where that folder is read-only, as in containers, the bucket ``identities``
keeps it: a process that starts takes the latest chain of its own key from there (:meth:`Bus.adopt_latest`).

A chain that `tocsin init` has written meanwhile is taken up from the file, so nothing is started again for it.

Does not protect a service that was down for the whole rest of its certificate's life: the root has to certify it
again, as nobody renews what has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tocsin.bus.credentials import Credentials
from tocsin.contracts.catalogue import FLEET_RENEW
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import RenewRequest
from tocsin.crypto import Identity
from tocsin.telemetry import get_logger

if TYPE_CHECKING:
    from tocsin.bus.client import Bus

POLL_S = 1.0
"""How often it is looked whether anything is due: a look costs a stat of one file."""
TIMEOUT_S = 5.0
RETRY_SHARE = 0.02
"""Share of a certificate's life after which a renewal that failed is tried again."""
SPREAD = 0.05
"""Renewals are spread over this share of a life, so that processes which started together do not ask together."""
SUCCESSION_SPREAD_S = 5.0
"""Over how many seconds the renewals are spread that a new authority calls for."""
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


def due_ns(identity: Identity, *, chance: float) -> int:
    """Return when a certificate is to be renewed, in nanoseconds since the epoch: at half of its life, or a bit later.

    Args:
        identity: what the certificate says.
        chance: 0 to 1, drawn once a process.
    """
    life_ns = identity.not_after_ns - identity.issued_ns
    return identity.issued_ns + round(life_ns * (0.5 + SPREAD * chance))


def retry_s(identity: Identity) -> float:
    """Return the pause before a renewal that failed is tried again, in seconds."""
    return max(POLL_S, (identity.not_after_ns - identity.issued_ns) / NS_PER_S * RETRY_SHARE)


class CertificateKeeper:
    """Renews the certificate of one service's bus. Use as a task: :meth:`run` until cancelled.

    Args:
        bus: the service's.
        source: folder and base name of its credentials, as :meth:`Credentials.load` was given them.
    """

    def __init__(self, bus: Bus, source: tuple[Path, str]) -> None:
        self._bus = bus
        self._folder, self._name = source
        self._chance = random.random()  # noqa: S311 - jitter
        self._changed_ns = self._file_changed_ns()
        self._not_before = 0.0

    async def run(self) -> None:
        """Look again and again; a fleet that is away is no failure while the certificate lasts."""
        while True:
            try:
                await self.look()
            except TocsinError as error:
                self._bus.metrics.count(f"renewal_failures.{error.reason}")
                log.warning("renewal_failed", key=self._name, reason=error.reason, detail=str(error))
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Take up a chain that was written meanwhile, and renew if it is time.

        Raises:
            TocsinError: the file does not hold, or fleet does not renew; what is held stays in force.
        """
        changed_ns = await asyncio.to_thread(self._file_changed_ns)
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns
            bus = self._bus
            written = await asyncio.to_thread(
                Credentials.load, self._folder, bus.credentials.id, self._name, bus.backend
            )
            await self._take(written.chain)
        identity = self._bus.trust.identity(self._bus.credentials.key.signer.key_id)
        if identity is None or not self._is_due(identity) or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + retry_s(identity)
        if self._bus.trust.is_superseded(identity.key_id):
            await asyncio.sleep(SUCCESSION_SPREAD_S * self._chance)
        answer = await self._bus.request(FLEET_RENEW, RenewRequest(), timeout_s=TIMEOUT_S)
        await self._take(answer.chain)
        await asyncio.to_thread(self._keep)
        self._bus.metrics.count("certificates_renewed")
        log.info("certificate_renewed", key=self._name)

    def _is_due(self, identity: Identity) -> bool:
        if self._bus.trust.is_superseded(identity.key_id):
            return True
        return time.time_ns() >= due_ns(identity, chance=self._chance)

    async def _take(self, chain: tuple[bytes, ...]) -> None:
        """Make a chain this process's own; one that is older than what is held changes nothing."""
        await asyncio.to_thread(self._bus.trust.add_chain, chain)
        self._bus.adopt_latest()
        await self._bus.put_identity(self._bus.id, self._bus.credentials.chain)

    def _keep(self) -> None:
        try:
            self._bus.credentials.save(self._folder, self._name)
        except OSError as error:
            # In containers the folder is read-only: the bucket has the chain.
            log.info("certificate_not_written", key=self._name, detail=str(error))
        self._changed_ns = self._file_changed_ns()

    def _file_changed_ns(self) -> int:
        with contextlib.suppress(OSError):
            return (self._folder / f"{self._name}.chain").stat().st_mtime_ns
        return 0
