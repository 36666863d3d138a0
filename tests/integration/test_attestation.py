"""Challenges over a real broker: what an honest host answers, and what each dishonest one gets."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fleet_support import FleetWorld, recorder, tokens_for
from support import World, eventually

from tocsin.agent import AgentHost
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import (
    AUDIT,
    FLEET_AGENT,
    FLEET_APPROVE,
    HOST_ATTEST,
    MEASUREMENTS,
)
from tocsin.contracts.errors import DeniedError, InvalidInputError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.health import (
    AgentDetail,
    AgentQuestion,
    Approval,
    Attestation,
    AttestationRefused,
    Challenge,
    MeasuredAgent,
    Measurement,
    MeasurementRecord,
)
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.fleet.service import FleetService
from tocsin.telemetry import Metrics

H1, H2 = [("hunter-01", Role.HUNTER)], [("hunter-02", Role.HUNTER)]
OTHER = Measurement(code=b"c" * 32, configuration=b"d" * 32)


def state(service: FleetService, name: str = "hunter-01") -> AgentState | None:
    return service.book.state(name, now_ns=time.time_ns())


class LyingHost(AgentHost):
    """A host whose answer a test changes."""

    change: Callable[[Challenge, Attestation], Attestation] = staticmethod(lambda _, honest: honest)

    async def _attest(self, challenge: Challenge, context: Context) -> Attestation:
        return self.change(challenge, await super()._attest(challenge, context))


async def lying(fleet: FleetWorld, name: str = "h1") -> LyingHost:
    settings = fleet.host_settings(name, H1 if name == "h1" else H2)
    return await fleet.stack.enter_async_context(LyingHost(settings, recorder, Metrics()))


async def audited(bus: Bus) -> list[AttestationRefused]:
    """Return a list that fills with what fleet audits of attestations."""
    found: list[AttestationRefused] = []

    async def heard(body: AttestationRefused, _: Context) -> None:
        found.append(body)

    await bus.subscribe(AUDIT, heard, at={"kind": "attestation"})
    return found


async def detail(bus: Bus, name: str = "hunter-01") -> AgentDetail:
    return await bus.request(FLEET_AGENT, AgentQuestion(agent=name), timeout_s=5)


async def test_the_first_measurement_is_believed_and_kept_and_the_next_compared(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", H1), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        await fleet.start_host("h1", H1)
        await eventually(lambda: service.metrics.counter("attestations") >= 3)
        cli = await world.service(ServiceName.CLI)
        shown = await detail(cli)
        assert shown.presented is not None
        assert shown.allowed == (shown.presented,)
        assert (shown.doubts, shown.entry.state, shown.entry.score) == ((), AgentState.HEALTHY, 100)
        record = await cli.records(MEASUREMENTS).get("h1")
        assert record is not None
        assert [one.agent for one in record.agents] == ["hunter-01"]
        with pytest.raises(InvalidInputError) as caught:
            await detail(cli, "nobody")
        assert caught.value.reason == "no_such_agent"


OLD = b"o" * 32


@pytest.mark.parametrize(
    ("change", "reason", "becomes"),
    [
        (lambda _, a: a.model_copy(update={"nonce": OLD}), "wrong_nonce", AgentState.QUARANTINED),
        (lambda _, a: a.model_copy(update={"agents": ()}), "not_measured", AgentState.SUSPECT),
        (
            lambda _, a: a.model_copy(
                update={"agents": (MeasuredAgent(agent="hunter-01", measurement=OTHER),)}
            ),
            "wrong_measurement",
            AgentState.SUSPECT,
        ),
    ],
)
async def test_an_answer_that_does_not_hold_has_its_own_reason(
    world: World,
    change: Callable[[Challenge, Attestation], Attestation],
    reason: str,
    becomes: AgentState,
) -> None:
    async with FleetWorld(world, tokens_for("h1", H1), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        refused = await audited(await world.service(ServiceName.CLI))
        host = await lying(fleet)
        await eventually(lambda: service.metrics.counter("attestations") >= 1)
        host.change = change
        await eventually(lambda: state(service) is becomes)
        await eventually(lambda: bool(refused))
        assert [(one.host, one.agents, one.reason) for one in refused] == [("h1", ("hunter-01",), reason)]
        host.change = lambda _, honest: honest
        if becomes is AgentState.SUSPECT:
            await eventually(lambda: state(service) is AgentState.HEALTHY)
        else:
            before = service.metrics.counter("attestations")
            await eventually(lambda: service.metrics.counter("attestations") > before)
            assert state(service) is AgentState.QUARANTINED


async def test_the_measurement_of_another_agent_is_a_forgery(world: World) -> None:
    async with FleetWorld(world, [*tokens_for("h1", H1), *tokens_for("h2", H2)], world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        refused = await audited(await world.service(ServiceName.CLI))
        victim = await fleet.start_host("h2", H2)
        stolen = victim._measured["hunter-02"]
        host = await lying(fleet)
        await eventually(lambda: len(service.challenger.presented) == 2)
        forged = (MeasuredAgent(agent="hunter-01", measurement=stolen),)
        host.change = lambda _, a: a.model_copy(update={"agents": forged})
        await eventually(lambda: state(service) is AgentState.QUARANTINED)
        assert state(service, "hunter-02") is AgentState.HEALTHY
        assert refused[0].reason == "measurement_of_another"


async def test_a_host_that_beats_and_does_not_answer_is_suspect(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", H1), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2, challenge_timeout_s=0.2)
        host = await lying(fleet)
        await eventually(lambda: service.metrics.counter("attestations") >= 1)

        def stall(_: Challenge, __: Attestation) -> Attestation:
            raise DeniedError("no", reason="no")

        host.change = stall
        await eventually(lambda: state(service) is AgentState.SUSPECT)
        assert service.book.doubts("hunter-01") == {"attestation": "no_answer"}


async def test_another_host_cannot_answer_a_challenge(world: World) -> None:
    """Who listens on a host's subject and answers with a signature of its own is refused; the host's answer counts."""
    async with FleetWorld(world, [*tokens_for("h1", H1), *tokens_for("h2", H2)], world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        thief = await fleet.start_host("h2", H2)
        bus = thief._bus

        async def answer(challenge: Challenge, _: Context) -> Attestation:
            forged = MeasuredAgent(agent="hunter-01", measurement=OTHER)
            return Attestation(nonce=challenge.nonce, agents=(forged,))

        await bus.serve(HOST_ATTEST, answer, at={"host": "h1"})
        await fleet.start_host("h1", H1)
        await eventually(lambda: service.metrics.counter("rejected.wrong_subject") >= 1)
        await eventually(lambda: "hunter-01" in service.challenger.attested_ns)
        assert service.challenger.presented["hunter-01"] != OTHER


async def test_an_upgrade_is_suspect_until_an_operator_approves_what_it_runs(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", H1), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        cli = await world.service(ServiceName.CLI)
        async with fleet.make_host("h1", H1):
            await eventually(lambda: service.metrics.counter("attestations") >= 1)
        # Another configuration, as good as other code.
        await fleet.start_host("h1", H1, inbox_length=2048)
        await eventually(lambda: state(service) is AgentState.SUSPECT)
        seen = (await detail(cli)).presented
        assert seen is not None
        approval = Approval(agents=(MeasuredAgent(agent="hunter-01", measurement=seen),))
        done = await cli.request(FLEET_APPROVE, approval, timeout_s=5)
        assert done.changed == ("hunter-01",)
        await eventually(lambda: state(service) is AgentState.HEALTHY)
        assert (await cli.request(FLEET_APPROVE, approval, timeout_s=5)).unchanged == ("hunter-01",)
        assert len((await detail(cli)).allowed) == 2
        router = await world.service(ServiceName.ROUTER)
        with pytest.raises(DeniedError):
            await router.request(FLEET_APPROVE, approval, timeout_s=5)


async def test_a_forged_record_of_measurements_is_not_believed(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", H1), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        await fleet.start_host("h1", H1)
        await eventually(lambda: service.metrics.counter("attestations") >= 1)
        enemy = await world.service(ServiceName.ROUTER, "evil")
        with pytest.raises(DeniedError):
            await enemy.records(MEASUREMENTS).put("h1", MeasurementRecord(host="h1", agents=()))
        kv = await enemy.connection.js.key_value(MEASUREMENTS.name)
        await kv.put("h1", b"garbage")
        await eventually(lambda: service.metrics.counter("challenges_failed.malformed") >= 1)
        assert state(service) is AgentState.HEALTHY
