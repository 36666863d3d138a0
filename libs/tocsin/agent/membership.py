"""A host's standing in the fleet: its keys, their certificates, and keeping them fresh."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tocsin.agent.enrol import KeyGroup, Wallet, enrol
from tocsin.agent.settings import HostSettings
from tocsin.bus import Bus, Credentials
from tocsin.contracts.catalogue import SEALING_KEYS
from tocsin.contracts.errors import TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.fleet import SealingKeyRecord
from tocsin.contracts.identifiers import SpiffeId
from tocsin.telemetry import Metrics, get_logger

AT_ONCE = 16
"""Keys that are enrolled, or published, at a time: as many as fleet answers at once. Those beyond would only wait
there, and ask again."""
KNOWN_POLL_S = 0.01
RENEWAL_RETRY = 0.05
"""Share of a certificate's life after which a renewal that failed is tried again."""
SUCCESSION_SPREAD_S = 5.0
"""Over how many seconds a fleet's renewals are spread that a new authority calls for."""
MIN_RETRY_S = 1.0
WATCH_S = 1.0
"""How often it is looked whether the authority has a successor, or does not count any more."""
FINAL = frozenset({"revoked", "token_used", "bad_token", "wrong_host", "wrong_agents", "name_taken"})
"""Reasons of fleet's by which the same key will never be certified again."""
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


@dataclass(slots=True)
class Membership:
    """The credentials of a host's key groups, the host's own first."""

    wallet: Wallet
    held: dict[KeyGroup, Credentials]

    @classmethod
    def open(cls, wallet: Wallet, groups: Sequence[KeyGroup], *, now_ns: int) -> Self:
        """Read what the wallet holds; a key that is missing is made. Blocking."""
        return cls(wallet, {group: wallet.credentials(group, now_ns=now_ns) for group in groups})

    def make_bus(self, settings: HostSettings, metrics: Metrics) -> Bus:
        """Return a bus, not yet open, that signs as the host and as each of its agents."""
        own, *others = self.held.items()
        bus = Bus(settings, own[1], metrics)
        for group, credentials in others:
            bus.add_key(credentials.key, group.ids(self.wallet.domain))
        return bus

    def key_id(self, spiffe_id: SpiffeId) -> bytes:
        """Return the id of the key that speaks for one of this host's ids."""
        return next(
            credentials.key.signer.key_id
            for group, credentials in self.held.items()
            if spiffe_id in group.ids(self.wallet.domain)
        )

    async def join(self, bus: Bus, *, timeout_s: float) -> None:
        """Enrol every key that has no certificate, and wait until all are known, here as everywhere.

        Raises:
            TocsinError: fleet refuses, or its answer does not hold.
            UntrustedError: ``revoked``: one of the keys counts no more.
            UnavailableError: not in time.
        """
        own = next(iter(self.held.values()))
        for held in self.held.values():
            bus.require_not_revoked(held.id, held.key)
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(group: KeyGroup, held: Credentials) -> None:
            async with slots:
                await self._join(bus, group, held, timeout_s=timeout_s)

        await asyncio.gather(*(one(group, held) for group, held in self.held.items()))
        await self._known(bus, timeout_s=timeout_s)
        if not own.chain:
            # With a chain from an earlier run the bus has begun by itself.
            bus.start_reporting()

    async def publish_sealing_keys(self, bus: Bus) -> None:
        """Open what is sealed to each key group, and tell everyone by which key: signed by the group's own."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(group: KeyGroup) -> None:
            async with slots:
                await self._publish_sealing_key(bus, group)

        await asyncio.gather(*map(one, self.held))

    async def _publish_sealing_key(self, bus: Bus, group: KeyGroup) -> None:
        keys = await asyncio.to_thread(self.wallet.sealing_keys, group)
        for key in keys:
            bus.opener.bodies.hold(key)
        owner = group.ids(self.wallet.domain)[0]
        mine = SealingKeyRecord(public_key=keys[0].public.raw)
        # Anew at each start: the same key may have been vouched for by a signing key that is no more.
        await bus.records(SEALING_KEYS, sender=owner).change(owner.token, lambda _: mine)

    async def renew(self, bus: Bus) -> None:
        """Renew each certificate at half of its life, for as long as the host runs.

        The same key and the same token ask again: fleet answers with a fresh certificate. This is done sooner
        where the authority that issued it has a successor, and at once where it counts no more. A certificate
        that cannot be renewed in time ends, and with it what this host can say; its next start enrols it again.
        """
        await asyncio.gather(*(self._renew(bus, group) for group in self.held))

    async def _join(self, bus: Bus, group: KeyGroup, held: Credentials, *, timeout_s: float) -> None:
        if held.chain and await self._still_holds(bus, held):
            await bus.put_identity(held.id, held.chain)
        else:
            self.held[group] = await enrol(bus, self.wallet, group, held.key, timeout_s=timeout_s)

    async def _still_holds(self, bus: Bus, held: Credentials) -> bool:
        """Tell whether a chain of an earlier run is believed: its authority may count no more."""
        try:
            await asyncio.to_thread(bus.trust.add_chain, held.chain)
        except UntrustedError as error:
            log.info("enrolment_needed", key=str(held.id), reason=error.reason)
            return False
        return True

    async def _known(self, bus: Bus, *, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                for held in self.held.values():
                    while bus.trust.identity(held.key.signer.key_id) is None:  # noqa: ASYNC110 - the store has no event
                        await asyncio.sleep(KNOWN_POLL_S)
        except TimeoutError as error:
            raise UnavailableError(
                "the certificates did not become known", reason="identity_unknown", advice="is fleet running?"
            ) from error

    async def _renew(self, bus: Bus, group: KeyGroup) -> None:
        key, life_s = self.held[group].key, 0.0
        while True:
            life_s = await self._due(bus, group, life_s)
            try:
                self.held[group] = await enrol(
                    bus, self.wallet, group, key, timeout_s=max(MIN_RETRY_S, life_s * RENEWAL_RETRY)
                )
                bus.metrics.count("certificates_renewed")
            except TocsinError as error:
                bus.metrics.count(f"renewal_failures.{error.reason}")
                log.warning("renewal_failed", key=group.file_name, reason=error.reason)
                if error.reason in FINAL:
                    log.error("certificate_lost", key=group.file_name, reason=error.reason)  # noqa: TRY400 - ours
                    return
            await asyncio.sleep(max(MIN_RETRY_S, life_s * RENEWAL_RETRY))

    async def _due(self, bus: Bus, group: KeyGroup, life_s: float) -> float:
        """Wait until a group's certificate is to be renewed; return the length of its life, in seconds.

        Args:
            bus: knows the certificate, and whether its authority has a successor.
            group: whose it is.
            life_s: the life of the last one that was known.
        """
        key_id = self.held[group].key.signer.key_id
        while True:
            identity = bus.trust.identity(key_id)
            if identity is None:
                # Revoked with its authority: another may certify the same key. Or superseded: fleet will say so.
                return life_s
            life_s = (identity.not_after_ns - identity.issued_ns) / NS_PER_S
            left_s = (identity.issued_ns - time.time_ns()) / NS_PER_S + life_s / 2
            if left_s <= 0:
                return life_s
            if bus.trust.is_superseded(key_id):
                await asyncio.sleep(random.uniform(0, SUCCESSION_SPREAD_S))  # noqa: S311 - jitter
                return life_s
            await asyncio.sleep(min(left_s, WATCH_S))
