"""The channels along a mission's topology: open before they are used, over several hosts, and closed at its end."""

from __future__ import annotations

import asyncio

from missions_support import System, start, system, until_ended
from support import World, eventually

from tocsin.agent import AgentHost
from tocsin.agent.mesh import links
from tocsin.contracts.catalogue import FLEET_MISSION
from tocsin.contracts.missions import MissionQuestion, MissionView, Objective


def objectives() -> list[Objective]:
    return [Objective(name=f"o-{number}", work=0.1) for number in range(4)]


async def view(one: System, mission: str) -> MissionView:
    return await one.cli.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=5)


def channels(hosts: dict[str, AgentHost]) -> dict[tuple[str, str], int]:
    """Return the channels that have keys, and how many handshakes each has cost, by agent and peer."""
    return {
        (name, link.peer.name): link.handshakes
        for host in hosts.values()
        for name in host.agents
        for link in host.channels.desk(name).book
        if link.current is not None
    }


async def until_open(one: System, mission: str) -> MissionView:
    async with asyncio.timeout(20):
        while True:
            seen = await view(one, mission)
            if seen.links is not None and seen.links.open == seen.record.topology.links:
                return seen
            await asyncio.sleep(0.05)


async def test_all_links_are_open_before_anybody_uses_them_and_closed_when_it_ends(world: World) -> None:
    async with system(world) as one:
        mission = await start(one.cli, *objectives())
        seen = await until_open(one, mission)
        wanted = links(seen.record.topology)
        assert seen.links is not None
        assert (seen.links.wanted, seen.links.failed) == (len(wanted), ())
        both = {*wanted, *((peer, name) for name, peer in wanted)}
        await eventually(lambda: set(channels(one.hosts)) == both)
        before = channels(one.hosts)
        name, peer = wanted[0]
        host = next(host for host in one.hosts.values() if name in host.agents)
        await (await host.agents[name].channel(peer)).send(b"along a link")
        assert channels(one.hosts)[name, peer] == before[name, peer]
        one.script.released.add("*")
        await until_ended(one.cli, mission)
        await eventually(lambda: not channels(one.hosts))


async def test_a_channel_that_agents_had_before_stays(world: World) -> None:
    async with system(world) as one:
        host = one.hosts["h1"]
        await host.agents["hunter-01"].channel("hunter-02")
        mission = await start(one.cli, *objectives())
        await until_open(one, mission)
        one.script.released.add("*")
        await until_ended(one.cli, mission)
        await eventually(
            lambda: set(channels(one.hosts)) == {("hunter-01", "hunter-02"), ("hunter-02", "hunter-01")}
        )


async def test_a_mission_can_do_without(world: World) -> None:
    async with system(world) as one:
        mission = await start(one.cli, *objectives(), channels=False)
        await eventually(lambda: len(one.script.begun) == 4)
        assert (await view(one, mission)).links is None
        assert not channels(one.hosts)
