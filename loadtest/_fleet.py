"""Agents to measure with, on a broker that runs: planned, certified and enrolled without the service fleet.

What fleet would do is done here with fleet's own identity: certify the agents' keys, put their records into the
bucket ``agents``, and state which keys are revoked (none), without which nobody takes an alert that has effects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from _agents import DOMAIN, FleetOptions, PlannedAgent, plan_agents
from _host import HostPlan, KeyPlan
from _traffic import Schedule

from tocsin.bus import Bus, BusSettings, Context, Credentials, provision
from tocsin.cli.authority import issue_service
from tocsin.contracts.catalogue import AGENTS, METRICS
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.crypto import Authority, LocalKey
from tocsin.fleet.revocations import RevocationStater
from tocsin.telemetry import Metrics, configure_logging

GENERATION = 1
READY_TIMEOUT_S = 60.0
AT_ONCE = 64
"""Records that wait for the broker's confirmation at a time."""
FIGURES_TIMEOUT_S = 10.0
STATEMENT_S = 5.0


@dataclass
class Fleet:
    """Agents on paper, and the way to them. Make it with :func:`fleet_on`."""

    options: FleetOptions
    folder: Path
    nats_url: str
    token_file: Path
    root: Authority
    agents: tuple[PlannedAgent, ...]
    bus: Bus
    """The command's own: it pings the routers and reads everyone's figures."""
    keys: int = 0
    """How many keys sign the traffic."""
    records: list[AgentRecord] = field(default_factory=list)
    _snapshots: dict[str, tuple[int, MetricsSnapshot]] = field(default_factory=dict)
    """The last figures of each process, and when they were published, in nanoseconds since the epoch."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def host_plan(self, host: str, schedule: Schedule, sender: int, seed: int) -> HostPlan:
        """Certify a host's keys and return what the host is told."""
        mine = [agent for agent in self.agents if agent.host == host]
        own_id = SpiffeId.host(DOMAIN, host)
        shared = self.options.key_scope == "host"
        folder = self.folder / "credentials" / host
        own = self.certify(folder, host, host, [own_id, *(agent.id for agent in mine if shared)])
        single = [] if shared else [self.certify(folder, host, agent.name, [agent.id]) for agent in mine]
        self.keys += len(single) or 1
        return HostPlan(
            nats_url=self.nats_url,
            nats_token_file=str(self.token_file),
            schedule=schedule,
            sender=sender,
            agents=tuple(agent.name for agent in mine),
            everyone=tuple(agent.name for agent in self.agents),
            body_bytes=self.options.body_bytes,
            seed=seed,
            type_name=self.options.type_name,
            signature_backend=self.options.backend.name,
            credentials_dir=str(folder),
            own=own,
            keys=tuple(single),
            ids={agent.name: str(agent.id) for agent in mine},
        )

    async def enrol(self) -> None:
        """Put the records of everyone who is certified where the routers look for them, as fleet."""
        async with _bus(
            ServiceName.FLEET, self.nats_url, self.token_file, self.options, self.folder, self.root
        ) as bus:
            records = bus.records(AGENTS)
            for begin in range(0, len(self.records), AT_ONCE):
                some = self.records[begin : begin + AT_ONCE]
                await asyncio.gather(*(records.put(record.name, record) for record in some))

    async def router_figures(self, routers: Sequence[str]) -> dict[str, MetricsSnapshot]:
        """Return these routers' figures as each publishes them next, by process."""
        asked_ns = time.time_ns()
        wanted = {router_process(name) for name in routers}
        try:
            async with asyncio.timeout(FIGURES_TIMEOUT_S):
                while not all(self._published_ns(one) > asked_ns for one in wanted):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise UnavailableError("a router publishes no figures", reason="no_figures") from error
        return {one: self._snapshots[one][1] for one in sorted(wanted)}

    async def on_metrics(self, snapshot: MetricsSnapshot, context: Context) -> None:
        """Keep a process's last figures."""
        self._snapshots[snapshot.process] = (context.content.issued_at, snapshot)
        self._news.set()

    def _published_ns(self, process: str) -> int:
        return self._snapshots[process][0] if process in self._snapshots else 0

    def certify(self, folder: Path, host: str, name: str, ids: Sequence[SpiffeId]) -> KeyPlan:
        """Make a key of a host for these ids, certify it, and write both to ``folder``."""
        key = LocalKey.generate(self.options.backend, self.options.algorithm)
        now = datetime.now(UTC)
        certificate = self.root.issue(
            ids=ids,
            public_key=key.signer.public_key,
            algorithm=key.algorithm,
            generation=GENERATION,
            now=now,
        )
        Credentials(ids[0], key, certificate.chain_der, self.root.certificate_pem).save(folder, name)
        self.records += [
            AgentRecord(
                name=one.name, role=one.role, host=host, key_id=key.signer.key_id, enrolled_ns=time.time_ns()
            )
            for one in ids
            if one.role is not None
        ]
        return KeyPlan(name=name, ids=tuple(map(str, ids)))


@asynccontextmanager
async def fleet_on(
    nats_url: str, token_file: Path, options: FleetOptions, folder: Path, root: Authority
) -> AsyncIterator[Fleet]:
    """Make the broker's streams and buckets, and connect to it."""
    configure_logging("loadtest", level="warning")
    await provision(BusSettings(nats_url=nats_url, nats_token_file=token_file), Metrics())
    async with _bus(ServiceName.CLI, nats_url, token_file, options, folder, root) as bus:
        fleet = Fleet(options, folder, nats_url, token_file, root, plan_agents(options), bus)
        await bus.subscribe(METRICS, fleet.on_metrics)
        stating = _bus(ServiceName.FLEET, nats_url, token_file, options, folder, root, instance="1")
        async with stating:
            stating.spawn(RevocationStater(stating, interval_s=STATEMENT_S).run(), "revocation statements")
            yield fleet


def _bus(
    service: ServiceName,
    nats_url: str,
    token_file: Path,
    options: FleetOptions,
    folder: Path,
    root: Authority,
    *,
    instance: str = "0",
) -> Bus:
    """Return a bus of a service's own, not yet open."""
    credentials_dir = folder / "credentials" / service.value
    settings = BusSettings(
        nats_url=nats_url,
        nats_token_file=token_file,
        credentials_dir=credentials_dir,
        signature_backend=options.backend.name,
    )
    return Bus(
        settings, issue_service(root, service, instance, credentials_dir, backend=options.backend), Metrics()
    )


def router_process(instance: str) -> str:
    """Return what a router's figures call it."""
    return f"service.{ServiceName.ROUTER.value}.{instance}"
