"""What integration tests share: a real broker, a real authority, and buses for whoever a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tocsin.bus import Broker, Bus, BusSettings, Credentials, provision
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import Algorithm, Authority, LocalKey, SignatureBackend, select_backend
from tocsin.telemetry import Metrics

DOMAIN = "test.tocsin"
SHARED = Path(__file__).resolve().parents[1].parent / "shared"
"""Real data beside the checkout; tests that need it skip, and say so, where it is absent."""


async def eventually(holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Wait until ``holds()``; a TimeoutError if it does not come to that."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


@dataclass
class World:
    """A broker that is set up, and an authority that certifies whom a test names."""

    broker: Broker
    authority: Authority
    backend: SignatureBackend
    folder: Path
    buses: AsyncExitStack = field(default_factory=AsyncExitStack)

    def settings(self) -> BusSettings:
        """Return settings that reach this broker. No fleet runs in most tests, so nobody waits for its word."""
        return BusSettings(
            nats_url=self.broker.url,
            nats_token_file=self.broker.token_file,
            connect_timeout_s=10,
            metrics_interval_s=0.2,
            revocations_max_age_s=3_600,
        )

    def credentials(self, *ids: SpiffeId, generation: int = 1) -> Credentials:
        """Certify a fresh key for ``ids``; the first is the process's own."""
        key = LocalKey.generate(self.backend, Algorithm.ML_DSA_44)
        certificate = self.authority.issue(
            ids=ids,
            public_key=key.signer.public_key,
            algorithm=key.algorithm,
            generation=generation,
            now=datetime.now(UTC),
        )
        return Credentials(ids[0], key, certificate.chain_der, self.authority.certificate_pem)

    def restart_broker(self) -> None:
        """Kill the broker and start it again on the same port and state."""
        port = self.broker.port
        self.broker.kill()
        self.broker = Broker.start(self.folder / "broker", port=port)

    async def bus(self, *ids: SpiffeId, credentials: Credentials | None = None) -> Bus:
        """Open a bus for ``ids``, closed with the world."""
        bus = Bus(self.settings(), credentials or self.credentials(*ids), Metrics())
        return await self.buses.enter_async_context(bus)

    async def service(self, name: ServiceName, instance: str = "0") -> Bus:
        """Open a bus for a service."""
        return await self.bus(SpiffeId.service(DOMAIN, name, instance))

    async def agent(self, role: Role, name: str) -> Bus:
        """Open a bus for one agent alone."""
        return await self.bus(SpiffeId.agent(DOMAIN, role, name))


@asynccontextmanager
async def world_at(folder: Path) -> AsyncIterator[World]:
    """Start a broker in ``folder``, set it up, and end everything afterwards."""
    broker = Broker.start(folder / "broker")
    backend = select_backend("auto")
    authority = Authority.create_root(DOMAIN, backend=backend, now=datetime.now(UTC))
    world = World(broker, authority, backend, folder)
    try:
        await provision(world.settings(), Metrics())
        async with world.buses:
            yield world
    finally:
        world.broker.stop()
