"""Revocation over a real broker: a key that is revoked is refused everywhere, and nobody acts without knowing which."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from fleet_support import FleetWorld, agent_id, recorder, token
from router_support import running_router
from support import DOMAIN, World, eventually

from tocsin.agent.enrol import enrol
from tocsin.bus import Bus, Context, Sent
from tocsin.cli.authority import sign_as_root
from tocsin.cli.installation import Installation
from tocsin.cli.revoke import Revoked, revoke
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    AUDIT,
    DELIVER_ALL,
    REVOCATION_LIST,
    REVOCATIONS,
    ROUTE,
    THREAT_ALERT,
)
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.contracts.revocations import Revocation, RevocationList, RevocationReason
from tocsin.contracts.routing import ThreatAlert
from tocsin.contracts.subjects import EVENT_AUDIENCE
from tocsin.telemetry import Metrics

HIGH = ThreatAlert(severity=Severity.HIGH, summary="smoke")
CRITICAL = ThreatAlert(severity=Severity.CRITICAL, summary="burn")
COMPROMISED, RETIRED = RevocationReason.COMPROMISED, RevocationReason.RETIRED


def installation_of(world: World) -> Installation:
    """Return the world's authority as an operator has it: the root's key in a folder."""
    folder = world.folder / "installation"
    if not (folder / "ca" / "root.key").exists():
        world.authority.save(folder / "ca", "root")
    return Installation(folder, world.authority.certificate_pem)


async def revoke_in(world: World, who: str, reason: RevocationReason = COMPROMISED) -> Revoked:
    async with Bus(
        world.settings(), world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "0")), Metrics()
    ) as bus:
        return await revoke(bus, installation_of(world), who, reason)


def signed_list(world: World, number: int, *keys: bytes, made_ns: int = 1) -> Sent:
    """Have the root sign a list."""
    entries = tuple(Revocation(key_id=key, reason=COMPROMISED, since_ns=0) for key in keys)
    body = RevocationList(number=number, made_ns=made_ns, entries=entries)
    return sign_as_root(world.authority, REVOCATIONS, body, audience=EVENT_AUDIENCE)


async def alert(bus: Bus, name: str, body: ThreatAlert = HIGH) -> Sent:
    """Send an alert to everybody through the router."""
    priority = Priority.CRITICAL if body is CRITICAL else Priority.HIGH
    at = {"type": "threat_alert", "priority": priority.token, "agent": name}
    return await bus.publish(ROUTE, THREAT_ALERT, body, audience="all", priority=priority, at=at)


@dataclass
class Reader:
    """Keeps what reaches it."""

    bus: Bus
    alerts: list[bytes] = field(default_factory=list)
    rejected: list[RejectedEnvelope] = field(default_factory=list)

    async def on_alert(self, _: Message, context: Context) -> None:
        self.alerts.append(context.data)

    async def on_audit(self, body: RejectedEnvelope, _: Context) -> None:
        self.rejected.append(body)


async def test_a_key_that_is_revoked_while_it_sends_is_refused_everywhere_within_a_second(world: World) -> None:
    async with FleetWorld(world, [], world.folder) as fleet, running_router(world) as router:
        await fleet.start_fleet()
        readers = [Reader(await world.agent(Role.GUARDIAN, f"guardian-0{n}")) for n in range(2)]
        for reader in readers:
            await reader.bus.subscribe(DELIVER_ALL, reader.on_alert)
        auditor = Reader(await world.service(ServiceName.MONITOR))
        await auditor.bus.subscribe(AUDIT, auditor.on_audit, at={"kind": "rejected"})
        thief = await world.agent(Role.SENTINEL, "sentinel-01")
        key_id = thief.credentials.key.signer.key_id
        sending = asyncio.create_task(_keep_sending(thief))
        await eventually(lambda: all(reader.alerts for reader in readers))

        revoked = await revoke_in(world, "sentinel-01")
        assert (revoked.number, revoked.targets[0].key_id) == (1, key_id)
        assert revoked.confirmed_s < 1.0
        processes = [router.bus, *(reader.bus for reader in readers)]
        await eventually(lambda: all(bus.trust.is_revoked(key_id) for bus in processes), within_s=1.0)
        taken = [len(reader.alerts) for reader in readers]
        await eventually(lambda: router.metrics.counter("rejected.revoked") > 3)
        assert [len(reader.alerts) for reader in readers] == taken

        # A captured router forwards it all the same: every recipient refuses it itself.
        forged = await thief.make(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH)
        await router.bus.connection.publish(DELIVER_ALL.at(), forged.data)
        await eventually(lambda: all(r.bus.metrics.counter("rejected.revoked") == 1 for r in readers))
        sending.cancel()
        certified = [router.bus]  # agents' own processes publish no audit: their hosts do
        await eventually(lambda: _audited(auditor, key_id) == {bus.id.token for bus in certified})
        assert not thief.certified, "the process knows that nobody believes it"


def _audited(auditor: Reader, key_id: bytes) -> set[str]:
    return {one.by for one in auditor.rejected if one.reason == "revoked" and one.claimed_key_id == key_id}


async def _keep_sending(bus: Bus) -> None:
    while True:
        await alert(bus, bus.id.name)
        await asyncio.sleep(0.01)


async def test_what_a_compromised_key_has_stored_is_refused_and_what_a_retired_one_has_is_not(
    world: World,
) -> None:
    async with FleetWorld(world, [], world.folder) as fleet:
        await fleet.start_fleet()
        router = await world.service(ServiceName.ROUTER)
        stored = {}
        for name in ("stolen", "retired"):
            agent = await world.agent(Role.SENTINEL, name)
            stored[name] = await agent.make(THREAT_ALERT, CRITICAL, audience="all", priority=Priority.CRITICAL)
            await router.send(ALERT_BACKUP.at(severity="critical"), stored[name], stream=ALERT_BACKUP.stream)
        await revoke_in(world, "stolen")
        revoked = await revoke_in(world, "agent.retired", RETIRED)
        assert revoked.number == 2
        late = Reader(await world.agent(Role.GUARDIAN, "guardian-01"))
        await late.bus.consume(ALERT_BACKUP, late.on_alert, durable="late")
        await eventually(lambda: late.bus.metrics.counter("rejected.revoked") == 1)
        await eventually(lambda: late.alerts == [stored["retired"].data])

        again = await agent.make(THREAT_ALERT, CRITICAL, audience="all", priority=Priority.CRITICAL)
        await router.send(ALERT_BACKUP.at(severity="critical"), again, stream=ALERT_BACKUP.stream)
        await eventually(lambda: late.bus.metrics.counter("rejected.revoked") == 2)
        assert len(late.alerts) == 1, "what it signs after that moment counts no more"


async def test_what_waits_in_a_line_when_its_key_is_revoked_is_not_handled(world: World) -> None:
    reader = await world.agent(Role.GUARDIAN, "guardian-01")
    router = await world.service(ServiceName.ROUTER)
    thief = await world.agent(Role.SENTINEL, "sentinel-01")
    key_id = thief.credentials.key.signer.key_id
    await eventually(lambda: reader.trust.identity(key_id) is not None)
    handled: list[bytes] = []
    free = asyncio.Event()

    async def slow(_: Message, context: Context) -> None:
        handled.append(context.data)
        await free.wait()

    await reader.subscribe(DELIVER_ALL, slow)
    for _ in range(5):
        sent = await thief.make(THREAT_ALERT, HIGH, audience="all", priority=Priority.HIGH)
        await router.connection.publish(DELIVER_ALL.at(), sent.data)
    await eventually(lambda: reader.metrics.counter("envelopes_verified") == 5)
    await router.send(REVOCATION_LIST.at(), signed_list(world, 1, key_id), stream=REVOCATION_LIST.stream)
    await eventually(lambda: reader.trust.is_compromised(key_id))
    free.set()
    await eventually(lambda: reader.metrics.counter("rejected.revoked") == 4)
    assert len(handled) == 1, "what is being handled is not undone"


async def test_a_revoked_host_gets_no_certificate_any_more(world: World) -> None:
    hunters = [("hunter-01", Role.HUNTER)]
    async with FleetWorld(world, [token("h1", hunters)], world.folder) as fleet:
        service = await fleet.start_fleet()
        host = await fleet.start_host("h1", hunters, recorder)
        key_id = host._residents["hunter-01"].key_id
        revoked = await revoke_in(world, "hunter-01")
        assert set(revoked.targets[0].names) == {
            str(SpiffeId.host(DOMAIN, "h1")),
            str(agent_id(Role.HUNTER, "hunter-01")),
        }
        await eventually(lambda: not host.ready, within_s=1.0)
        membership = host._membership
        group = next(iter(membership.held))
        with pytest.raises(UntrustedError) as caught:
            await enrol(host._bus, membership.wallet, group, membership.held[group].key, timeout_s=5)
        assert caught.value.reason == "revoked"
        assert service.bus.trust.is_compromised(key_id)
        assert service.metrics.counter("handler_refusals.revoked") == 1


async def test_a_name_that_nobody_has_is_said_clearly(world: World) -> None:
    async with FleetWorld(world, [], world.folder) as fleet:
        await fleet.start_fleet()
        with pytest.raises(InvalidInputError) as caught:
            await revoke_in(world, "nobody-01")
    assert caught.value.reason == "unknown_identity"
    assert "nobody-01" in str(caught.value)


async def test_a_list_is_never_rolled_back(world: World) -> None:
    """Neither by a replay of the root's own earlier list, nor by a restart of fleet."""
    async with FleetWorld(world, [], world.folder) as fleet:
        await fleet.start_fleet()
        for number in range(2):
            await world.agent(Role.SENTINEL, f"sentinel-{number}")
        reader = await world.agent(Role.GUARDIAN, "guardian-01")
        await revoke_in(world, "sentinel-0")
        earlier = await reader.last(REVOCATION_LIST)
        assert earlier is not None
        await revoke_in(world, "sentinel-1")
        await eventually(lambda: reader.revocations.book.confirmed and reader.revocations.book.number == 2)
        await reader.connection.publish(REVOCATION_LIST.at(), earlier[1].data)
        await eventually(lambda: reader.metrics.counter("rejected.rolled_back") == 1)
        assert reader.revocations.book.number == 2
        fresh = await world.agent(Role.GUARDIAN, "guardian-02")
        assert fresh.revocations.book.number == 1
        assert not fresh.revocations.book.confirmed, (
            "and fleet's word tells whoever is new that there is a later"
        )


async def test_a_restarted_fleet_goes_on_from_the_list_that_holds(world: World) -> None:
    async with FleetWorld(world, [], world.folder) as fleet:
        service = await fleet.start_fleet()
        await world.agent(Role.SENTINEL, "sentinel-01")
        await revoke_in(world, "sentinel-01")
        await service.stop()
        await service.bus.__aexit__(None, None, None)
        reader = await world.agent(Role.GUARDIAN, "guardian-01")
        assert not reader.revocations.book.confirmed
        await fleet.start_fleet()
        await eventually(lambda: reader.revocations.book.confirmed)
        assert reader.revocations.book.number == 1


async def test_a_list_that_was_purged_is_put_back_by_whoever_holds_it(world: World) -> None:
    """Else whoever can purge the stream and restart fleet has fresh processes told that nothing is revoked."""
    async with FleetWorld(world, [], world.folder) as fleet:
        service = await fleet.start_fleet()
        thief = await world.agent(Role.SENTINEL, "sentinel-01")
        holders = [await world.agent(Role.GUARDIAN, f"guardian-0{n}") for n in range(3)]
        await revoke_in(world, "sentinel-01")
        await eventually(lambda: all(bus.revocations.book.confirmed for bus in holders))
        await service.stop()
        await service.bus.__aexit__(None, None, None)
        await holders[0].connection.js.purge_stream("REVOCATIONS")
        service = await fleet.start_fleet()
        await eventually(lambda: service.bus.revocations.book.number == 1, within_s=3)
        fresh = await world.agent(Role.GUARDIAN, "guardian-09")
        await eventually(lambda: fresh.revocations.book.confirmed)
        assert fresh.trust.is_revoked(thief.credentials.key.signer.key_id)
        assert sum(bus.metrics.counter("revocations_restored") for bus in (thief, *holders)) >= 1


async def test_nothing_with_effects_is_taken_while_nobody_says_which_keys_are_revoked(world: World) -> None:
    settings = world.settings().model_copy(update={"revocations_max_age_s": 4.0})
    credentials = world.credentials(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "guardian-01"))
    reader = Reader(await world.buses.enter_async_context(Bus(settings, credentials, Metrics())))
    await reader.bus.subscribe(DELIVER_ALL, reader.on_alert)
    router = await world.service(ServiceName.ROUTER)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")

    async def forward(body: ThreatAlert) -> bytes:
        priority = Priority.CRITICAL if body is CRITICAL else Priority.HIGH
        sent = await sentinel.make(THREAT_ALERT, body, audience="all", priority=priority)
        await router.connection.publish(DELIVER_ALL.at(), sent.data)
        return sent.data

    stored = Reader(reader.bus)
    await reader.bus.consume(ALERT_BACKUP, stored.on_alert, durable="stored", again=True)
    await eventually(lambda: reader.bus.trust.identity(sentinel.credentials.key.signer.key_id) is not None)
    within_grace = await forward(CRITICAL)
    await eventually(lambda: reader.alerts == [within_grace])
    await eventually(lambda: reader.bus.revocations.book.stale(time.time_ns()))
    await forward(CRITICAL)
    await eventually(lambda: reader.bus.metrics.counter("rejected.revocations_stale") == 1)
    emergency = await sentinel.make(THREAT_ALERT, CRITICAL, audience="all", priority=Priority.CRITICAL)
    await router.send(ALERT_BACKUP.at(severity="critical"), emergency, stream=ALERT_BACKUP.stream)
    await eventually(lambda: reader.bus.metrics.counter("rejected.revocations_stale") == 2)
    harmless = await forward(HIGH)
    await eventually(lambda: reader.alerts == [within_grace, harmless])

    async with FleetWorld(world, [], world.folder) as fleet:
        await fleet.start_fleet()
        await eventually(lambda: reader.bus.revocations.book.confirmed)
        after = await forward(CRITICAL)
        await eventually(lambda: reader.alerts == [within_grace, harmless, after])
        await eventually(lambda: stored.alerts == [emergency.data])


async def test_a_list_that_is_not_the_roots_revokes_nobody(world: World) -> None:
    reader = await world.agent(Role.GUARDIAN, "guardian-01")
    fleet = await world.service(ServiceName.FLEET)
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    key_id = sentinel.credentials.key.signer.key_id
    honest = signed_list(world, 1, key_id)
    forged = honest.data.replace(key_id, bytes(32))
    await fleet.connection.publish(REVOCATION_LIST.at(), forged)
    await eventually(lambda: reader.metrics.counter("rejected.bad_signature") == 1)
    assert not reader.trust.is_revoked(bytes(32))
    began = time.monotonic()
    await fleet.send(REVOCATION_LIST.at(), honest, stream=REVOCATION_LIST.stream)
    await eventually(lambda: reader.trust.is_revoked(key_id), within_s=1.0)
    assert time.monotonic() - began < 1.0, "without any word of fleet"


async def test_a_process_whose_own_key_is_revoked_does_not_start(world: World) -> None:
    own = world.credentials(SpiffeId.agent(DOMAIN, Role.SENTINEL, "sentinel-01"))
    reader = await world.agent(Role.GUARDIAN, "guardian-01")
    sent = signed_list(world, 1, own.key.signer.key_id)
    await reader.send(REVOCATION_LIST.at(), sent, stream=REVOCATION_LIST.stream)
    with pytest.raises(UntrustedError) as caught:
        await world.bus(credentials=own)
    assert caught.value.reason == "revoked"
