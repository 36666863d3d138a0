"""A system of processes on this machine: the embedded broker, and routers that are the real service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from _agents import DOMAIN, FleetOptions
from _fleet import READY_TIMEOUT_S, Fleet, fleet_on

from tocsin.bus import Broker
from tocsin.cli.authority import issue_service
from tocsin.cli.supervisor import Child, Supervisor
from tocsin.contracts.catalogue import PING
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import PingRequest
from tocsin.crypto import Authority


@dataclass(frozen=True, slots=True)
class Routers:
    """Router processes that run. Make them with :meth:`Embedded.routers`."""

    names: tuple[str, ...]
    """Their instances."""
    supervisor: Supervisor

    @property
    def first(self) -> Child:
        """The first of them."""
        return self.supervisor.children[f"router-{self.names[0]}"]

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [child.process.pid for child in self.supervisor.children.values() if child.process is not None]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The running system. Make it with :func:`embedded`."""

    fleet: Fleet
    broker: Broker

    @asynccontextmanager
    async def routers(self, count: int) -> AsyncIterator[Routers]:
        """Start routers, wait until each has answered a ping, and end them afterwards."""
        routers = Routers(tuple(map(str, range(count))), Supervisor(self.fleet.folder / "logs"))
        try:
            for name in routers.names:
                self._start(routers.supervisor, name)
            await self.answering(routers)
            yield routers
            await routers.supervisor.stop()
        finally:
            routers.supervisor.kill()

    def _start(self, supervisor: Supervisor, name: str) -> None:
        backend = self.fleet.options.backend
        folder = self.fleet.folder / "credentials" / f"router-{name}"
        issue_service(self.fleet.root, ServiceName.ROUTER, name, folder, backend=backend)
        supervisor.start(
            f"router-{name}",
            "tocsin.router",
            nats_url=self.broker.url,
            nats_token_file=str(self.broker.token_file),
            credentials_dir=str(folder),
            instance=name,
            signature_backend=backend.name,
            log_level="warning",
        )

    async def answering(self, routers: Routers) -> None:
        """Wait until each router has answered a ping.

        Raises:
            UnavailableError: ``child_ended``, or ``not_ready`` in time.
        """
        answered: set[str] = set()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while missing := set(routers.names) - answered:
            routers.supervisor.check()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"router {', '.join(sorted(missing))} does not answer", reason="not_ready"
                )
            try:
                # The instances share the requests, so whoever is ready answers one sooner or later.
                pong = await self.fleet.bus.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=1.0)
                answered.add(pong.name)
            except UnavailableError:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def embedded(options: FleetOptions, folder: Path) -> AsyncIterator[Embedded]:
    """Start a broker in ``folder`` and connect to it; end it afterwards, whatever happens."""
    root = Authority.create_root(DOMAIN, now=datetime.now(UTC), backend=options.backend)
    broker = Broker.start(folder / "broker")
    try:
        async with fleet_on(broker.url, broker.token_file, options, folder, root) as fleet:
            yield Embedded(fleet, broker)
    finally:
        broker.stop()
