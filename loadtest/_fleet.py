"""A system to measure, without most of its services: broker, authority, routers, and agents on paper.

What fleet would do is done here with fleet's own identity: certify the agents' keys and put their records into
the bucket ``agents``. The routers are the real service in processes of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from _host import HostPlan, KeyPlan
from _traffic import Schedule

from tocsin.bus import Broker, Bus, BusSettings, Context, Credentials, provision
from tocsin.cli.authority import issue_service
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.catalogue import AGENTS, COORDINATION, METRICS, PING
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import MetricsSnapshot, PingRequest
from tocsin.crypto import Algorithm, Authority, LocalKey, SignatureBackend
from tocsin.telemetry import Metrics, configure_logging

DOMAIN = "load.tocsin"
GENERATION = 1
READY_TIMEOUT_S = 60.0
FIGURES_TIMEOUT_S = 10.0
SENSORS = (Role.SENTINEL, Role.DECEPTION, Role.CANARY, Role.SPECIALIST)
"""Roles that the router's policy lets hand on observations."""
ORDINARY = tuple(role for role in Role if role is not Role.ADMIN)
"""An admin never shares a key, whatever the scope; so that the scope alone says how many keys there are."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What is to be measured."""

    agents: int
    hosts: int
    routers: int
    key_scope: str
    algorithm: Algorithm
    backend: SignatureBackend
    type_name: str
    body_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedAgent:
    """An agent and the host that carries it."""

    id: SpiffeId
    host: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.id.name


def plan_agents(options: FleetOptions) -> tuple[PlannedAgent, ...]:
    """Share agents among the roles that may send this type, and among the hosts, in turn.

    Raises:
        InvalidInputError: ``bad_hosts`` or ``too_few_agents``.
    """
    if options.agents < 2:
        raise InvalidInputError(
            "one agent has nobody to write to: use --agents 2 or more", reason="too_few_agents"
        )
    if not 1 <= options.hosts <= options.agents:
        raise InvalidInputError(f"{options.hosts} hosts for {options.agents} agents", reason="bad_hosts")
    roles = SENSORS if options.type_name == COORDINATION.name else ORDINARY
    return tuple(
        PlannedAgent(
            SpiffeId.agent(DOMAIN, roles[number % len(roles)], f"agent-{number + 1:04d}"),
            f"host-{number % options.hosts + 1}",
        )
        for number in range(options.agents)
    )


@dataclass
class Fleet:
    """The running system. Make it with :func:`running_fleet`."""

    options: FleetOptions
    folder: Path
    broker: Broker
    root: Authority
    agents: tuple[PlannedAgent, ...]
    supervisor: Supervisor
    bus: Bus
    """The command's own: it pings the routers and reads everyone's figures."""
    keys: int = 0
    """How many keys sign the traffic."""
    _snapshots: dict[str, tuple[int, MetricsSnapshot]] = field(default_factory=dict)
    """The last figures of each process, and when they were published, in nanoseconds since the epoch."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def router_pids(self) -> list[int]:
        """Return the process ids of the routers."""
        return [child.process.pid for child in self.supervisor.children.values() if child.process is not None]

    def host_plan(self, host: str, schedule: Schedule, sender: int, seed: int) -> HostPlan:
        """Certify a host's keys and return what the host is told."""
        mine = [agent for agent in self.agents if agent.host == host]
        own_id = SpiffeId.host(DOMAIN, host)
        shared = self.options.key_scope == "host"
        folder = self.folder / "credentials" / host
        own = self._certify(folder, host, [own_id, *(agent.id for agent in mine if shared)])
        single = [] if shared else [self._certify(folder, agent.name, [agent.id]) for agent in mine]
        self.keys += len(single) or 1
        return HostPlan(
            nats_url=self.broker.url,
            nats_token_file=str(self.broker.token_file),
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

    async def enrol(self, plans: Sequence[HostPlan]) -> None:
        """Put the agents' records where the routers look for them, as fleet."""
        async with _bus(self.root, ServiceName.FLEET, self.broker, self.folder, self.options.backend) as bus:
            records = bus.records(AGENTS)
            for plan in plans:
                for record in self._records(plan):
                    await records.put(record.name, record)

    def _records(self, plan: HostPlan) -> Iterator[AgentRecord]:
        host = SpiffeId.parse(plan.own.ids[0]).name
        for key in (plan.own, *plan.keys):
            path = Path(plan.credentials_dir) / f"{key.name}.key"
            key_id = LocalKey.load(path, self.options.backend).signer.key_id
            for one in map(SpiffeId.parse, key.ids):
                if one.role is not None:
                    yield AgentRecord(
                        name=one.name, role=one.role, host=host, key_id=key_id, enrolled_ns=time.time_ns()
                    )

    async def start_routers(self) -> None:
        """Start the routers and wait until each has answered a ping."""
        names = {str(number) for number in range(self.options.routers)}
        for name in sorted(names):
            folder = self.folder / "credentials" / f"router-{name}"
            issue_service(self.root, ServiceName.ROUTER, name, folder, backend=self.options.backend)
            self.supervisor.start(
                f"router-{name}",
                "tocsin.router",
                nats_url=self.broker.url,
                nats_token_file=str(self.broker.token_file),
                credentials_dir=str(folder),
                instance=name,
                signature_backend=self.options.backend.name,
                log_level="warning",
            )
        answered: set[str] = set()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while answered != names:
            self.supervisor.check()
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(names - answered))
                raise UnavailableError(f"router {missing} does not answer", reason="not_ready")
            try:
                # The instances share the requests, so whoever is ready answers one sooner or later.
                pong = await self.bus.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=1.0)
                answered.add(pong.name)
            except UnavailableError:
                await asyncio.sleep(0.05)

    async def router_figures(self) -> dict[str, MetricsSnapshot]:
        """Return the routers' figures as each publishes them next, by router."""
        asked_ns = time.time_ns()
        wanted = {f"service.router.{number}" for number in range(self.options.routers)}
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

    def _certify(self, folder: Path, name: str, ids: list[SpiffeId]) -> KeyPlan:
        key = LocalKey.generate(self.options.backend, self.options.algorithm)
        certificate = self.root.issue(
            ids=ids,
            public_key=key.signer.public_key,
            algorithm=key.algorithm,
            generation=GENERATION,
            now=datetime.now(UTC),
        )
        Credentials(ids[0], key, certificate.chain_der, self.root.certificate_pem).save(folder, name)
        return KeyPlan(name=name, ids=tuple(map(str, ids)))


@asynccontextmanager
async def running_fleet(options: FleetOptions, folder: Path) -> AsyncIterator[Fleet]:
    """Start a broker in ``folder`` and connect to it; end everything afterwards, whatever happens."""
    configure_logging("loadtest", level="warning")
    agents = plan_agents(options)
    root = Authority.create_root(DOMAIN, now=datetime.now(UTC), backend=options.backend)
    broker = Broker.start(folder / "broker")
    supervisor = Supervisor(folder / "logs")
    try:
        await provision(BusSettings(nats_url=broker.url, nats_token_file=broker.token_file), Metrics())
        async with _bus(root, ServiceName.CLI, broker, folder, options.backend) as bus:
            fleet = Fleet(options, folder, broker, root, agents, supervisor, bus)
            await bus.subscribe(METRICS, fleet.on_metrics)
            yield fleet
    finally:
        supervisor.kill()
        broker.stop()


def _bus(root: Authority, service: ServiceName, broker: Broker, folder: Path, backend: SignatureBackend) -> Bus:
    """Return a bus of a service's own, not yet open."""
    credentials_dir = folder / "credentials" / service.value
    settings = BusSettings(
        nats_url=broker.url,
        nats_token_file=broker.token_file,
        credentials_dir=credentials_dir,
        signature_backend=backend.name,
    )
    return Bus(settings, issue_service(root, service, "0", credentials_dir, backend=backend), Metrics())


def host_names(agents: Sequence[PlannedAgent]) -> tuple[str, ...]:
    """Return the hosts, each once, in order."""
    return tuple(dict.fromkeys(agent.host for agent in agents))
