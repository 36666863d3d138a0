"""Sealed bodies over a real broker: hosts, fleet and router as they run, and whoever would like to read along."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from fleet_support import FleetWorld, Recorder, agent_id, tokens_for
from support import World, eventually

from tocsin.agent import AgentHost, Context
from tocsin.bus import Bus
from tocsin.bus.envelope import Content, decode_content, decode_envelope, encode_body, encode_content
from tocsin.bus.sealing import SealingKeys, seal_content
from tocsin.contracts.catalogue import (
    COORDINATION,
    DELIVER_ROLE,
    EVENT,
    INTELLIGENCE,
    ROUTE,
    SEALING_KEYS,
    THREAT_ALERT,
)
from tocsin.contracts.errors import DeniedError, TocsinError, UnavailableError
from tocsin.contracts.fleet import SealingKeyRecord
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.observations import Observations
from tocsin.contracts.routing import Coordination, Intelligence, Refusal, ThreatAlert
from tocsin.crypto.keys import load_sealing_key
from tocsin.crypto.sealing import SealingKey, SealingPublicKey, parse_sealed
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

H1 = [("analyst-01", Role.ANALYST)]
H2 = [("hunter-01", Role.HUNTER), ("guardian-01", Role.GUARDIAN)]
H3 = [("hunter-02", Role.HUNTER)]
SECRET = Intelligence(summary="the attacker is the janitor")


class Confidant(Recorder):
    """Keeps what it is told in confidence."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.intelligence: list[Intelligence] = []
        self.sealed: list[int] = []

    async def on_intelligence(self, intelligence: Intelligence, context: Context) -> None:
        self.intelligence.append(intelligence)
        self.sealed.append(context.content.sealed)


def confidant(role: Role, name: str) -> Confidant:
    agent_class: type[Confidant] = type(f"{role.value}Confidant", (Confidant,), {"role": role})
    return agent_class(name)


def known(directory: SealingKeys, audience: str) -> set[bytes]:
    """Return the ids of the keys that an audience has, as far as is known yet."""
    try:
        return {key.id for key in directory.of(audience)}
    except UnavailableError:
        return set()


@dataclass
class Scene:
    """Three hosts that know each other's keys, a router, and somebody who listens everywhere."""

    fleet: FleetWorld
    router: RouterService
    hosts: dict[str, AgentHost]
    overheard: list[tuple[str, bytes]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def agent(self, name: str) -> Confidant:
        found = next(host.agents[name] for host in self.hosts.values() if name in host.agents)
        assert isinstance(found, Confidant)
        return found

    @property
    def analyst(self) -> Bus:
        """The bus of the analyst's host, which a test may make say what no honest host says."""
        return self.hosts["h1"]._bus

    def keys(self, audience: str) -> tuple[SealingPublicKey, ...]:
        return self.hosts["h1"]._sealing_keys.of(audience)

    async def content(self, *recipients: SealingPublicKey, audience: str = "role.hunter") -> Content:
        """Return the content of intelligence that the analyst has made for the recipients, not sent."""
        sent = await self.analyst.make(
            INTELLIGENCE,
            SECRET,
            audience=audience,
            sender=agent_id(Role.ANALYST, "analyst-01"),
            seal_to=recipients,
        )
        return decode_envelope(sent.data, max_bytes=INTELLIGENCE.max_bytes).content

    async def say(self, content: Content, subject: str) -> None:
        """Sign whatever the content says as the analyst, and put it on a subject."""
        data = await self.analyst._main_signer.envelope(encode_content(content), urgent=True)
        await self.analyst.connection.publish(subject, data)

    def refused_by(self, host: str, reason: str) -> float:
        return self.hosts[host].metrics.counter(f"rejected.{reason}")


@asynccontextmanager
async def scene_at(world: World) -> AsyncIterator[Scene]:
    named = {"h1": H1, "h2": H2, "h3": H3}
    fleet = FleetWorld(
        world, [t for host, agents in named.items() for t in tokens_for(host, agents)], world.folder
    )
    async with fleet:
        await fleet.start_fleet()
        values = world.settings().model_dump()
        router = RouterService(await fleet.router(), RouterSettings(**values))
        await router.start()
        fleet.stack.push_async_callback(router.stop)
        hosts = {host: await fleet.start_host(host, agents, confidant) for host, agents in named.items()}
        scene = Scene(fleet, router, hosts)
        await listen(world, scene)
        for directory in (router.sealing_keys, *(host._sealing_keys for host in hosts.values())):
            await eventually(lambda directory=directory: len(known(directory, "all")) == 3)  # type: ignore[misc]
        await eventually(lambda: router.metrics.counter("routed.discovery") == 4)
        await eventually(lambda: router.roster.role_of("hunter-02") is Role.HUNTER)
        yield scene


async def listen(world: World, scene: Scene) -> None:
    """Read along on the broker, and hear what the router refuses."""
    spy = await world.agent(Role.CANARY, "canary-01")

    async def overhear(message: object) -> None:
        scene.overheard.append((message.subject, message.data))  # type: ignore[attr-defined]

    for pattern in ("tocsin.v1.route.intelligence.>", "tocsin.v1.deliver.>"):
        await spy.connection.subscribe(pattern, overhear)
    monitor = await world.service(ServiceName.MONITOR)

    async def on_event(body: object, _: Context) -> None:
        if isinstance(body, Refusal):
            scene.refusals.append(body.reason)

    await monitor.subscribe(EVENT, on_event, at={"service": "router"})
    await spy.flush()


async def test_hunters_read_what_neither_the_router_nor_a_listener_can(world: World) -> None:
    async with scene_at(world) as scene:
        # A router that was captured, with a key of its own and all that a router knows.
        captured = await world.service(ServiceName.ROUTER, "captured")
        captured.opener.bodies.hold(SealingKey.generate())
        seen: list[object] = []

        async def read(body: object, _: Context) -> None:
            seen.append(body)

        await captured.subscribe(DELIVER_ROLE, read)
        sent = await scene.agent("analyst-01").send(INTELLIGENCE, SECRET, audience="role.hunter")
        hunters = [scene.agent("hunter-01"), scene.agent("hunter-02")]
        await eventually(lambda: all(hunter.intelligence == [SECRET] for hunter in hunters))
        assert [hunter.sealed for hunter in hunters] == [[1], [1]]
        assert scene.agent("guardian-01").intelligence == []
        assert scene.router.metrics.counter("routed.intelligence") == 1
        await eventually(lambda: captured.metrics.counter("rejected.not_a_recipient") == 1)
        assert seen == []
        assert [data for _, data in scene.overheard] == [sent.data, sent.data], "the sender's own bytes"
        assert SECRET.summary.encode() not in sent.data
        content = decode_envelope(sent.data, max_bytes=INTELLIGENCE.max_bytes).content
        assert set(parse_sealed(content.body).recipients) == {key.id for key in scene.keys("role.hunter")}


async def test_one_agent_is_sealed_to_alone(world: World) -> None:
    async with scene_at(world) as scene:
        await scene.agent("analyst-01").send(INTELLIGENCE, SECRET, audience="agent.hunter-02")
        await eventually(lambda: scene.agent("hunter-02").intelligence == [SECRET])
        (_, data), _ = scene.overheard
        body = decode_envelope(data, max_bytes=INTELLIGENCE.max_bytes).content.body
        assert len(parse_sealed(body).recipients) == 1
        assert scene.agent("hunter-01").intelligence == []


@dataclass(frozen=True)
class Bent:
    """What a sender that is captured, or a router with its key, could make of a sealed message."""

    reason: str
    bend: Callable[[Content, Content], Content]
    """Of a message to both hunters, and another one."""


def _strip(content: Content) -> Content:
    sealed = parse_sealed(content.body)
    one = b"\x01\x01" + sealed.commitment + sealed.recipients[0] + sealed.wraps[0]
    return content._replace(body=one + sealed.ciphertext)


def _flip(content: Content, at: int) -> Content:
    body = bytearray(content.body)
    body[at] ^= 1
    return content._replace(body=bytes(body))


BENT = [
    Bent("bad_ciphertext", lambda made, _: _flip(made, -1)),
    Bent("bad_commitment", lambda made, _: _flip(made, 2)),
    Bent("bad_wrap", lambda made, _: _strip(made)),
    Bent("bad_wrap", lambda made, other: other._replace(body=made.body)),
    Bent("bad_wrap", lambda made, _: made._replace(priority=2)),
    Bent("bad_seal", lambda made, _: made._replace(body=made.body[:100])),
    Bent("not_sealed", lambda made, _: made._replace(sealed=0, body=encode_body(SECRET))),
]


@pytest.mark.parametrize("bent", BENT, ids=lambda bent: bent.reason)
async def test_what_was_tampered_with_is_refused_with_its_reason(world: World, bent: Bent) -> None:
    async with scene_at(world) as scene:
        both = scene.keys("role.hunter")
        made, other = await scene.content(*both), await scene.content(*both)
        await scene.say(bent.bend(made, other), DELIVER_ROLE.at(role="hunter"))
        await eventually(lambda: scene.refused_by("h2", bent.reason) + scene.refused_by("h3", bent.reason) >= 1)
        good = await scene.content(*both)
        await scene.say(good, DELIVER_ROLE.at(role="hunter"))
        await eventually(lambda: scene.agent("hunter-01").intelligence == [SECRET])


async def test_the_router_refuses_what_is_open_or_sealed_to_somebody_who_is_not_cleared(world: World) -> None:
    async with scene_at(world) as scene:
        analyst = scene.agent("analyst-01")
        where = ROUTE.at(type="intelligence", priority="normal", agent="analyst-01")
        hunters, router = scene.keys("role.hunter"), scene.router.metrics
        made = await scene.content(*hunters)
        await scene.say(made._replace(sealed=0, body=encode_body(SECRET)), where)
        await eventually(lambda: router.counter("rejected.not_sealed") == 1)
        await scene.say(made._replace(body=b"\x01\x00"), where)
        await eventually(lambda: router.counter("rejected.bad_seal") == 1)
        spare = SealingKey.generate()
        await scene.say(await scene.content(*hunters, spare.public), where)
        await eventually(lambda: scene.refusals == ["recipient_not_cleared"])
        await scene.say(await scene.content(*hunters, audience="role.canary"), where)
        await eventually(lambda: scene.refusals[1:] == ["no_need_to_know"])
        with pytest.raises(DeniedError) as refused:
            await analyst.send(INTELLIGENCE, SECRET, audience="role.guardian")
        assert refused.value.reason == "no_need_to_know"
        with pytest.raises(UnavailableError) as nobody:
            await analyst.send(INTELLIGENCE, SECRET, audience="role.specialist")
        assert nobody.value.reason == "no_sealing_key"
        assert router.counter("routed.intelligence") == 0


async def test_any_type_is_sealed_on_request(world: World) -> None:
    async with scene_at(world) as scene:
        alert = ThreatAlert(severity=Severity.HIGH, summary="quietly now")
        hunter = scene.agent("hunter-01")
        sent = await scene.agent("analyst-01").send(
            THREAT_ALERT, alert, audience="agent.hunter-01", priority=Priority.HIGH, sealed=True
        )
        await eventually(lambda: [got for got, _ in hunter.alerts] == [alert])
        assert b"quietly now" not in sent.data
        assert hunter.alerts[0][1].content.sealed == 1
        assert scene.agent("hunter-02").alerts == []


async def test_nobody_puts_a_key_under_anothers_name(world: World) -> None:
    async with scene_at(world) as scene:
        canary = await world.agent(Role.CANARY, "canary-02")
        before = {key.id for key in scene.keys("role.hunter")}
        mine = SealingKeyRecord(public_key=(stolen := SealingKey.generate()).public.raw)
        # Under the token of the hunters' host, and under its own.
        await canary.records(SEALING_KEYS).put("host.h2", mine)
        await canary.records(SEALING_KEYS).put(canary.id.token, mine)
        await eventually(lambda: scene.refused_by("h1", "not_its_record") == 1)
        await eventually(lambda: scene.router.sealing_keys.roles_of(stolen.public.id) == {Role.CANARY})
        analyst = scene.hosts["h1"]._sealing_keys
        await eventually(lambda: known(analyst, "agent.canary-02") == {stolen.public.id})
        assert {key.id for key in scene.keys("role.hunter")} == before
        # Somebody who claims a hunter's key takes nothing away from the hunter.
        theirs = SealingKeyRecord(public_key=scene.keys("role.hunter")[0].raw)
        await canary.records(SEALING_KEYS).change(canary.id.token, lambda _: theirs)
        shared = scene.keys("role.hunter")[0].id
        await eventually(lambda: Role.CANARY in scene.router.sealing_keys.roles_of(shared))
        assert Role.HUNTER in scene.router.sealing_keys.roles_of(shared)
        assert scene.router.sealing_keys.roles_of(stolen.public.id) == {Role.CANARY}, "the one before, too"
        fresh = SealingKeyRecord(public_key=SealingKey.generate().public.raw)
        await canary.records(SEALING_KEYS).change(canary.id.token, lambda _: fresh)
        await eventually(lambda: not scene.router.sealing_keys.roles_of(stolen.public.id))
        await scene.agent("analyst-01").send(INTELLIGENCE, SECRET, audience="role.hunter")
        await eventually(lambda: scene.agent("hunter-01").intelligence == [SECRET])
        # A process that starts now finds the forgery where h2's record was; h2's next start puts that right.
        late = SealingKeys(await world.agent(Role.ANALYST, "analyst-09"))
        await late.follow()
        assert len(late.of("role.hunter")) == 1


async def test_a_key_survives_a_restart_and_the_one_before_still_opens(world: World) -> None:
    async with FleetWorld(world, tokens_for("h2", H2), world.folder) as fleet:
        await fleet.start_fleet()
        sender = await world.agent(Role.ANALYST, "analyst-01")
        keys = SealingKeys(sender)
        await keys.follow()
        identity = fleet.folder / "hosts" / "h2" / "state" / "identity"

        async def key_of_a_run() -> SealingPublicKey:
            host = fleet.make_host("h2", H2, confidant)
            async with host:
                hunter = host.agents["hunter-01"]
                assert isinstance(hunter, Confidant)
                held = load_sealing_key(identity / "host.sealing").public
                await eventually(lambda: known(keys, "role.hunter") == {held.id})
                for number, one in enumerate(dict.fromkeys((*seen, held)), 1):
                    await sender.publish(
                        DELIVER_ROLE,
                        INTELLIGENCE,
                        SECRET,
                        audience="role.hunter",
                        seal_to=[one],
                        at={"role": "hunter"},
                    )
                    await eventually(lambda number=number: len(hunter.intelligence) == number)  # type: ignore[misc]
            return held

        seen: list[SealingPublicKey] = []
        seen.append(await key_of_a_run())
        assert stat.S_IMODE((identity / "host.sealing").stat().st_mode) == 0o600
        assert (await key_of_a_run()).id == seen[0].id
        (identity / "host.sealing").rename(identity / "host.previous.sealing")
        assert (await key_of_a_run()).id != seen[0].id


async def test_what_goes_by_no_router_is_sealed_on_request(world: World) -> None:
    """Any live or stored type, by whoever publishes; here one that may travel open too."""
    sender = await world.agent(Role.HUNTER, "hunter-01")
    reader = await world.agent(Role.ANALYST, "analyst-01")
    key = SealingKey.generate()
    reader.opener.bodies.hold(key)
    got: list[object] = []

    async def take(body: object, _: Context) -> None:
        got.append(body)

    await reader.subscribe(DELIVER_ROLE, take, at={"role": "analyst"})
    work = Coordination(content=Observations(source="x", sequence=7))
    for seal_to in (None, [key.public]):
        await sender.publish(
            DELIVER_ROLE, COORDINATION, work, audience="role.analyst", seal_to=seal_to, at={"role": "analyst"}
        )
    await eventually(lambda: got == [work, work])
    with pytest.raises(TocsinError) as caught:
        await sender.publish(
            DELIVER_ROLE, INTELLIGENCE, SECRET, audience="role.analyst", at={"role": "analyst"}
        )
    assert caught.value.reason == "not_sealed"


def test_a_contents_head_is_what_comes_before_its_body() -> None:
    content = Content(bytes(16), "t", 1, "s", "a", 1, 1, None, None, 1, b"")
    for size in (0, 255, 256, 65_535, 65_536):
        sealed = seal_content(content._replace(body=bytes(size)), [SealingKey.generate().public])
        assert decode_content(encode_content(sealed)) == sealed
