"""A whole system that enrols its agents: broker, fleet, router and agent hosts, as `tocsin up` starts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from _agents import DOMAIN, ORDINARY
from common import say

from tocsin.bus import Broker, Bus, Context, provision
from tocsin.cli.fleetplan import PlannedAgent
from tocsin.cli.installation import CLI_INSTANCE, Installation
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.catalogue import AGENTS, HEARTBEAT, PING
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.fleet import AgentRecord, Heartbeat
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import PingRequest
from tocsin.crypto import SignatureBackend
from tocsin.telemetry import Metrics, configure_logging

SERVICES = {ServiceName.FLEET: "tocsin.fleet", ServiceName.ROUTER: "tocsin.router"}
GROUPS = ("broker", "fleet", "router", "hosts")
"""What is measured apart."""
POLL_S = 0.1
PROGRESS_S = 5.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group of processes uses: CPU time so far, memory and handles now."""

    cpu_s: float
    rss_mib: float
    """Resident, shared pages counted in each process."""
    uss_mib: float
    """What would be free without it: its own pages alone."""
    files: int
    """Open file descriptors of the process that has most."""
    files_most: int
    """How many it may have."""
    threads: int

    @classmethod
    def of(cls, pids: list[int]) -> Usage:
        """Look at processes.

        Raises:
            UnavailableError: ``process_ended``.
        """
        try:
            processes = [psutil.Process(pid) for pid in pids]
            memory = [one.memory_full_info() for one in processes]
            times = [one.cpu_times() for one in processes]
            files = [(one.num_fds(), one.rlimit(psutil.RLIMIT_NOFILE)[0]) for one in processes]
            threads = sum(one.num_threads() for one in processes)
        except psutil.NoSuchProcess as error:
            raise UnavailableError(f"process {error.pid} has ended", reason="process_ended") from error
        return cls(
            cpu_s=float(sum(one.user + one.system for one in times)),
            rss_mib=sum(one.rss for one in memory) / MIB,
            uss_mib=sum(one.uss for one in memory) / MIB,
            files=max(files)[0],
            files_most=max(files)[1],
            threads=threads,
        )


@dataclass
class Enrolled:
    """The running system. Make it with :func:`enrolling`."""

    installation: Installation
    broker: Broker
    supervisor: Supervisor
    agents: tuple[PlannedAgent, ...]
    bus: Bus
    """The command's own: it follows records and heartbeats."""
    settings: Mapping[str, str]
    setup_s: dict[str, float] = field(default_factory=dict)
    enrolled: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)

    async def start_services(self, *, timeout_s: float) -> None:
        """Start fleet and router, and wait until each answers."""
        begun = time.monotonic()
        for service, module in SERVICES.items():
            self.installation.certify(service, "0")
            own = {}
            if service is ServiceName.FLEET:
                tokens = self.installation.tokens_file
                own = {"authority_dir": str(tokens.parent), "tokens_file": str(tokens)}
            folder = {"credentials_dir": str(self.installation.credentials(service)), "instance": "0"}
            self.supervisor.start(service.value, module, **self.settings, **folder, **own)
        for service in SERVICES:
            await self._until_answers(service, begun + timeout_s)
        self.setup_s["services"] = time.monotonic() - begun

    async def start_hosts(self, *, key_scope: str, timeout_s: float) -> None:
        """Start all agent hosts at once; return when every agent was named in a heartbeat.

        Raises:
            UnavailableError: ``child_ended``, or ``not_ready`` in time, with how far it came.
        """
        await self.bus.records(AGENTS).follow(self._learn)
        await self.bus.subscribe(HEARTBEAT, self._heard)
        begun = time.monotonic()
        for host in sorted({agent.host for agent in self.agents}):
            folder = self.installation.host(host)
            self.supervisor.start(
                host,
                "tocsin.agent",
                **self.settings,
                settings_file=str(folder / "env"),
                credentials_dir=str(folder / "credentials"),
                enrol_tokens_file=str(folder / "tokens.json"),
                state_dir=str(folder / "state"),
                key_scope=key_scope,
                enrol_timeout_s=str(timeout_s),
                connect_timeout_s=str(min(timeout_s, 600.0)),
            )
        wanted = {agent.name for agent in self.agents}
        await self._reach("enrolled", wanted, lambda: self.enrolled, begun, timeout_s)
        await self._reach("ready", wanted, lambda: self.alive, begun, timeout_s)

    def pids(self, group: str) -> list[int]:
        """Return the process ids of a group."""
        if group == "broker":
            return [self.broker.process.pid]
        services = {service.value for service in SERVICES}
        children = self.supervisor.children
        names = [group] if group in services else [name for name in children if name not in services]
        return [
            child.process.pid for name in names if (child := children.get(name)) and child.process is not None
        ]

    def usage(self) -> dict[str, Usage]:
        """Return what each group that runs uses."""
        self.supervisor.check()
        return {group: Usage.of(pids) for group in GROUPS if (pids := self.pids(group))}

    def _learn(self, _: str, record: AgentRecord) -> None:
        self.enrolled.add(record.name)

    def _heard(self, beat: Heartbeat, _: Context) -> None:
        self.alive.update(beat.agents)

    async def _reach(
        self, what: str, wanted: set[str], found: Callable[[], set[str]], begun: float, timeout_s: float
    ) -> None:
        told = time.monotonic()
        while not wanted <= found():
            self.supervisor.check()
            now = time.monotonic()
            if now - begun > timeout_s:
                raise UnavailableError(
                    f"{len(found() & wanted)} of {len(wanted)} agents {what} after {timeout_s:g} s",
                    reason="not_ready",
                    advice="give it more --timeout, or look at what its processes log with --keep",
                )
            if now - told > PROGRESS_S:
                told = now
                say(f"{len(found() & wanted)} of {len(wanted)} agents {what} after {now - begun:.0f} s")
            await asyncio.sleep(POLL_S)
        self.setup_s[what] = time.monotonic() - begun

    async def _until_answers(self, service: ServiceName, deadline: float) -> None:
        while True:
            self.supervisor.check()
            try:
                await self.bus.request(PING[service], PingRequest(), timeout_s=1.0)
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return


def plan(agents: int, hosts: int) -> tuple[PlannedAgent, ...]:
    """Share agents among all roles but admins, and among the hosts, in turn."""
    return tuple(
        PlannedAgent(f"agent-{number:05d}", ORDINARY[number % len(ORDINARY)], f"host-{number % hosts + 1:03d}")
        for number in range(agents)
    )


@asynccontextmanager
async def enrolling(
    agents: tuple[PlannedAgent, ...], folder: Path, backend: SignatureBackend
) -> AsyncIterator[Enrolled]:
    """Make an installation in ``folder`` and start its broker; end everything afterwards, whatever happens."""
    configure_logging("loadtest", level="warning")
    begun = time.monotonic()
    installation = Installation.make(folder / "state", DOMAIN)
    installation.certify(ServiceName.CLI, CLI_INSTANCE)
    installation.add_hosts(agents)
    setup_s = {"installation": time.monotonic() - begun}
    broker = Broker.start(folder / "state" / "broker")
    supervisor = Supervisor(folder / "logs")
    try:
        settings = installation.bus_settings(broker.url)
        await provision(settings, Metrics())
        common = {
            "nats_url": broker.url,
            "nats_token_file": str(installation.broker_token),
            "log_level": "warning",
            "signature_backend": backend.name,
        }
        async with Bus(settings, installation.cli_credentials(), Metrics()) as bus:
            yield Enrolled(installation, broker, supervisor, agents, bus, common, setup_s)
        await supervisor.stop()
    finally:
        supervisor.kill()
        broker.stop()
