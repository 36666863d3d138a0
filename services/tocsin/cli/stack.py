"""The embedded stack: broker, services, worker and agent hosts, as children of this process.

Everything lives in one state folder: the authority, credentials, the broker's files, each host's state. The
first start makes it, a later start continues with it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tocsin.bus import Broker, Bus, BusSettings, Credentials, Sent, provision
from tocsin.bus.enrolment import IssuedToken
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.cli import authority
from tocsin.cli.fleetplan import PlannedAgent, as_held, as_issued, enrolment_tokens, plan_agents
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.catalogue import CONSENSUS_EPOCH, CONSENSUS_EPOCHS, FLEET_ROSTER, PING
from tocsin.contracts.decisions import Epoch, EpochInstalled, Participant
from tocsin.contracts.errors import ConflictError, UnavailableError
from tocsin.contracts.fleet import AgentState, Roster, RosterRequest
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import PingRequest
from tocsin.crypto import Authority, leaf_hash, sign_batch
from tocsin.evidence.epochs import Seat, make_epoch
from tocsin.telemetry import Metrics

MODULES = {
    ServiceName.QPU_MANAGER: "tocsin.qpu_manager",  # first: it takes longest to be ready
    ServiceName.WORKER: "tocsin.balancer.worker",
    ServiceName.FLEET: "tocsin.fleet",
    ServiceName.ROUTER: "tocsin.router",
    ServiceName.CONSENSUS: "tocsin.consensus",
    ServiceName.WORKFLOW: "tocsin.workflow",
    ServiceName.BALANCER: "tocsin.balancer",
    ServiceName.MONITOR: "tocsin.monitor",
    ServiceName.GATEWAY: "tocsin.gateway",
}
"""Services of the embedded stack and the modules that run them."""
T = TypeVar("T")

INSTANCE = "0"
READY_TIMEOUT_S = 60.0
STATE_VERSION = 1
"""Layout of the state folder; another one is refused, not guessed at."""

Progress = Callable[[str, str], None]
"""Told (what, state): ("router", "ready")."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start."""

    state: Path
    logs: Path
    domain: str = "tocsin.local"
    agents: int = 40
    hosts: int = 4
    port: int = -1
    key_scope: str = "host"
    log_level: str = "info"


@dataclass
class Stack:
    """A running stack. Use :meth:`start`, then :meth:`stop` whatever happens."""

    options: StackOptions
    supervisor: Supervisor
    broker: Broker
    root: Authority
    agents: tuple[PlannedAgent, ...]
    api_token_file: Path
    timings_s: dict[str, float] = field(default_factory=dict)
    _seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    async def prepare(cls, options: StackOptions) -> Stack:
        """Start and set up the broker; nothing else runs yet.

        Raises:
            InvalidInputError: the fleet is too small or too large.
            ConflictError: the state folder is of another version, or in use.
            UnavailableError: the broker does not come up.
        """
        agents = plan_agents(options.agents, options.hosts)
        _claim(options.state)
        begun = time.monotonic()
        root = authority.open_or_create(options.state / "ca", options.domain)
        broker = Broker.start(options.state / "broker", port=options.port)
        try:
            stack = cls(
                options, Supervisor(options.logs), broker, root, agents, options.state / "gateway" / "token"
            )
            await provision(stack.bus_settings(ServiceName.CLI), Metrics())
        except BaseException:
            broker.stop()
            raise
        stack.timings_s["broker"] = time.monotonic() - begun
        return stack

    def bus_settings(self, service: ServiceName) -> BusSettings:
        """Return settings by which a service of this stack reaches the bus."""
        return BusSettings(
            nats_url=self.broker.url,
            nats_token_file=self.broker.token_file,
            credentials_dir=self._credentials(service),
            instance=INSTANCE,
        )

    def cli_credentials(self) -> Credentials:
        """Return this command's own credentials."""
        return authority.issue_service(self.root, ServiceName.CLI, INSTANCE, self._credentials(ServiceName.CLI))

    def start_services(self) -> None:
        """Start every service and the worker."""
        self._write_private(self.api_token_file, secrets.token_urlsafe(32).encode(), keep=True)
        self._write_private(self._tokens_file(), as_issued(self._all_tokens()).encode())
        for service, module in MODULES.items():
            authority.issue_service(self.root, service, INSTANCE, self._credentials(service))
            self.supervisor.start(service.value, module, **self._environment(service))

    def start_hosts(self) -> None:
        """Start the agent hosts; they enrol with fleet as soon as it answers."""
        for host in sorted({agent.host for agent in self.agents}):
            folder = self.options.state / "hosts" / host
            (folder / "credentials").mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / "credentials" / "ca.pem").write_bytes(self.root.certificate_pem)
            tokens = enrolment_tokens(self.agents, host, self._seed)
            self._write_private(folder / "tokens.json", as_held(tokens).encode())
            mine = [agent for agent in self.agents if agent.host == host]
            self.supervisor.start(
                host,
                "tocsin.agent",
                nats_url=self.broker.url,
                nats_token_file=str(self.broker.token_file),
                credentials_dir=str(folder / "credentials"),
                state_dir=str(folder),
                host_name=host,
                host_agents=",".join(f"{agent.name}:{agent.role.value}" for agent in mine),
                enrol_tokens_file=str(folder / "tokens.json"),
                key_scope=self.options.key_scope,
                log_level=self.options.log_level,
            )

    async def wait_services(self, bus: Bus, progress: Progress) -> None:
        """Wait until every service answers its ping.

        Raises:
            UnavailableError: a child ended, or not all are ready in time; names who is missing.
        """

        async def one(service: ServiceName) -> None:
            progress(service.value, "starting")
            await self._until_ready(
                lambda: bus.request(PING[service], PingRequest(), timeout_s=1.0), service.value
            )
            progress(service.value, "ready")

        begun = time.monotonic()
        await asyncio.gather(*(one(service) for service in MODULES))
        self.timings_s["services"] = time.monotonic() - begun

    async def wait_agents(self, bus: Bus, progress: Progress) -> Roster:
        """Wait until every agent is enrolled and its heartbeat was seen."""
        begun = time.monotonic()
        expected = {agent.name for agent in self.agents}

        async def healthy() -> Roster:
            roster = await bus.request(FLEET_ROSTER, RosterRequest(), timeout_s=1.0)
            seen = {entry.agent.name for entry in roster.entries if entry.state is AgentState.HEALTHY}
            progress("agents", f"{len(expected & seen)} of {len(expected)}")
            if not expected <= seen:
                missing = sorted(expected - seen)
                raise UnavailableError(f"waiting for {', '.join(missing[:5])}", reason="agents_missing")
            return roster

        roster = await self._until_ready(healthy, "agents")
        self.timings_s["agents"] = time.monotonic() - begun
        return roster

    async def install_epoch(self, bus: Bus, roster: Roster) -> EpochInstalled:
        """Have the root sign who decides, and give it to consensus; afterwards the root's key is not needed.

        A later start keeps the epoch that is installed if the same seats have the same keys.
        """
        seats, instances = self._seats(bus, roster), [self._consensus_seat(bus)]
        held = await bus.last(CONSENSUS_EPOCHS)
        number, previous = 0, None
        if held is not None and isinstance(held[0], Epoch):
            record, context = held[0], held[1]
            number, previous = record.number + 1, context.leaf
            if _seats_of(record.participants) == set(seats) and _seats_of(record.instances) == set(instances):
                sent = Sent(context.id, context.leaf, context.data, context.content.issued_at)
                return await bus.ask_with(CONSENSUS_EPOCH, sent, self.root.id, timeout_s=10.0)
        epoch = make_epoch(
            number=number,
            trust_domain=self.options.domain,
            participants=seats,
            instances=instances,
            created_ns=time.time_ns(),
            previous=previous,
        )
        return await bus.ask_with(CONSENSUS_EPOCH, self._sign(epoch), self.root.id, timeout_s=10.0)

    def _sign(self, epoch: Epoch) -> Sent:
        """Make the epoch's envelope with the root's key: the one message that no process of the bus signs."""
        content = make_content(
            type_name=CONSENSUS_EPOCH.request_type.name,
            sender=str(self.root.id),
            audience=CONSENSUS_EPOCH.subject.audience,
            body=encode_body(epoch),
            now_ns=time.time_ns(),
            ttl_ms=0,
        )
        signed = encode_content(content)
        proof = sign_batch(self.root.signer, [signed])[0]
        data = encode_envelope(signed, self.root.signer.key_id, proof)
        return Sent(content.id, leaf_hash(signed), data, content.issued_at)

    async def stop(self) -> None:
        """End every child, then the broker."""
        try:
            await self.supervisor.stop()
        finally:
            self.supervisor.kill()
            self.broker.stop()
            (self.options.state / "lock").unlink(missing_ok=True)

    def _seats(self, bus: Bus, roster: Roster) -> list[Seat]:
        """Return every enrolled agent with its key.

        Raises:
            UnavailableError: ``unknown_key``: a certificate has not come here yet.
        """
        seats = []
        for entry in roster.entries:
            identity = bus.trust.identity(entry.agent.key_id)
            if identity is None:
                raise UnavailableError(f"the key of {entry.agent.name} is not known yet", reason="unknown_key")
            sender = SpiffeId.agent(self.options.domain, entry.agent.role, entry.agent.name)
            seats.append((sender, entry.agent.key_id, int(identity.algorithm)))
        return seats

    def _consensus_seat(self, bus: Bus) -> Seat:
        consensus = SpiffeId.service(self.options.domain, ServiceName.CONSENSUS, INSTANCE)
        folder = self._credentials(ServiceName.CONSENSUS)
        key = Credentials.load(folder, consensus, f"consensus-{INSTANCE}", bus.backend).key
        return consensus, key.signer.key_id, int(key.signer.algorithm)

    async def _until_ready(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            self.supervisor.check()
            try:
                return await ask()
            except (UnavailableError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{what} not ready within {READY_TIMEOUT_S:g} s: {error}",
                        reason="not_ready",
                        advice=f"see the logs in {self.options.logs}",
                    ) from error
            await asyncio.sleep(0.1)

    def _environment(self, service: ServiceName) -> dict[str, str]:
        common = {
            "nats_url": self.broker.url,
            "nats_token_file": str(self.broker.token_file),
            "credentials_dir": str(self._credentials(service)),
            "instance": INSTANCE,
            "log_level": self.options.log_level,
        }
        own = {
            ServiceName.FLEET: {
                "authority_dir": str(self.options.state / "ca"),
                "tokens_file": str(self._tokens_file()),
            },
            ServiceName.CONSENSUS: {"state_dir": str(self.options.state / "consensus")},
            ServiceName.GATEWAY: {
                "api_token_file": str(self.api_token_file),
                "url_file": str(self.api_token_file.parent / "url"),
            },
        }
        return common | own.get(service, {})

    def _credentials(self, service: ServiceName) -> Path:
        return self.options.state / "credentials" / service.value

    def _tokens_file(self) -> Path:
        return self.options.state / "fleet" / "tokens.json"

    def _all_tokens(self) -> list[IssuedToken]:
        hosts = sorted({agent.host for agent in self.agents})
        return [token for host in hosts for token in enrolment_tokens(self.agents, host, self._seed)]

    @staticmethod
    def _write_private(path: Path, data: bytes, *, keep: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if keep and path.exists():
            return
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)


def _seats_of(participants: Iterable[Participant]) -> set[Seat]:
    return {(SpiffeId.parse(seat.sender), seat.key_id, seat.algorithm) for seat in participants}


def _claim(state: Path) -> None:
    """Make the state folder this process's own.

    Raises:
        ConflictError: ``state_in_use`` or ``state_version``.
        UnavailableError: ``not_writable``.
    """
    authority.make_private_folder(state)
    version = state / "version"
    if version.exists() and version.read_text().strip() != str(STATE_VERSION):
        raise ConflictError(
            f"{state} was made by another version of Tocsin",
            reason="state_version",
            advice="choose another state folder with --state",
        )
    version.write_text(f"{STATE_VERSION}\n")
    lock = state / "lock"
    try:
        owner = int(lock.read_text())
    except (OSError, ValueError):
        owner = 0
    if owner and owner != os.getpid() and _alive(owner):
        raise ConflictError(
            f"{state} is in use by process {owner}",
            reason="state_in_use",
            advice="stop it, or use another --state",
        )
    lock.write_text(str(os.getpid()))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
