"""Agents with channels and nothing else, on hosts that share this process, over a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tocsin.agent.channels.lobby import Lobby, Party
from tocsin.agent.peers import Peers
from tocsin.agent.settings import HostSettings
from tocsin.bus import Broker, Bus, BusSettings, Credentials, provision
from tocsin.contracts.base import Message
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import AgentName, Role, SpiffeId
from tocsin.crypto import Algorithm, Authority, LocalKey, SignatureBackend
from tocsin.telemetry import Metrics, configure_logging

DOMAIN = "load.tocsin"
ADMIN = SpiffeId.agent(DOMAIN, Role.ADMIN, "admin")


@dataclass
class Host:
    """A host of agents that count what they hear."""

    bus: Bus
    lobby: Lobby
    agents: tuple[SpiffeId, ...]
    heard: int = 0


@dataclass
class Fleet:
    """Hosts, each with as many agents."""

    hosts: list[Host] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All agents."""
        return [one.name for host in self.hosts for one in host.agents]

    def lobby_of(self, name: str) -> Lobby:
        """Return the host of an agent."""
        return next(host.lobby for host in self.hosts if any(one.name == name for one in host.agents))

    def counted(self, name: str) -> int:
        """Return the sum of a counter over all hosts."""
        return sum(host.bus.metrics.counter(name) for host in self.hosts)

    def verifications(self) -> int:
        """Return how many full verifications the hosts have made."""
        # One backend is shared by all buses of a process.
        return self.hosts[0].bus.backend.counters.verifications


@asynccontextmanager
async def fleet_of(
    folder: Path, *, agents: int, hosts: int, backend: SignatureBackend, algorithm: Algorithm
) -> AsyncIterator[Fleet]:
    """Start a broker and hosts, and end them afterwards."""
    configure_logging("loadtest", level="error")
    root = Authority.create_root(DOMAIN, now=datetime.now(UTC), backend=backend)
    broker = Broker.start(folder / "broker")
    try:
        settings: dict[str, Any] = {"nats_url": broker.url, "nats_token_file": broker.token_file}
        await provision(BusSettings(**settings), Metrics())
        async with AsyncExitStack() as stack:
            fleet = Fleet()
            plans = [_ids(host, agents, hosts) for host in range(hosts)]
            for number, ids in enumerate(plans):
                host = await _host(stack, number, ids, plans, root, settings, backend, algorithm)
                fleet.hosts.append(host)
            await _acquainted(fleet)
            yield fleet
    finally:
        broker.stop()


def _ids(host: int, agents: int, hosts: int) -> tuple[SpiffeId, ...]:
    return tuple(SpiffeId.agent(DOMAIN, Role.HUNTER, f"agent-{n:04d}") for n in range(host, agents, hosts))


async def _host(
    stack: AsyncExitStack,
    number: int,
    ids: Sequence[SpiffeId],
    plans: Sequence[Sequence[SpiffeId]],
    root: Authority,
    settings: dict[str, Any],
    backend: SignatureBackend,
    algorithm: Algorithm,
) -> Host:
    name = f"host-{number}"
    own = SpiffeId.host(DOMAIN, name)
    credentials = _certified(root, [own, *ids], backend, algorithm)
    carried = ",".join(f"{one.name}:{one.group}" for one in ids)
    host_settings = HostSettings(
        host_name=name, host_agents=carried, signature_backend=backend.name, channels_per_agent=4096, **settings
    )
    bus = await stack.enter_async_context(Bus(host_settings, credentials, Metrics()))
    if number == 0:
        # An admin shares its key with nobody.
        admin = _certified(root, [ADMIN], backend, algorithm)
        bus.add_key(admin.key, (ADMIN,))
        await bus.put_identity(ADMIN, admin.chain)
    peers = Peers()
    for at, plan in enumerate(plans):
        for one in plan:
            peers.learn(
                AgentRecord(
                    name=AgentName(one.name),
                    role=Role(one.group),
                    host=f"host-{at}",
                    key_id=bytes(32),
                    enrolled_ns=time.time_ns(),
                )
            )
    counted: list[Host] = []

    def deliver(_: bytes | Message, __: SpiffeId) -> None:
        counted[0].heard += 1

    parties = [Party(one, credentials.key.signer.key_id, deliver) for one in ids]
    lobby = Lobby(bus, peers, host_settings, parties)
    await lobby.start()
    stack.push_async_callback(lobby.stop)
    counted.append(Host(bus, lobby, tuple(ids)))
    return counted[0]


def _certified(
    root: Authority, ids: Sequence[SpiffeId], backend: SignatureBackend, algorithm: Algorithm
) -> Credentials:
    key = LocalKey.generate(backend, algorithm)
    certificate = root.issue(
        ids=ids,
        public_key=key.signer.public_key,
        algorithm=algorithm,
        generation=1,
        now=datetime.now(UTC),
    )
    return Credentials(ids[0], key, certificate.chain_der, root.certificate_pem)


async def _acquainted(fleet: Fleet) -> None:
    """Wait until every host has every host's certificate."""
    keys = [host.bus.credentials.key.signer.key_id for host in fleet.hosts]
    async with asyncio.timeout(30):
        while any(host.bus.trust.identity(key) is None for host in fleet.hosts for key in keys):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
