"""Agent hosts over a real broker: enrolled by a real fleet, fed on the deliver subjects and the stream."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from ends_support import closed_by
from fleet_support import FleetWorld, Recorder, recorder, token, tokens_for
from support import World, eventually

from tocsin.agent import Agent, AgentHost
from tocsin.bus import Bus, Context, Sent
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    CONSENSUS_DECISION,
    COORDINATION,
    DECISION,
    DELIVER_AGENT,
    DELIVER_ALL,
    DISCOVERY,
    HEARTBEAT,
    OBSERVE,
    RECEIPT,
    ROUTE,
    THREAT_ALERT,
)
from tocsin.contracts.decisions import Outcome
from tocsin.contracts.errors import DeniedError, InvariantBrokenError, UnavailableError
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.observations import Observations, ObservationsTaken
from tocsin.contracts.routing import Coordination, Receipt, Receipts, ThreatAlert

ONE = [("hunter-01", Role.HUNTER), ("sentinel-01", Role.SENTINEL)]
TWO = [("hunter-02", Role.HUNTER), ("admin-01", Role.ADMIN)]
ORDER = ThreatAlert(severity=Severity.CRITICAL, summary="now")


def fleet_world(world: World) -> FleetWorld:
    return FleetWorld(world, [*tokens_for("h1", ONE), *tokens_for("h2", TWO)], world.folder)


def agent(host: AgentHost, name: str) -> Recorder:
    found = host.agents[name]
    assert isinstance(found, Recorder)
    return found


async def forward_routed(router: Bus) -> list[str]:
    """Forward what agents route, as the router does: the sender's own bytes; return the types seen."""
    seen: list[str] = []

    async def forward(_: object, context: Context) -> None:
        kind, _, name = context.content.audience.partition(".")
        subject = DELIVER_AGENT.at(agent=name) if kind == "agent" else DELIVER_ALL.at()
        seen.append(context.kind.name)
        await router.connection.publish(subject, context.data)

    await router.subscribe(ROUTE, forward)
    return seen


async def gather_receipts(router: Bus) -> list[tuple[str, Receipt]]:
    got: list[tuple[str, Receipt]] = []

    async def on_receipts(body: Receipts, context: Context) -> None:
        assert context.sender.name == body.host
        got.extend((body.host, receipt) for receipt in body.receipts)

    await router.subscribe(RECEIPT, on_receipts)
    return got


async def order_from(host: AgentHost) -> Sent:
    """Make an emergency as an admin of this host."""
    admin = agent(host, "admin-01")
    return await host._bus.make(
        THREAT_ALERT, ORDER, audience="all", priority=Priority.CRITICAL, sender=admin.id
    )


async def test_two_hosts_enrol_and_exchange_a_routed_message(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        routed = await forward_routed(await fleet.router())
        h1 = await fleet.start_host("h1", ONE)
        h2 = await fleet.start_host("h2", TWO)
        await eventually(lambda: h1.peers(Role.HUNTER) == ("hunter-01", "hunter-02"))
        await eventually(lambda: agent(h1, "sentinel-01").life == ["started"])
        batch = Observations(source="s", sequence=1)
        await agent(h1, "sentinel-01").send(
            COORDINATION, Coordination(content=batch), audience="agent.hunter-02"
        )
        await agent(h1, "hunter-01").send(
            THREAT_ALERT, ThreatAlert(severity=Severity.HIGH, summary="look"), audience="all"
        )
        await eventually(lambda: agent(h2, "hunter-02").tasks == [batch])
        everyone = [*h1.agents.values(), *h2.agents.values()]
        await eventually(lambda: all(isinstance(a, Recorder) and len(a.alerts) == 1 for a in everyone))
        alert, context = agent(h2, "admin-01").alerts[0]
        assert (alert.summary, context.sender) == ("look", agent(h1, "hunter-01").id)
        assert agent(h1, "sentinel-01").tasks == []
        assert routed.count(DISCOVERY.name) == 4
    assert agent(h1, "hunter-01").life == ["started", "stopping"]


async def test_an_admin_never_signs_with_its_hosts_key(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        h2 = await fleet.start_host("h2", TWO)
        admin = agent(h2, "admin-01")
        key = h2._membership.key_id(admin.id)
        assert key != h2._membership.key_id(agent(h2, "hunter-02").id)
        identity = h2._bus.trust.identity(key)
        assert identity is not None
        assert identity.ids == {str(admin.id)}


async def test_with_key_scope_agent_everyone_has_a_key_of_their_own(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        h1 = await fleet.start_host("h1", ONE, key_scope="agent")
        keys = {h1._membership.key_id(one.id) for one in h1.agents.values()} | {
            h1._bus.credentials.key.signer.key_id
        }
        assert len(keys) == 3


@pytest.mark.parametrize("first", ["core", "stream"])
async def test_an_emergency_on_both_channels_is_taken_once_with_a_receipt(world: World, first: str) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        router = await fleet.router()
        receipts = await gather_receipts(router)
        h1 = await fleet.start_host("h1", ONE)
        h2 = await fleet.start_host("h2", TWO)
        sent = await order_from(h2)

        async def on_core() -> None:
            await router.send(DELIVER_ALL.at(), sent)

        async def on_stream() -> None:
            await router.send(ALERT_BACKUP.at(severity="critical"), sent, stream="ALERTS")

        channels = [on_core, on_stream] if first == "core" else [on_stream, on_core]
        await channels[0]()
        await eventually(lambda: len(receipts) == 2)
        await channels[1]()
        seen_twice = "duplicates.ALERT_BACKUP" if first == "core" else "duplicates.threat_alert"
        await eventually(lambda: all(h.metrics.counter(seen_twice) == 1 for h in (h1, h2)))
        for host in (h1, h2):
            for one in host.agents.values():
                assert isinstance(one, Recorder)
                assert [alert for alert, _ in one.alerts] == [ORDER]
        assert {(host, r.leaf, r.channel) for host, r in receipts} == {
            ("h1", sent.leaf, first),
            ("h2", sent.leaf, first),
        }
        assert sorted(name for _, r in receipts for name in r.agents) == sorted(
            name for name, _ in [*ONE, *TWO]
        )
        async with asyncio.timeout(10):  # the last acknowledgement may still be on its way
            info = await router.connection.js.consumer_info("ALERTS", "host-h1-alerts")
            while (info.num_ack_pending, info.num_pending) != (0, 0):
                info = await router.connection.js.consumer_info("ALERTS", "host-h1-alerts")


class Gate(Recorder):
    """Handles no alert before the gate is open."""

    role = Role.HUNTER

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.open = asyncio.Event()

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        await self.open.wait()
        await super().on_alert(alert, context)


async def test_a_full_inbox_confirms_nothing_and_takes_the_next_copy(world: World) -> None:
    def make(role: Role, name: str) -> Agent:
        return Gate(name) if name == "hunter-01" else recorder(role, name)

    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        router = await fleet.router()
        receipts = await gather_receipts(router)
        h1 = await fleet.start_host("h1", ONE, make, inbox_length=8)
        h2 = await fleet.start_host("h2", TWO)
        sent = [await order_from(h2) for _ in range(10)]
        for number, one in enumerate(sent, 1):
            await router.send(DELIVER_ALL.at(), one)
            await eventually(lambda n=number: len(agent(h1, "sentinel-01").alerts) == n)  # type: ignore[misc]  # bound now

        def confirmed(leaf: bytes) -> set[str]:
            return {name for host, r in receipts if host == "h1" and r.leaf == leaf for name in r.agents}

        await eventually(lambda: confirmed(sent[9].leaf) == {"sentinel-01"})
        assert confirmed(sent[0].leaf) == {"hunter-01", "sentinel-01"}
        gate = h1.agents["hunter-01"]
        assert isinstance(gate, Gate)
        gate.open.set()
        await eventually(lambda: len(gate.alerts) == 9)
        await router.send(DELIVER_ALL.at(), sent[9])
        await eventually(lambda: confirmed(sent[9].leaf) == {"hunter-01", "sentinel-01"})
        assert [context.leaf for _, context in gate.alerts] == [one.leaf for one in sent]
        assert len(agent(h1, "sentinel-01").alerts) == 10


async def test_an_emergency_that_was_missed_comes_by_the_stream_after_a_restart(world: World) -> None:
    """Also: credentials are kept, so that the second start needs no fleet."""
    async with fleet_world(world) as fleet:
        service = await fleet.start_fleet()
        h2 = await fleet.start_host("h2", TWO)
        async with fleet.make_host("h1", ONE):
            pass
        router = await fleet.router()
        await router.send(ALERT_BACKUP.at(severity="critical"), await order_from(h2), stream="ALERTS")
        enrolled = service.metrics.counter("enrolments")
        again = await fleet.start_host("h1", ONE)
        await eventually(lambda: len(agent(again, "hunter-01").alerts) == 1)
        assert service.metrics.counter("enrolments") == enrolled


async def test_hosts_survive_a_broker_restart(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        router = await fleet.router()
        await forward_routed(router)
        receipts = await gather_receipts(router)
        h1 = await fleet.start_host("h1", ONE)
        h2 = await fleet.start_host("h2", TWO)
        before = await order_from(h2)
        await router.send(DELIVER_ALL.at(), before)
        await eventually(lambda: len(receipts) == 2)
        world.restart_broker()
        await eventually(lambda: h1.ready and h2.ready and router.connected, within_s=20)
        sent = await order_from(h2)
        async with asyncio.timeout(15):
            while True:
                try:
                    await router.send(ALERT_BACKUP.at(severity="critical"), sent, stream="ALERTS")
                    break
                except UnavailableError:  # JetStream takes a moment to come back
                    await asyncio.sleep(0.1)
        await eventually(lambda: len(agent(h1, "hunter-01").alerts) == 2, within_s=15)
        await eventually(lambda: {host for host, r in receipts if r.leaf == sent.leaf} == {"h1", "h2"})
        kept = await router.reader(RECEIPT, start_ns=before.issued_at).read()
        bodies = [cast("Receipts", stored.body) for stored in kept]
        stored = [(body.host, r.leaf) for body in bodies for r in body.receipts]
        assert sorted(stored) == sorted((host, one.leaf) for host in ("h1", "h2") for one in (before, sent))
        await agent(h1, "hunter-01").send(
            THREAT_ALERT, ThreatAlert(severity=Severity.LOW, summary="after"), audience="all"
        )
        await eventually(lambda: len(agent(h2, "hunter-02").alerts) == 3)


class Careless(Recorder):
    role = Role.HUNTER

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        await super().on_alert(alert, context)
        if alert.summary == "hang":
            await asyncio.Event().wait()
        raise RuntimeError("a bug")


async def test_an_agent_that_fails_or_hangs_disturbs_no_other(world: World) -> None:
    def make(role: Role, name: str) -> Agent:
        return Careless(name) if name == "hunter-01" else recorder(role, name)

    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        router = await fleet.router()
        monitor = await world.service(ServiceName.MONITOR)
        beats: list[Heartbeat] = []

        async def on_beat(beat: Heartbeat, _: Context) -> None:
            beats.append(beat)

        await monitor.subscribe(HEARTBEAT, on_beat)
        h1 = await fleet.start_host("h1", ONE, make, drain_s=0.2)
        sentinel = agent(h1, "sentinel-01")
        for number, summary in enumerate(["bug", "hang", "behind"]):
            alert = ThreatAlert(severity=Severity.LOW, summary=summary)
            await router.send(
                DELIVER_ALL.at(), await h1._bus.make(THREAT_ALERT, alert, audience="all", sender=sentinel.id)
            )
            await eventually(lambda n=number: len(sentinel.alerts) == n + 1)  # type: ignore[misc]  # bound now
        assert [a.summary for a, _ in agent(h1, "hunter-01").alerts] == ["bug", "hang"]
        await eventually(lambda: bool(beats) and beats[-1].failed == 1)
        # Two have started, the sentinel has handled three alerts.
        await eventually(lambda: beats[-1].handled == 5)


class Counter(Recorder):
    role = Role.SENTINEL

    async def on_observations(self, batch: Observations, _: Context) -> ObservationsTaken:
        if batch.source == "bug":
            raise RuntimeError("secret detail")
        return ObservationsTaken(sequence=batch.sequence, flows=len(batch.flows), findings=0)


async def test_a_sentinel_answers_observations_and_its_bugs_say_nothing(world: World) -> None:
    def make(role: Role, name: str) -> Agent:
        return Counter(name) if name == "sentinel-02" else recorder(role, name)

    agents = [("sentinel-01", Role.SENTINEL), ("sentinel-02", Role.SENTINEL)]
    async with FleetWorld(world, tokens_for("h1", agents), world.folder) as fleet:
        await fleet.start_fleet()
        await fleet.start_host("h1", agents, make)
        cli = await world.service(ServiceName.CLI)
        batch = Observations(source="s", sequence=7)
        taken = await cli.request(OBSERVE, batch, timeout_s=5, at={"agent": "sentinel-02"})
        assert taken.sequence == 7
        with pytest.raises(DeniedError, match="takes no observations"):
            await cli.request(OBSERVE, batch, timeout_s=5, at={"agent": "sentinel-01"})
        with pytest.raises(InvariantBrokenError, match="an internal error"):
            await cli.request(
                OBSERVE, batch.model_copy(update={"source": "bug"}), timeout_s=5, at={"agent": "sentinel-02"}
            )


async def test_a_decision_that_is_proven_reaches_every_agent(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        h1 = await fleet.start_host("h1", ONE)
        consensus = await world.service(ServiceName.CONSENSUS)
        announced = await closed_by(world, consensus)
        at = {"decision": announced.decision.hex()}
        lie = announced.model_copy(update={"outcome": Outcome.INSUFFICIENT})
        await consensus.publish(CONSENSUS_DECISION, DECISION, lie, durable=True, at=at)
        await consensus.publish(CONSENSUS_DECISION, DECISION, announced, durable=True, at=at)
        await eventually(lambda: agent(h1, "hunter-01").decisions == [announced])
        await eventually(lambda: agent(h1, "sentinel-01").decisions == [announced])
        assert h1.metrics.counter("handler_refusals.wrong_outcome") == 1


async def test_an_end_waits_for_the_epoch_in_which_it_was_decided(world: World) -> None:
    async with fleet_world(world) as fleet:
        await fleet.start_fleet()
        h1 = await fleet.start_host("h1", ONE)
        consensus = await world.service(ServiceName.CONSENSUS)
        at = {"decision": bytes(32).hex()}
        announced = await closed_by(world, consensus)
        unknown = announced.model_copy(update={"epoch": bytes(32), "decision": bytes(32)})
        await consensus.publish(CONSENSUS_DECISION, DECISION, unknown, durable=True, at=at)
        await eventually(lambda: h1.metrics.counter("handler_retries.unknown_epoch") >= 1)
        assert not agent(h1, "hunter-01").decisions


async def test_a_certificate_is_renewed_at_half_of_its_life(world: World) -> None:
    async with FleetWorld(world, [token("h1", [("h-01", Role.HUNTER)])], world.folder) as fleet:
        # A certificate is dated back by a minute: of 70 s, half is over already.
        await fleet.start_fleet(certificate_lifetime_s=10)
        h1 = await fleet.start_host("h1", [("h-01", Role.HUNTER)])
        own = h1._bus.trust.identity(h1._bus.credentials.key.signer.key_id)
        assert own is not None
        await eventually(lambda: h1.metrics.counter("certificates_renewed") >= 1)

        def renewed() -> bool:
            now = h1._bus.trust.identity(own.key_id)
            return now is not None and now.not_after_ns > own.not_after_ns

        await eventually(renewed)
