"""A mission under way: whatever comes in whichever order, its promises hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tocsin.bus.envelope import decode_body, encode_body
from tocsin.contracts.identifiers import Role
from tocsin.contracts.missions import (
    MAX_EPOCHS,
    MissionRecord,
    MissionRequest,
    MissionState,
    Objective,
    ObjectiveState,
    ReportKind,
    TaskReport,
)
from tocsin.fleet.assignment import Candidate, Spare
from tocsin.fleet.mission import ACCEPT_NS, NS_PER_S, REMIND_NS, Mission, Verdict
from tocsin.fleet.planning import plan

AGENTS = {
    name: Candidate(name, Role.HUNTER, host, "z", frozenset())
    for name, host in (("a-1", "h1"), ("a-2", "h1"), ("b-1", "h2"), ("b-2", "h2"), ("c-1", "h3"))
}
OBJECTIVES = (
    Objective(name="one", deadline_s=60),
    Objective(name="two", deadline_s=60),
    Objective(name="three", after=("one",), deadline_s=60),
    Objective(name="four", after=("two", "three"), deadline_s=60),
)
NAMES = [one.name for one in OBJECTIVES]


def host_of(name: str) -> str | None:
    return AGENTS[name].host if name in AGENTS else None


def planned(objectives: tuple[Objective, ...] = OBJECTIVES, **more: object) -> Mission:
    request = MissionRequest(objectives=objectives, **more)
    record = plan(request, list(AGENTS.values()), mission="m", by="b", runner="r", proposed_ns=1, now_ns=1)
    mission = Mission(record)
    mission.begin()
    return mission


class Machine(RuleBasedStateMachine):
    """Reports of anybody, losses, time and restarts, in any order."""

    @initialize()
    def begin(self) -> None:
        self.now = 1
        self.mission = planned()
        self.fit = dict(AGENTS)
        self.done: dict[str, str] = {}

    @property
    def spare(self) -> Spare:
        return Spare(lambda: self.fit)

    def held(self) -> dict[str, tuple[str, int, ObjectiveState]]:
        record = self.mission.record(now_ns=self.now)
        return {one.objective.name: (one.agent, one.epoch, one.state) for one in record.objectives}

    @rule(
        name=st.sampled_from([*NAMES, "other"]),
        agent=st.sampled_from([*AGENTS, "nobody"]),
        epoch=st.integers(1, MAX_EPOCHS),
        kind=st.sampled_from(list(ReportKind)),
        host=st.sampled_from(["h1", "h2", "h3"]),
    )
    def anybody_reports(self, name: str, agent: str, epoch: int, kind: ReportKind, host: str) -> None:
        before = self.held()
        report = TaskReport(objective=name, agent=agent, epoch=epoch, kind=kind, text=f"{agent} {epoch}")
        verdict = self.mission.report(report, host, host_of, self.spare, now_ns=self.now)
        if name not in before or host_of(agent) != host or (agent, epoch) != before[name][:2]:
            assert verdict is not Verdict.COUNTED
            assert self.held() == before
        elif verdict is Verdict.COUNTED and kind is ReportKind.DONE:
            assert name not in self.done
            self.done[name] = report.text

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from([ReportKind.ACCEPTED, ReportKind.DONE]))
    def its_agent_reports(self, name: str, kind: ReportKind) -> None:
        agent, epoch, _ = self.held()[name]
        self.anybody_reports(name, agent, epoch, kind, host_of(agent) or "")

    @rule(agent=st.sampled_from(list(AGENTS)))
    def an_agent_is_lost(self, agent: str) -> None:
        self.fit.pop(agent, None)
        self.mission.lost([agent], self.spare, now_ns=self.now)
        assert all(held[0] != agent for name, held in self.held().items() if name in self.open())

    @rule(agent=st.sampled_from(list(AGENTS)))
    def an_agent_is_back(self, agent: str) -> None:
        self.fit[agent] = AGENTS[agent]

    @rule(seconds=st.floats(0.01, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * NS_PER_S)
        self.mission.advance(self.spare, now_ns=self.now)
        assert self.mission.ended or self.mission.next_ns() > 0

    @rule()
    def hosts_are_told(self) -> None:
        parts = self.mission.parts(host_of, now_ns=self.now)
        held = self.held()
        for host, part in parts.items():
            for task in part.tasks:
                assert host_of(task.agent) == host
                assert held[task.objective.name][:2] == (task.agent, task.epoch)
                assert task.begin is (held[task.objective.name][2] is not ObjectiveState.WAITING)

    @rule()
    def fleet_restarts(self) -> None:
        data = encode_body(self.mission.record(now_ns=self.now))
        self.mission = Mission(decode_body(MissionRecord, data))
        self.mission.begin()

    def open(self) -> set[str]:
        ended = {ObjectiveState.DONE, ObjectiveState.INCOMPLETE}
        return {name for name, (_, _, state) in self.held().items() if state not in ended}

    @invariant()
    def nothing_begins_before_what_it_waits_for_and_nothing_counts_twice(self) -> None:
        record = self.mission.record(now_ns=self.now)
        states = {one.objective.name: one.state for one in record.objectives}
        for one in record.objectives:
            if one.state in {ObjectiveState.ASSIGNED, ObjectiveState.RUNNING, ObjectiveState.DONE}:
                assert all(states[name] is ObjectiveState.DONE for name in one.objective.after)
            assert len({one.agent, *one.tried}) == one.epoch == len(one.tried) + 1
            if one.state is ObjectiveState.DONE:
                assert one.summary == self.done[one.objective.name]
        assert (record.state is MissionState.RUNNING) is bool(self.open())
        assert (record.state is MissionState.COMPLETE) is (set(states.values()) == {ObjectiveState.DONE})
        assert record.state is MissionState.RUNNING or record.ended_ns > 0


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


def test_what_is_not_accepted_is_said_again_and_then_another_has_it() -> None:
    mission = planned((Objective(name="one"),))
    (part,) = mission.parts(host_of, now_ns=1).values()
    assert mission.next_ns() == 1 + REMIND_NS
    spare = Spare(lambda: AGENTS)
    mission.advance(spare, now_ns=1 + REMIND_NS)
    (again,) = mission.parts(host_of, now_ns=1 + REMIND_NS).values()
    assert again.tasks == part.tasks
    mission.advance(spare, now_ns=1 + ACCEPT_NS)
    parts = mission.parts(host_of, now_ns=1 + ACCEPT_NS)
    assert {task.epoch for one in parts.values() for task in one.tasks} == {2}
    assert {recall.epoch for one in parts.values() for recall in one.recalls} == {1}


def test_a_mission_has_an_end_whatever_is_open() -> None:
    mission = planned(deadline_s=5)
    mission.advance(Spare(lambda: AGENTS), now_ns=6 * NS_PER_S)
    record = mission.record(now_ns=6 * NS_PER_S)
    assert record.state is MissionState.INCOMPLETE
    assert {one.reason for one in record.objectives} <= {"mission_overdue", "blocked"}
    assert (record.efficiency, record.utilisation) == (0.0, 0.0)


def test_efficiency_is_the_bound_over_the_time_that_it_took() -> None:
    mission = planned((Objective(name="one", work=2.0),))
    agent = mission.record(now_ns=1).objectives[0].agent
    report = TaskReport(objective="one", agent=agent, epoch=1, kind=ReportKind.DONE)
    end = 1 + int(2.5 * NS_PER_S)
    mission.report(report, host_of(agent) or "", host_of, Spare(lambda: AGENTS), now_ns=end)
    record = mission.record(now_ns=end)
    assert record.efficiency is not None
    assert round(record.efficiency, 6) == 0.8
    assert record.utilisation is not None
    assert round(record.utilisation, 6) == 0.8
