"""Missions over a real broker: planned, accepted, worked at, taken over, ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from missions_support import look, of, start, system, until_ended, until_fit
from support import World, eventually

from tocsin.agent import AgentHost
from tocsin.bus import Bus
from tocsin.cli.decision_arguments import members_of
from tocsin.contracts.catalogue import (
    COORDINATION,
    DELIVER_GROUP,
    DELIVER_MISSION,
    FLEET_COORDINATE,
    FLEET_MISSION,
    FLEET_MISSIONS,
    MISSION_REPORT,
    MISSION_REPORT_TYPE,
)
from tocsin.contracts.errors import ConflictError, DeniedError, InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.missions import (
    MissionListRequest,
    MissionNews,
    MissionQuestion,
    MissionReport,
    MissionRequest,
    MissionState,
    Objective,
    ObjectiveState,
    ReportKind,
    TaskReport,
)
from tocsin.contracts.observations import Observations
from tocsin.contracts.routing import Coordination
from tocsin.contracts.subjects import senders
from tocsin.fleet.service import FleetService
from tocsin.telemetry import Metrics


async def test_a_mission_is_planned_accepted_worked_at_and_joined(world: World) -> None:
    async with system(world) as one:
        mission = await start(
            one.cli,
            Objective(name="dig", role=Role.HUNTER, capabilities=("dig",), work=0.1),
            Objective(name="look", role=Role.SENTINEL, work=0.1),
            Objective(name="fill", work=0.1, after=("dig", "look")),
            title="a hole",
        )
        await eventually(lambda: {name for name, *_ in one.script.begun} == {"dig", "look"})
        view = await one.cli.request(FLEET_MISSION, MissionQuestion(mission=mission), timeout_s=5)
        assert of(view.record, "fill").state is ObjectiveState.WAITING
        assert view.record.topology.hops >= 1
        members = {objective.agent for objective in view.record.objectives}
        assert await members_of(one.cli, mission) == sorted(members)  # whom `tocsin decision propose` asks
        await eventually(lambda: any(event.news is MissionNews.COORDINATED for event in one.news))
        one.script.released |= {"dig", "look"}
        await eventually(lambda: {name for name, *_ in one.script.begun} == {"dig", "look", "fill"})
        one.script.released.add("fill")
        record = await until_ended(one.cli, mission)
        assert record.state is MissionState.COMPLETE
        assert of(record, "dig").summary.startswith("dig by hunter-")
        assert record.efficiency is not None
        assert 0 < record.efficiency <= 1
        listed = await one.cli.request(FLEET_MISSIONS, MissionListRequest(), timeout_s=5)
        assert [(m.mission, m.done, m.title) for m in listed.missions] == [(mission, 3, "a hole")]
        await eventually(lambda: any(event.news is MissionNews.ENDED for event in one.news))


async def refused(cli: Bus, *objectives: Objective, **more: Any) -> str:
    """Start a mission that cannot be; return the reason."""
    with pytest.raises(TocsinError) as caught:
        await start(cli, *objectives, **more)
    return caught.value.reason


async def test_what_cannot_be_is_said_before_anything_starts(world: World) -> None:
    async with system(world) as one:
        dig = Objective(name="dig")
        with pytest.raises(InvalidInputError, match="drill") as caught:
            await start(one.cli, dig, Objective(name="drill", role=Role.CANARY))
        assert caught.value.reason == "no_eligible_agent"
        able = Objective(name="fly", capabilities=("wings",))
        assert await refused(one.cli, able) == "no_eligible_agent"
        circle = (Objective(name="a", after=("b",)), Objective(name="b", after=("a",)))
        assert await refused(one.cli, *circle) == "cyclic_objectives"
        assert await refused(one.cli, Objective(name="a", after=("z",))) == "unknown_dependency"
        assert await refused(one.cli, dig, dig) == "duplicate_objective"
        assert await refused(one.cli, dig, links=1) == "impossible_topology"
        assert await refused(one.cli, dig, agents=("nobody",)) == "no_such_agent"
        assert one.script.begun == []
        one.script.released.add("*")
        mission = await start(one.cli, dig, mission="hole")
        await until_ended(one.cli, mission)
        with pytest.raises(ConflictError) as again:
            await start(one.cli, dig, mission="hole")
        assert again.value.reason == "mission_exists"
        with pytest.raises(InvalidInputError) as unknown:
            await look(one.cli, "other")
        assert unknown.value.reason == "no_such_mission"


async def test_only_admins_and_operators_start_missions(world: World) -> None:
    async with system(world) as one:
        sentinel = await world.agent(Role.SENTINEL, "s-09")
        with pytest.raises(DeniedError) as caught:
            await start(sentinel, Objective(name="dig"))
        assert caught.value.reason == "sender_not_allowed"
        # Past its own bus, which refuses to make it: fleet refuses it as well.
        forged = await sentinel.make(
            replace(FLEET_COORDINATE.request_type, senders=senders(Role.SENTINEL)),
            MissionRequest(objectives=(Objective(name="dig"),)),
            audience=FLEET_COORDINATE.subject.audience,
        )
        await sentinel.send(FLEET_COORDINATE.subject.at(), forged)
        rejected = one.service.bus.metrics
        await eventually(lambda: rejected.statistics().counters.get("rejected.sender_not_allowed", 0) > 0)
        one.script.released.add("*")
        admin = await world.agent(Role.ADMIN, "admin-09")
        for client in (admin, await world.service(ServiceName.GATEWAY)):
            assert (
                await until_ended(client, await start(client, Objective(name="dig")))
            ).state is MissionState.COMPLETE


async def test_work_of_the_lost_is_taken_over_on_another_host_and_late_results_are_fenced(world: World) -> None:
    async with system(world) as one:
        mission = await start(one.cli, Objective(name="dig", role=Role.HUNTER))
        await eventually(lambda: len(one.script.begun) == 1)
        ((_, first, epoch),) = one.script.begun
        assert epoch == 1
        await one.service.missions.agents_lost((first,))
        await eventually(lambda: len(one.script.begun) == 2)
        (_, second, epoch) = one.script.begun[1]
        assert (second != first, epoch) == (True, 2)
        # The presumed dead finishes after all: its host says so once more, though it was told to stop.
        host = one.hosts["h1" if first == "hunter-01" else "h2"]
        late = TaskReport(objective="dig", agent=first, epoch=1, kind=ReportKind.DONE, text="late")
        await host._bus.publish(
            MISSION_REPORT,
            MISSION_REPORT_TYPE,
            MissionReport(mission=mission, reports=(late,)),
            at={"host": host.settings.host_name},
        )
        await eventually(lambda: counted(one.service, "mission_reports.fenced") == 1)
        assert (await look(one.cli, mission)).state is MissionState.RUNNING
        one.script.released.add("dig")
        record = await until_ended(one.cli, mission)
        assert (record.state, record.taken_over, record.fenced) == (MissionState.COMPLETE, 1, 1)
        assert of(record, "dig").summary == f"dig by {second}"
        assert of(record, "dig").tried == (first,)
        await eventually(lambda: any(event.news is MissionNews.RECOVERED for event in one.news))
        assert one.script.ended == [second]


async def test_a_report_on_what_was_not_given_is_refused_and_audited(world: World) -> None:
    async with system(world) as one:
        mission = await start(one.cli, Objective(name="dig", role=Role.HUNTER))
        await eventually(lambda: len(one.script.begun) == 1)
        ((_, agent, _),) = one.script.begun
        mine, other = ("h1", "h2") if agent == "hunter-01" else ("h2", "h1")
        idle = "hunter-02" if agent == "hunter-01" else "hunter-01"
        claims = [
            (other, TaskReport(objective="dig", agent=agent, epoch=1, kind=ReportKind.DONE)),
            (other, TaskReport(objective="dig", agent=idle, epoch=1, kind=ReportKind.DONE)),
            (mine, TaskReport(objective="dig", agent=agent, epoch=2, kind=ReportKind.DONE)),
            (mine, TaskReport(objective="other", agent=agent, epoch=1, kind=ReportKind.DONE)),
        ]
        for number, (host, claim) in enumerate(claims, start=1):
            await one.hosts[host]._bus.publish(
                MISSION_REPORT,
                MISSION_REPORT_TYPE,
                MissionReport(mission=mission, reports=(claim,)),
                at={"host": host},
            )
            await eventually(lambda n=number: counted(one.service, "rejected.not_assigned") == n)  # type: ignore[misc]
        assert (await look(one.cli, mission)).state is MissionState.RUNNING
        one.script.released.add("dig")
        assert (await until_ended(one.cli, mission)).state is MissionState.COMPLETE


async def test_who_never_finishes_is_overdue_and_without_another_the_mission_ends_incomplete(
    world: World,
) -> None:
    async with system(world) as one:
        slow = Objective(name="dig", role=Role.HUNTER, deadline_s=0.4)
        later = Objective(name="fill", after=("dig",))
        mission = await start(one.cli, slow, later, Objective(name="look", role=Role.SENTINEL))
        one.script.released.add("look")
        record = await until_ended(one.cli, mission)
        assert record.state is MissionState.INCOMPLETE
        dig = of(record, "dig")
        assert (dig.state, dig.reason, len(dig.tried)) == (ObjectiveState.INCOMPLETE, "overdue", 1)
        assert {name for name, *_ in one.script.begun if name != "look"} == {"dig"}
        assert of(record, "fill").reason == "blocked"
        assert of(record, "look").state is ObjectiveState.DONE
        await eventually(lambda: any("dig" in event.text for event in one.news))


async def test_an_agent_that_raises_has_failed_and_another_does_it(world: World) -> None:
    async with system(world) as one:
        one.script.fail.add("hunter-01")
        one.script.released.add("*")
        mission = await start(one.cli, *(Objective(name=f"dig-{n}", role=Role.HUNTER) for n in range(2)))
        record = await until_ended(one.cli, mission)
        assert record.state is MissionState.COMPLETE
        failed = next(entry for entry in record.objectives if entry.tried)
        assert (failed.tried, failed.agent, failed.reason) == (("hunter-01",), "hunter-02", "no_shovel")


async def test_a_killed_fleet_goes_on_with_what_runs_and_starts_nothing_twice(world: World) -> None:
    async with system(world) as one:
        mission = await start(
            one.cli,
            Objective(name="dig", role=Role.HUNTER),
            Objective(name="look", role=Role.SENTINEL),
            Objective(name="fill", after=("look",)),
        )
        await eventually(lambda: len(one.script.begun) == 2)
        # As good as killed: it hears and says nothing more, and keeps nothing.
        await one.service.bus.__aexit__(None, None, None)
        one.script.released.add("look")
        await eventually(lambda: len(one.script.ended) == 1)
        service = await one.fleet.start_fleet()
        await eventually(lambda: any(event.news is MissionNews.RESUMED for event in one.news), within_s=20)
        await until_fit(service, 4)
        await eventually(lambda: "fill" in {name for name, *_ in one.script.begun}, within_s=20)
        one.script.released |= {"dig", "fill"}
        record = await until_ended(one.cli, mission)
        assert record.state is MissionState.COMPLETE
        assert [name for name, *_ in one.script.begun].count("dig") == 1
        assert [entry.epoch for entry in record.objectives] == [1, 1, 1]


async def test_a_host_that_died_while_fleet_was_away_has_its_work_taken_over(world: World) -> None:
    async with system(world) as one:
        mission = await start(one.cli, Objective(name="dig", role=Role.HUNTER))
        await eventually(lambda: len(one.script.begun) == 1)
        ((_, first, _),) = one.script.begun
        await one.service.bus.__aexit__(None, None, None)
        # Without a goodbye: its bus is gone, and with it what its agents would say.
        await one.hosts["h1" if first == "hunter-01" else "h2"]._bus.__aexit__(None, None, None)
        await one.fleet.start_fleet(silent_after_s=600)
        await eventually(lambda: len(one.script.begun) == 2, within_s=30)
        one.script.released.add("*")
        record = await until_ended(one.cli, mission)
        assert record.state is MissionState.COMPLETE
        assert (of(record, "dig").reason, of(record, "dig").epoch) == ("not_accepted", 2)


async def test_a_host_that_restarts_at_once_is_asked_again_and_begins_anew(world: World) -> None:
    async with system(world) as one:
        only = Objective(name="dig", role=Role.HUNTER)
        mission = await start(one.cli, only, agents=("hunter-01",))
        await eventually(lambda: len(one.script.begun) == 1)
        host = one.hosts["h1"]
        await host._bus.__aexit__(None, None, None)
        # This process still holds the files' locks, so its next life has copies.
        state_dir = host.settings.state_dir.with_name("state-again")
        shutil.copytree(host.settings.state_dir, state_dir)
        settings = host.settings.model_copy(update={"state_dir": state_dir})
        again = AgentHost(settings, one.script.make, Metrics())
        one.service.liveness.on_gone.clear()
        async with again:
            await eventually(lambda: len(one.script.begun) == 2, within_s=20)
            one.script.released.add("*")
            record = await until_ended(one.cli, mission)
        assert (record.state, of(record, "dig").epoch) == (MissionState.COMPLETE, 1)


async def test_members_of_a_mission_and_of_its_groups_talk_and_others_are_refused(world: World) -> None:
    async with system(world) as one:
        everyone = [Objective(name=f"o-{n}") for n in range(4)]
        mission = await start(one.cli, *everyone)
        router = await one.fleet.router()
        await eventually(lambda: len(one.script.begun) == 4)
        member = one.hosts["h1"].agents["sentinel-01"]
        stranger = await world.agent(Role.SENTINEL, "s-09")
        seen = Coordination(content=Observations(source="zeek", sequence=1))
        audiences = {DELIVER_MISSION: {"mission": mission}, DELIVER_GROUP: {"group": f"{mission}-0"}}
        for subject, at in audiences.items():
            one.script.tasks.clear()
            audience = subject.audience_at(at)
            assert audience is not None
            theirs = await stranger.make(COORDINATION, seen, audience=audience)
            await router.send(subject.at(**at), theirs)
            await eventually(
                lambda: all(counted(host, "rejected.not_a_member") > 0 for host in one.hosts.values())
            )
            assert one.script.tasks == []
            sent = await one.hosts["h1"]._bus.make(COORDINATION, seen, audience=audience, sender=member.id)
            await router.send(subject.at(**at), sent)
            group = (
                4
                if subject is DELIVER_MISSION
                else len(
                    (await look(one.cli, mission)).topology.members[
                        : (await look(one.cli, mission)).topology.cell
                    ]
                )
            )
            await eventually(lambda n=group: len(one.script.tasks) == n)  # type: ignore[misc]
        one.script.released.add("*")
        await until_ended(one.cli, mission)
        await eventually(lambda: not any(host._missions._missions for host in one.hosts.values()))
        assert not any(host._delivery._channels for host in one.hosts.values())


def counted(one: FleetService | AgentHost, name: str) -> int:
    return one.metrics.statistics().counters.get(name, 0)
