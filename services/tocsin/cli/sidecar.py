"""The least Tocsin that watches logs: the embedded broker, fleet, router, and one host; or the host alone.

:class:`Sidecar` is an installation of its own in one state folder. :class:`Guest` is one host that joins a fleet that
runs elsewhere, with the folder that `tocsin agent invite` made for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tocsin.agent.settings import carried_agents
from tocsin.bus import Broker, Bus, provision
from tocsin.cli.fleetplan import PlannedAgent
from tocsin.cli.installation import Installation
from tocsin.cli.stack import INSTANCE, MODULES, Stack, StackOptions, lock_state
from tocsin.cli.supervisor import Supervisor
from tocsin.contracts.catalogue import PING
from tocsin.contracts.errors import ConflictError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.operations import PingRequest
from tocsin.telemetry import Metrics

HOST = "watch-1"
SERVICES = (ServiceName.FLEET, ServiceName.ROUTER)
"""Who certifies the agents, and who forwards what they say."""
OLD_BROKER_S = 15.0
READY_S = 60.0


def agents_of(*, sentinel_only: bool) -> tuple[PlannedAgent, ...]:
    """Return the agents of a sidecar."""
    roles = (Role.SENTINEL,) if sentinel_only else (Role.SENTINEL, Role.HUNTER, Role.ANALYST)
    return tuple(PlannedAgent(f"{role.value}-01", role, HOST) for role in roles)


class Sidecar(Stack):
    """An installation that does nothing but watch."""

    host_settings: Mapping[str, str]

    @classmethod
    async def begin(
        cls, options: StackOptions, agents: tuple[PlannedAgent, ...], host_settings: Mapping[str, str]
    ) -> Sidecar:
        """Start and set up the broker; nothing else runs yet.

        Raises:
            ConflictError: the state folder is of another version, or in use.
            UnavailableError: the broker does not come up.
        """
        installation = Installation.make(options.state, options.domain)
        lock_state(options.state)
        await _old_broker_gone(options.state / "broker")
        installation.certify(ServiceName.CLI, INSTANCE)
        broker = Broker.start(options.state / "broker", port=options.port, sync_always=True)
        try:
            sidecar = cls(installation, agents, broker.url, options, Supervisor(options.logs), broker)
            sidecar.host_settings = host_settings
            await provision(sidecar.bus_settings(), Metrics())
        except BaseException:
            broker.stop()
            raise
        return sidecar

    def start(self) -> None:
        """Start fleet, router and the host."""
        self.installation.add_hosts(self.agents)
        for service in SERVICES:
            self.installation.certify(service, INSTANCE)
            self.supervisor.start(service.value, MODULES[service], **self._service_settings(service, INSTANCE))
        self.supervisor.start(HOST, "tocsin.agent", **self._host_settings(HOST), **self.host_settings)

    async def wait_ready(self, bus: Bus) -> None:
        """Wait until the services answer and every agent is enrolled.

        Raises:
            UnavailableError: they do not in time, or one ended.
        """
        deadline = time.monotonic() + READY_S
        for service in SERVICES:
            while not await _answers(bus, service):
                self.check()
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{service.value} is not ready", reason="not_ready", advice=self.advice
                    )
                await asyncio.sleep(0.1)
        await self.wait_agents(bus, lambda *_: None)

    @property
    def host_state(self) -> Path:
        """What the host's agents write."""
        return self.installation.host(HOST) / "state"


async def _answers(bus: Bus, service: ServiceName) -> bool:
    try:
        await bus.request(PING[service], PingRequest(), timeout_s=1.0)
    except (UnavailableError, TimeoutError):
        return False
    return True


async def _old_broker_gone(folder: Path) -> None:
    """Wait for the broker of a run that was killed: the kernel ends it, but it takes a moment to close its files.

    Raises:
        ConflictError: ``state_in_use``.
    """
    deadline = time.monotonic() + OLD_BROKER_S
    while True:
        pids = [path.stem.rpartition("_")[2] for path in (folder / "ports").glob("*.ports")]
        if not any(pid.isdecimal() and _is_broker(int(pid)) for pid in pids):
            return
        if time.monotonic() > deadline:
            raise ConflictError(
                f"a broker still runs in {folder}",
                reason="state_in_use",
                advice="stop it, or use another --state",
            )
        await asyncio.sleep(0.05)


def _is_broker(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "nats-server" in process.name()
    except psutil.Error:
        return False


class Guest:
    """One host that joins a fleet elsewhere; its folder is the one that it was invited with."""

    def __init__(self, folder: Path, nats_url: str, host_settings: Mapping[str, str]) -> None:
        """Read the folder.

        Raises:
            UnavailableError: ``no_host_folder``.
            InvalidInputError: ``no_sentinel``: the host carries none.
        """
        env = folder / "env"
        try:
            settings = dict(line.partition("=")[::2] for line in env.read_text().splitlines())
        except OSError as error:
            raise UnavailableError(
                f"cannot read {env}: {error.strerror}",
                reason="no_host_folder",
                advice="make it with `tocsin agent invite` on the fleet's side",
            ) from error
        roles = {agent.role for agent in carried_agents(settings.get("TOCSIN_HOST_AGENTS", ""))}
        if Role.SENTINEL not in roles:
            raise InvalidInputError(
                f"the host of {folder} carries no sentinel",
                reason="no_sentinel",
                advice="invite it with NAME:sentinel among its agents",
            )
        self._env = env
        self._settings = {**host_settings, "nats_url": nats_url}
        self.host_state = Path(settings.get("TOCSIN_STATE_DIR", str(folder / "state")))
        self.supervisor = Supervisor(folder / "logs")

    def start(self) -> None:
        """Start the host."""
        self.supervisor.start("host", "tocsin.agent", settings_file=str(self._env), **self._settings)

    async def stop(self) -> None:
        """End it."""
        await self.supervisor.stop()


def log_settings(logs: Sequence[Path], *, from_end: bool) -> dict[str, str]:
    """Return the host's settings for what it is to follow.

    Raises:
        InvalidInputError: ``bad_path``: a path with a comma.
    """
    for path in logs:
        if "," in str(path):
            raise InvalidInputError(f"{path}: a path with a comma cannot be told to a host", reason="bad_path")
    return {
        "sentinel_logs": ",".join(map(str, logs)),
        "sentinel_from": "end" if from_end else "start",
    }
