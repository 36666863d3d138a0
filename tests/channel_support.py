"""Two hosts whose agents talk in channels: what tests of channels share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet_support import FleetWorld, Recorder, tokens_for
from support import World, eventually

from tocsin.agent import Agent, AgentHost
from tocsin.contracts.base import Message
from tocsin.contracts.identifiers import Role, SpiffeId


class Talker(Recorder):
    """Keeps what it is told in channels."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.heard: list[tuple[bytes | Message, str]] = []

    async def on_channel(self, data: bytes | Message, peer: SpiffeId) -> None:
        self.heard.append((data, peer.name))


def talker(role: Role, name: str) -> Agent:
    agent_class: type[Talker] = type(f"{role.value}Talker", (Talker,), {"role": role})
    return agent_class(name)


HOSTS = {
    "east": [("hunter-01", Role.HUNTER), ("admin-01", Role.ADMIN)],
    "west": [("hunter-02", Role.HUNTER), ("analyst-01", Role.ANALYST)],
}


class Pair:
    """A fleet of two hosts."""

    def __init__(self, fleet: FleetWorld, **settings: Any) -> None:
        self.fleet = fleet
        self.settings = settings
        self.hosts: dict[str, AgentHost] = {}

    async def start(self, *names: str) -> None:
        for name in names or HOSTS:
            self.hosts[name] = await self.fleet.start_host(name, HOSTS[name], talker, **self.settings)
        known = sum(len(HOSTS[name]) for name in self.hosts)
        await eventually(lambda: all(len(h.peers_known._agents) >= known for h in self.hosts.values()))

    def agent(self, name: str) -> Talker:
        found = next(host.agents[name] for host in self.hosts.values() if name in host.agents)
        assert isinstance(found, Talker)
        return found


async def fleet_of(world: World, folder: Path) -> FleetWorld:
    fleet = FleetWorld(world, [one for name in HOSTS for one in tokens_for(name, HOSTS[name])], folder)
    await fleet.start_fleet()
    return fleet
