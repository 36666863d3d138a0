"""The embedded stack: broker, services, worker and agent hosts, as children of this process.

Everything lives in one state folder, which is an installation's folder and what its processes keep. The first
start makes it, a later start continues with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tocsin.agent.settings import HostSettings
from tocsin.bus import Broker, provision
from tocsin.cli.fleetplan import PlannedAgent, plan_agents
from tocsin.cli.installation import CONSENSUS_INSTANCES, Installation
from tocsin.cli.supervisor import Supervisor
from tocsin.cli.system import System
from tocsin.contracts.errors import ConflictError, InvalidInputError
from tocsin.contracts.identifiers import ServiceName
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
INSTANCE = "0"


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start."""

    state: Path
    logs: Path
    domain: str = "tocsin.local"
    agents: int = 40
    hosts: int = 4
    consensus: int = CONSENSUS_INSTANCES
    """How many consensus instances: 3g + 1 tolerate g hostile ones."""
    port: int = -1
    key_scope: str = "host"
    log_level: str = "info"
    named: tuple[PlannedAgent, ...] = ()
    """These agents, in place of a plan for ``agents`` of them."""
    host_settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of every agent host, by name without prefix."""
    sync_always: bool = False
    """Whether the broker writes through to the disk before it acknowledges: for a state that is kept."""


@dataclass
class Stack(System):
    """A stack of this command's own."""

    options: StackOptions
    supervisor: Supervisor
    broker: Broker

    @classmethod
    async def prepare(cls, options: StackOptions) -> Stack:
        """Start and set up the broker; nothing else runs yet.

        Raises:
            InvalidInputError: the fleet is too small or too large.
            ConflictError: the state folder is of another version, or in use.
            UnavailableError: the broker does not come up.
        """
        agents = options.named or plan_agents(options.agents, options.hosts)
        installation = Installation.make(options.state, options.domain)
        lock_state(options.state)
        begun = time.monotonic()
        installation.certify(ServiceName.CLI, INSTANCE)
        broker = Broker.start(options.state / "broker", port=options.port, sync_always=options.sync_always)
        try:
            supervisor = Supervisor(options.logs)
            instances = tuple(map(str, range(options.consensus)))
            stack = cls(installation, agents, broker.url, options, supervisor, broker, consensus=instances)
            await provision(stack.bus_settings(), Metrics())
        except BaseException:
            broker.stop()
            raise
        stack.timings_s["broker"] = time.monotonic() - begun
        return stack

    def start(self) -> None:
        """Start every service, the worker and the agent hosts, which enrol as soon as fleet answers."""
        self.installation.add_hosts(self.agents)
        for service, module in MODULES.items():
            named = service is ServiceName.CONSENSUS
            for instance in self.consensus if named else (INSTANCE,):
                self.installation.certify(service, instance)
                name = f"{service.value}-{instance}" if named else service.value
                self.supervisor.start(name, module, **self._service_settings(service, instance))
        for host in sorted({agent.host for agent in self.agents}):
            self.supervisor.start(host, "tocsin.agent", **self._host_settings(host))

    def check(self) -> None:
        """Raise if a child has ended.

        Raises:
            UnavailableError: ``child_ended``.
        """
        self.supervisor.check()

    @property
    def what(self) -> str:
        """What runs, in some words."""
        return f"{len(self.supervisor.children) + 1} processes"

    @property
    def advice(self) -> str:
        """Where to look when something is not ready."""
        return f"see the logs in {self.options.logs}"

    @property
    def api_url_file(self) -> Path:
        """Where the gateway writes its address."""
        return self.installation.api_token.with_name("url")

    def kill_host(self, host: str) -> bool:
        """Kill an agent host as a power cut would: without a word."""
        child = self.supervisor.children.get(host)
        if child is None or child.process is None:
            return False
        child.process.kill()
        return True

    async def stop(self) -> None:
        """End every child, then the broker."""
        try:
            await self.supervisor.stop()
        finally:
            self.supervisor.kill()
            self.broker.stop()
            (self.options.state / "lock").unlink(missing_ok=True)

    def _common_settings(self) -> dict[str, str]:
        return {
            "nats_url": self.broker.url,
            "nats_token_file": str(self.installation.broker_token),
            "log_level": self.options.log_level,
        }

    def _service_settings(self, service: ServiceName, instance: str) -> dict[str, str]:
        own = {
            ServiceName.FLEET: {
                "nats_system_token_file": str(self.installation.system_token),
                "authority_dir": str(self.installation.tokens_file.parent),
                "tokens_file": str(self.installation.tokens_file),
            },
            ServiceName.CONSENSUS: {"state_dir": str(self.options.state / "consensus")},
            ServiceName.GATEWAY: {
                "api_token_file": str(self.installation.api_token),
                "url_file": str(self.api_url_file),
            },
        }
        where = {"credentials_dir": str(self.installation.credentials(service)), "instance": instance}
        return self._common_settings() | where | own.get(service, {})

    def _host_settings(self, host: str) -> dict[str, str]:
        folder = self.installation.host(host)
        return self._common_settings() | {
            "settings_file": str(folder / "env"),
            "credentials_dir": str(folder / "credentials"),
            "enrol_tokens_file": str(folder / "tokens.json"),
            "state_dir": str(folder / "state"),
            "key_scope": self.options.key_scope,
            **self.options.host_settings,
        }


OWN_SETTINGS = frozenset(
    {"host_name", "host_agents", "state_dir", "enrol_tokens_file", "key_scope", "nats_url"}
)
"""Settings of a host that follow from the stack's own."""


def host_settings(assignments: Sequence[str]) -> dict[str, str]:
    """Read ``name=value`` texts.

    Raises:
        InvalidInputError: ``bad_setting``: no setting of agent hosts, or one that the stack decides.
    """
    settings: dict[str, str] = {}
    for text in assignments:
        name, found, value = text.partition("=")
        if not found or name not in HostSettings.model_fields or name in OWN_SETTINGS:
            raise InvalidInputError(
                f"{text[:80]!r} is no name=value of an agent host's settings",
                reason="bad_setting",
                advice="docs/reference/settings.md has them, here in small letters and without TOCSIN_",
            )
        settings[name] = value
    return settings


def lock_state(state: Path) -> None:
    """Make the state folder this process's own.

    Raises:
        ConflictError: ``state_in_use``.
    """
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
