"""What tests of hosts and of fleet share: an intermediate authority, tokens, a fleet service, hosts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from support import DOMAIN, World

from tocsin.agent import Agent, AgentHost, Context, HostSettings
from tocsin.bus import Bus, Credentials
from tocsin.bus.accounts import system_password
from tocsin.bus.enrolment import IssuedToken
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.decisions import DecisionAnnounced
from tocsin.contracts.fleet import AgentSpec
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.routing import Discovery, ThreatAlert
from tocsin.fleet.service import FleetService
from tocsin.fleet.settings import FleetSettings
from tocsin.telemetry import Metrics


class Recorder(Agent):
    """Keeps what it is told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.alerts: list[tuple[ThreatAlert, Context]] = []
        self.tasks: list[object] = []
        self.discoveries: list[Discovery] = []
        self.decisions: list[DecisionAnnounced] = []
        self.assessments: list[AssessmentMade] = []
        self.life: list[str] = []

    async def started(self) -> None:
        self.life.append("started")

    async def stopping(self) -> None:
        self.life.append("stopping")

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        self.alerts.append((alert, context))

    async def on_task(self, content: object, _: Context) -> None:
        self.tasks.append(content)

    async def on_discovery(self, discovery: Discovery, _: Context) -> None:
        self.discoveries.append(discovery)

    async def on_decision(self, announced: DecisionAnnounced, _: Context) -> None:
        self.decisions.append(announced)

    async def on_assessment(self, made: AssessmentMade, _: Context) -> None:
        self.assessments.append(made)


def recorder(role: Role, name: str) -> Recorder:
    """Make a recorder of a role."""
    agent_class: type[Recorder] = type(f"{role.value}Recorder", (Recorder,), {"role": role})
    return agent_class(name)


def token(
    host: str, agents: Sequence[tuple[str, Role]], *, number: int = 0, names_host: bool = True
) -> IssuedToken:
    """Make a token; its secret follows from its id."""
    return IssuedToken(
        token_id=f"{host}-{number}",
        secret_hex=f"{host}-{number}".encode().hex().ljust(64, "0"),
        names_host=names_host,
        host=host,
        agents=tuple(AgentSpec(name=name, role=role) for name, role in agents),
    )


def tokens_for(host: str, agents: Sequence[tuple[str, Role]]) -> list[IssuedToken]:
    """Make a host's tokens as an installation does: one for the host, one for each admin."""
    ordinary = [agent for agent in agents if agent[1] is not Role.ADMIN]
    admins = [agent for agent in agents if agent[1] is Role.ADMIN]
    return [
        token(host, ordinary),
        *(token(host, [admin], number=n + 1, names_host=False) for n, admin in enumerate(admins)),
    ]


@dataclass
class FleetWorld:
    """A world with a fleet service, and hosts that can enrol there."""

    world: World
    tokens: list[IssuedToken]
    folder: Path
    credentials: Credentials | None = None
    """Fleet's own, the same at each start, as an installation keeps them."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start_fleet(self, **settings: Any) -> FleetService:
        """Start the fleet service; its authority is made on first use."""
        authority_dir = self.folder / "ca"
        if not (authority_dir / "fleet.key").exists():
            self.world.authority.issue_intermediate("fleet", now=datetime.now(UTC)).save(authority_dir, "fleet")
        tokens_file = self.folder / "tokens.json"
        tokens_file.write_text(json.dumps([one.model_dump(mode="json") for one in self.tokens]))
        values = self.world.settings().model_dump() | {
            "authority_dir": authority_dir,
            "tokens_file": tokens_file,
            "nats_system_token_file": system_password(self.world.broker.folder),
            **settings,
        }
        if self.credentials is None:
            self.credentials = self.world.credentials(SpiffeId.service(DOMAIN, ServiceName.FLEET, "0"))
        bus = await self.world.bus(credentials=self.credentials)
        service = FleetService(bus, FleetSettings(**values))
        await service.start()
        self.stack.push_async_callback(service.stop)
        return service

    def host_settings(self, host: str, agents: Sequence[tuple[str, Role]], **settings: Any) -> HostSettings:
        """Write a host's files and return its settings."""
        folder = self.folder / "hosts" / host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.pem").write_bytes(self.world.authority.certificate_pem)
        mine = [one for one in self.tokens if one.host == host]
        held = [
            one.model_dump(mode="json", exclude={"withdrawn_ns"})
            | {"agents": [agent.name for agent in one.agents]}
            for one in mine
        ]
        (folder / "tokens.json").write_text(json.dumps(held))
        values = self.world.settings().model_dump() | {
            "credentials_dir": folder,
            "enrol_tokens_file": folder / "tokens.json",
            "state_dir": folder / "state",
            "host_name": host,
            "host_agents": ",".join(f"{name}:{role.value}" for name, role in agents),
            "enrol_timeout_s": 10,
            "heartbeat_s": 0.1,
            **settings,
        }
        return HostSettings(**values)

    def make_host(
        self,
        host: str,
        agents: Sequence[tuple[str, Role]],
        make: Callable[[Role, str], Agent] = recorder,
        **settings: Any,
    ) -> AgentHost:
        """Make a host, not started."""
        return AgentHost(self.host_settings(host, agents, **settings), make, Metrics())

    async def start_host(
        self,
        host: str,
        agents: Sequence[tuple[str, Role]],
        make: Callable[[Role, str], Agent] = recorder,
        **settings: Any,
    ) -> AgentHost:
        """Start a host; it ends with this world."""
        return await self.stack.enter_async_context(self.make_host(host, agents, make, **settings))

    async def router(self) -> Bus:
        """Open a bus as the router, which tests forward by."""
        return await self.world.service(ServiceName.ROUTER)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(20):
            await self.stack.aclose()


def agent_id(role: Role, name: str) -> SpiffeId:
    """Return an agent's id in the tests' domain."""
    return SpiffeId.agent(DOMAIN, role, name)
