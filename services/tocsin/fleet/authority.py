"""The intermediate authority that fleet holds, taken up anew when the operator puts another in its place.

``tocsin ca rotate`` replaces ``fleet.key`` and ``fleet.pem`` while fleet runs. Fleet then certifies with the new one
and renews its own certificate by it at once: everyone who follows ``identities`` sees that the old one has a
successor, and renews in turn. Between the two files' replacing they do not fit; fleet goes on with what it has until
they do.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tocsin.bus import Bus
from tocsin.contracts.errors import InvalidInputError, TocsinError, UntrustedError
from tocsin.crypto import Authority, Identity
from tocsin.telemetry import get_logger

NAME = "fleet"
LOOK_S = 1.0
"""How often the files are looked at."""
DAY_S = 86_400
WARN_DAYS = 30
"""An intermediate that ends within so many days is complained of: `tocsin ca rotate` makes the next."""

log = get_logger(__name__)


class AuthorityKeeper:
    """Holds fleet's intermediate, and follows its files.

    Args:
        bus: fleet's.
        folder: where ``fleet.key`` and ``fleet.pem`` are.
        service_lifetime_s: of a service's certificate that is renewed.
    """

    def __init__(self, bus: Bus, folder: Path, *, service_lifetime_s: float) -> None:
        self._bus = bus
        self._folder = folder
        self._service_lifetime = timedelta(seconds=service_lifetime_s)
        self._changed: tuple[int, ...] = ()
        self._warned_at = -float(DAY_S)
        self.authority: Authority

    async def load(self) -> None:
        """Read the authority.

        Raises:
            InvalidInputError: ``wrong_authority``: not an intermediate of this trust domain.
            TocsinError: a file is missing, or is none.
        """
        changed = await asyncio.to_thread(self._files_changed)
        self.authority = await asyncio.to_thread(self._read)
        self._changed = changed

    async def run(self) -> None:
        """Certify fleet by the authority that it holds, and take up another when it comes; until cancelled."""
        while True:
            try:
                if await asyncio.to_thread(self._files_changed) != self._changed:
                    await self.load()
                    log.warning("authority_replaced", key_id=self.authority.signer.key_id.hex())
                    self._bus.metrics.count("authorities_replaced")
                await self._certify_own()
            except TocsinError as error:
                self._bus.metrics.count(f"authority_failures.{error.reason}")
                log.warning("authority_not_taken", reason=error.reason, detail=str(error))
            self._say_how_long()
            await asyncio.sleep(LOOK_S)

    def renew(self, identity: Identity) -> tuple[bytes, ...]:
        """Return a chain that gives longer life to what the root has certified of an identity. Blocking.

        Raises:
            UntrustedError: ``not_from_root``: the root has never certified this key.
            InvalidInputError: ``bad_period``: the authority itself has ended.
        """
        if len(identity.chain) == 2:
            raise UntrustedError("only what the root has certified is renewed so", reason="not_from_root")
        certificate = self.authority.renew(
            identity.chain[-1], now=datetime.now(UTC), lifetime=self._service_lifetime
        )
        return certificate.chain_der

    async def _certify_own(self) -> None:
        """Have fleet's own certificate be this authority's: so that all see which one is the current one."""
        bus = self._bus
        identity = bus.trust.identity(bus.credentials.key.signer.key_id)
        if identity is None or identity.chain[1:2] == self.authority.chain_der or len(identity.chain) == 2:
            return
        chain = await asyncio.to_thread(self.renew, identity)
        await asyncio.to_thread(bus.trust.add_chain, chain)
        bus.adopt_latest()
        await bus.put_identity(bus.id, bus.credentials.chain)

    def _read(self) -> Authority:
        authority = Authority.load(self._folder, NAME, backend=self._bus.backend)
        if authority.is_root or authority.id.domain != self._bus.trust.domain:
            raise InvalidInputError(
                f"{authority.id} is no intermediate authority of {self._bus.trust.domain}",
                reason="wrong_authority",
                advice="`tocsin ca init` makes fleet.key and fleet.pem",
            )
        return authority

    def _files_changed(self) -> tuple[int, ...]:
        paths = (self._folder / f"{NAME}.key", self._folder / f"{NAME}.pem")
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)

    def _say_how_long(self) -> None:
        left_s = self.authority.certificate.not_after_ns / 1e9 - time.time()
        self._bus.metrics.gauge("authority_days_left", left_s / DAY_S)
        if left_s < WARN_DAYS * DAY_S and time.monotonic() - self._warned_at >= DAY_S:
            self._warned_at = time.monotonic()
            log.warning("authority_ends_soon", days=round(left_s / DAY_S, 1), advice="tocsin ca rotate")
