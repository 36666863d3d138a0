"""Quarantine over a real broker: what an agent in it hears and says, who can put it there, and what does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from council import ballot_body
from fleet_support import FleetWorld, Recorder, agent_id, tokens_for
from router_support import Outside, running_router
from support import DOMAIN, World, eventually

from tocsin.agent import AgentHost
from tocsin.bus import Bus
from tocsin.bus.roster import read_roster
from tocsin.cli.installation import Installation
from tocsin.cli.revoke import revoke
from tocsin.cli.system import System
from tocsin.contracts.catalogue import (
    AUDIT,
    AUDIT_EQUIVOCATION,
    AUDIT_REJECTED,
    BALLOT,
    COORDINATION,
    FLEET_STANDING,
    HEARTBEAT,
    HEARTBEAT_TYPE,
    INTELLIGENCE,
    ROUTE,
    STANDINGS,
    THREAT_ALERT,
)
from tocsin.contracts.decisions import Equivocation
from tocsin.contracts.errors import DeniedError, InvalidInputError, UnavailableError
from tocsin.contracts.fleet import AgentState, Heartbeat
from tocsin.contracts.health import Standing, StandingAction, StandingDone, StandingOrder
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.observations import Observations
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.contracts.revocations import RevocationReason
from tocsin.contracts.routing import Coordination, Intelligence, ThreatAlert
from tocsin.fleet.service import FleetService
from tocsin.router.service import RouterService

H1 = [("sentinel-01", Role.SENTINEL), ("guardian-01", Role.GUARDIAN)]
H2 = [("hunter-01", Role.HUNTER)]
H3 = [("hunter-02", Role.HUNTER)]
HIGH = ThreatAlert(severity=Severity.HIGH, summary="smoke")
WORK = Coordination(content=Observations(source="eve", sequence=1))
QUARANTINE, RELEASE = StandingAction.QUARANTINE, StandingAction.RELEASE


@dataclass
class Scene:
    fleet: FleetWorld
    service: FleetService
    router: RouterService
    hosts: dict[str, AgentHost]
    cli: Bus

    def state(self, name: str) -> AgentState | None:
        return self.service.book.state(name, now_ns=time.time_ns())

    def agent(self, name: str) -> Recorder:
        found = next(host.agents[name] for host in self.hosts.values() if name in host.agents)
        assert isinstance(found, Recorder)
        return found

    async def order(self, action: StandingAction, *names: str) -> StandingDone:
        order = StandingOrder(action=action, agents=names, why="a test")
        return await self.cli.request(FLEET_STANDING, order, timeout_s=5)

    async def known(self, name: str, *, quarantined: bool) -> None:
        """Wait until everybody knows of it."""
        buses = [self.service.bus, self.router.bus, *(host._bus for host in self.hosts.values())]
        await eventually(lambda: all(bus.standings.is_quarantined(name) is quarantined for bus in buses))

    def claims(self, reason: str) -> float:
        return self.service.metrics.counter(f"claims.{reason}")


@asynccontextmanager
async def scene_at(world: World) -> AsyncIterator[Scene]:
    named = {"h1": H1, "h2": H2, "h3": H3}
    tokens = [t for host, agents in named.items() for t in tokens_for(host, agents)]
    async with FleetWorld(world, tokens, world.folder) as fleet, running_router(world) as router:
        service = await fleet.start_fleet()
        started = await asyncio.gather(*(fleet.start_host(host, agents) for host, agents in named.items()))
        hosts = dict(zip(named, started, strict=True))
        names = [name for agents in named.values() for name, _ in agents]
        cli = await world.service(ServiceName.CLI)
        scene = Scene(fleet, service, router, hosts, cli)
        await eventually(lambda: all(scene.state(name) is AgentState.HEALTHY for name in names))
        await eventually(lambda: all(len(host._sealing_keys.of("all")) == 3 for host in started))
        yield scene


async def test_a_quarantined_agent_is_told_nothing_sensitive_and_is_not_listened_to(world: World) -> None:
    async with scene_at(world) as scene:
        outside = await Outside.of(world)
        assert (await scene.order(QUARANTINE, "hunter-01")).changed == ("hunter-01",)
        assert (await scene.order(QUARANTINE, "hunter-01")).unchanged == ("hunter-01",)
        await scene.known("hunter-01", quarantined=True)
        assert scene.state("hunter-01") is AgentState.QUARANTINED
        sentinel, hunter = scene.agent("sentinel-01"), scene.agent("hunter-01")
        # It says something: the router refuses it, and whoever would get it past the router.
        await hunter.send(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH)
        await eventually(lambda: scene.router.metrics.counter("rejected.quarantined") >= 1)
        bus = scene.hosts["h2"]._bus
        made = await bus.make(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH, sender=hunter.id)
        await bus.connection.publish("tocsin.v1.deliver.all", made.data)
        await eventually(lambda: scene.hosts["h1"].metrics.counter("rejected.quarantined") >= 1)
        assert not sentinel.alerts
        await eventually(lambda: any(one.reason == "quarantined" for one in outside.audited))
        # It is told nothing sensitive: by name not at all, by its role only the others.
        await sentinel.send(COORDINATION, WORK, audience="agent.hunter-01")
        await eventually(lambda: any(one.reason == "recipient_quarantined" for one in outside.refusals))
        await sentinel.send(COORDINATION, WORK, audience="role.hunter")
        await eventually(lambda: len(scene.agent("hunter-02").tasks) == 1)
        await eventually(lambda: scene.hosts["h2"].metrics.counter("withheld.quarantined") >= 1)
        assert not hunter.tasks
        assert scene.hosts["h1"].peers(Role.HUNTER) == ("hunter-02",)
        # Nobody seals to it.
        keys = scene.hosts["h1"]._sealing_keys
        assert len(keys.of("role.hunter")) == 1
        with pytest.raises(UnavailableError) as caught:
            await sentinel.send(
                INTELLIGENCE, Intelligence(summary="s"), audience="agent.hunter-01", sealed=True
            )
        assert caught.value.reason == "no_sealing_key"
        # Its heartbeats are still heard, and change nothing.
        seen = scene.service.book.entry("hunter-01", now_ns=0, score=0)
        await eventually(
            lambda: (
                scene.service.book.entry("hunter-01", now_ns=0, score=0).last_seen_ns > seen.last_seen_ns  # type: ignore[union-attr,operator]
            )
        )
        assert scene.state("hunter-01") is AgentState.QUARANTINED
        # Released, it is one of all again.
        assert (await scene.order(RELEASE, "hunter-01")).changed == ("hunter-01",)
        await scene.known("hunter-01", quarantined=False)
        await eventually(lambda: scene.state("hunter-01") is AgentState.HEALTHY)
        await hunter.send(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH)
        await eventually(lambda: len(sentinel.alerts) == 1)
        with pytest.raises(InvalidInputError) as refused:
            await scene.order(QUARANTINE, "hunter-01", "nobody")
        assert refused.value.reason == "no_such_agent"
        assert scene.state("hunter-01") is AgentState.HEALTHY


async def test_a_router_seals_nothing_to_a_key_that_a_quarantined_agent_can_use(world: World) -> None:
    async with scene_at(world) as scene:
        outside = await Outside.of(world)
        sentinel = scene.agent("sentinel-01")
        keys = scene.hosts["h1"]._sealing_keys.of("agent.hunter-01")
        await scene.order(QUARANTINE, "hunter-01")
        await scene.known("hunter-01", quarantined=True)
        await scene.hosts["h1"]._bus.publish(
            ROUTE,
            INTELLIGENCE,
            Intelligence(summary="s"),
            audience="role.hunter",
            sender=sentinel.id,
            seal_to=keys,
            at={"type": "intelligence", "priority": "normal", "agent": "sentinel-01"},
        )
        await eventually(lambda: any(one.reason == "recipient_quarantined" for one in outside.refusals))


async def test_a_quarantined_agent_has_no_seat_in_the_next_epoch(world: World, tmp_path: Path) -> None:
    async with scene_at(world) as scene:
        await scene.order(QUARANTINE, "hunter-01")
        await scene.known("hunter-01", quarantined=True)
        await eventually(lambda: scene.state("hunter-01") is AgentState.QUARANTINED)
        system = System(Installation(tmp_path, world.authority.certificate_pem), (), world.broker.url)
        seats = system._seats(scene.cli, await read_roster(scene.cli, timeout_s=5))
        assert {who.name for who, _, _ in seats} == {"sentinel-01", "guardian-01", "hunter-02"}


async def test_a_restarted_fleet_and_a_late_router_know_who_is_quarantined(world: World) -> None:
    async with scene_at(world) as scene:
        await scene.order(QUARANTINE, "hunter-01")
        await scene.known("hunter-01", quarantined=True)
        await scene.service.stop()
        again = await scene.fleet.start_fleet()
        await eventually(lambda: again.book.state("hunter-01", now_ns=time.time_ns()) is AgentState.QUARANTINED)
        standing = again.standing.of("hunter-01")
        assert standing is not None
        assert (standing.by, standing.why) == ("service.cli.0", "a test")
        async with running_router(world, "1") as late:
            assert late.bus.standings.is_quarantined("hunter-01")


async def test_who_breaks_the_policy_again_and_again_is_quarantined(world: World) -> None:
    async with scene_at(world) as scene:
        gone: list[str] = []
        scene.service.on_gone.append(gone.extend)
        canary = scene.agent("guardian-01")
        async with asyncio.timeout(30):
            while scene.state("guardian-01") is not AgentState.QUARANTINED:
                # A guardian produces no observations. A router tells of one sender's refusals a few times a second.
                await canary.send(COORDINATION, WORK, audience="role.hunter")
                await asyncio.sleep(0.1)
        assert scene.claims("content_not_allowed") >= 5
        assert gone == ["guardian-01"]
        # Its neighbour on the same host has done nothing.
        assert scene.state("sentinel-01") is AgentState.HEALTHY


async def accuse(bus: Bus, key_id: bytes, reason: str, *, count: int = 1000) -> None:
    body = RejectedEnvelope(
        by=bus.id.token,
        reason=reason,
        subject="tocsin.v1.deliver.all",
        claimed_key_id=key_id,
        count=count,
    )
    await bus.publish(AUDIT, AUDIT_REJECTED, body, at={"kind": "rejected"})


async def test_fewer_than_a_third_cannot_talk_an_honest_agent_down_and_nobody_by_bad_signatures(
    world: World,
) -> None:
    async with scene_at(world) as scene:
        record = scene.service.book.record("hunter-01")
        assert record is not None
        others = [await world.bus(SpiffeId.host(DOMAIN, f"x{n}")) for n in range(3)]
        population = scene.service.standing.population
        # Three honest hosts, and three that are about to lie.
        await eventually(lambda: population.sizes(now_ns=time.time_ns()).get("host") == 6)
        # What proves nothing: anybody can sign badly in anybody's name.
        for liar in others:
            await accuse(liar, record.key_id, "bad_signature")
        await eventually(lambda: scene.claims("bad_signature") >= 3)
        assert scene.service.standing.score("hunter-01") >= 80
        assert scene.state("hunter-01") is AgentState.HEALTHY
        # Two of six are not more than a third.
        for liar in others[:2]:
            for reason in ("sender_not_allowed", "bad_body", "not_itself"):
                await accuse(liar, record.key_id, reason)
        await eventually(lambda: scene.claims("not_itself") >= 2)
        assert scene.service.standing.score("hunter-01") >= 80
        # Who cannot know is not listened to, nor is a report in another's name.
        monitor = await world.service(ServiceName.MONITOR)
        await accuse(monitor, record.key_id, "sender_not_allowed")
        await accuse(scene.hosts["h2"]._bus, record.key_id, "sender_not_allowed")
        # Three of six are.
        await accuse(others[2], record.key_id, "sender_not_allowed")
        await eventually(lambda: scene.state("hunter-01") is AgentState.QUARANTINED)
        assert scene.claims("sender_not_allowed") == 3


async def test_two_ballots_for_one_round_are_proof_and_half_a_proof_is_none(world: World) -> None:
    async with scene_at(world) as scene:
        consensus = await world.service(ServiceName.CONSENSUS)
        hunter = scene.agent("hunter-01")
        decision, epoch = b"d" * 32, b"e" * 32

        async def ballot(host: str, who: SpiffeId, option: int) -> bytes:
            body = ballot_body(epoch, decision, option)
            sent = await scene.hosts[host]._bus.make(BALLOT, body, audience="service.consensus", sender=who)
            return sent.data

        async def tell(first: bytes, second: bytes) -> None:
            proof = Equivocation(
                epoch=epoch, decision=decision, round=1, accused=str(hunter.id), first=first, second=second
            )
            await consensus.publish(AUDIT, AUDIT_EQUIVOCATION, proof, at={"kind": "equivocation"})

        mine, other = await ballot("h2", hunter.id, 0), await ballot("h2", hunter.id, 1)

        def refused(reason: str) -> float:
            return scene.service.metrics.counter(f"handler_refusals.{reason}")

        await tell(mine, mine)
        await tell(mine, await ballot("h2", hunter.id, 0))
        await eventually(lambda: refused("no_equivocation") == 2)
        await tell(mine, other[:-1] + bytes([other[-1] ^ 1]))
        await eventually(lambda: sum(map(refused, ("bad_signature", "malformed", "bad_inclusion_proof"))) == 1)
        # Another agent's ballot in its place.
        await tell(mine, await ballot("h3", agent_id(Role.HUNTER, "hunter-02"), 1))
        await eventually(lambda: refused("wrong_subject") == 1)
        assert scene.state("hunter-01") is AgentState.HEALTHY
        await tell(mine, other)
        await eventually(lambda: scene.state("hunter-01") is AgentState.QUARANTINED)
        assert scene.state("hunter-02") is AgentState.HEALTHY


async def test_a_forged_record_of_standing_quarantines_and_releases_nobody(world: World) -> None:
    async with scene_at(world) as scene:
        await scene.order(QUARANTINE, "hunter-01")
        await scene.known("hunter-01", quarantined=True)
        enemy = await world.service(ServiceName.ROUTER, "evil")
        standing = Standing(
            agent="hunter-02", quarantined=True, why="", by="x", since_ns=0, score=0, score_ns=0
        )
        with pytest.raises(DeniedError):
            await enemy.records(STANDINGS).put("hunter-02", standing)
        kv = await enemy.connection.js.key_value(STANDINGS.name)
        genuine = await kv.get("hunter-01")
        assert genuine.value is not None
        await kv.put("hunter-02", genuine.value)
        await kv.put("hunter-01", b"garbage")
        await kv.delete("hunter-01")
        host = scene.hosts["h1"]
        await eventually(lambda: host.metrics.counter("rejected.moved_record") >= 1)
        await eventually(lambda: host.metrics.counter("rejected.malformed") >= 1)
        assert not host._bus.standings.is_quarantined("hunter-02")
        assert host._bus.standings.is_quarantined("hunter-01")
        assert scene.state("hunter-02") is AgentState.HEALTHY


async def test_a_heartbeat_for_an_agent_of_another_host_changes_nothing(world: World) -> None:
    async with scene_at(world) as scene:
        liar = await world.bus(SpiffeId.host(DOMAIN, "h9"))
        beat = Heartbeat(host="h9", agents=("hunter-01",), handled=0, failed=0)
        await scene.hosts["h2"].__aexit__(None, None, None)
        await eventually(lambda: scene.state("hunter-01") is AgentState.GONE)
        await liar.publish(HEARTBEAT, HEARTBEAT_TYPE, beat, at={"host": "h9"})
        await eventually(lambda: scene.service.metrics.counter("heartbeats_of_others") >= 1)
        assert scene.state("hunter-01") is AgentState.GONE


async def test_a_revoked_agent_that_goes_on_talking_stays_revoked(world: World, tmp_path: Path) -> None:
    async with scene_at(world) as scene:
        world.authority.save(tmp_path / "ca", "root")
        installation = Installation(tmp_path, world.authority.certificate_pem)
        await revoke(scene.cli, installation, "hunter-01", RevocationReason.COMPROMISED)
        await eventually(lambda: scene.state("hunter-01") is AgentState.REVOKED)
        await eventually(lambda: scene.service.metrics.counter("rejected.revoked") >= 2)  # its heartbeats
        assert scene.state("hunter-01") is AgentState.REVOKED
        with pytest.raises(InvalidInputError):
            await scene.order(RELEASE, "nobody")
        await scene.order(RELEASE, "hunter-01")
        assert scene.state("hunter-01") is AgentState.REVOKED
