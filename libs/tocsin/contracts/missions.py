"""Missions: what is asked for, who does it, what becomes of it, and the result.

One unit of work is one second of one agent's attention. An assignment has an *epoch*: it grows with each agent that an
objective is given to, so that what an agent says that was presumed dead, and was not, counts no more.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Message, Name, Nanoseconds, Text
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST
from tocsin.contracts.identifiers import Role

MAX_OBJECTIVES = 1024
"""In one mission: with names as they are usual, orders and records stay below the broker's 1 MB."""
MAX_MEMBERS = 4096
"""Agents of one mission: those that are assigned, and their standbys."""
MAX_STANDBYS = 2
"""Chosen beforehand for each objective."""
MAX_EPOCHS = 8
"""Agents that one objective is given to, one after another, before it is given up."""
MAX_DEADLINE_S = 86_400.0
MAX_FAILED_LINKS = 32
"""Links that are not there, named with their reasons; the count has all."""

Principal = Annotated[str, Field(max_length=160)]
"""The token of an id, e.g. ``service.cli.0``."""
Reason = Annotated[str, Field(max_length=64)]
Summary = Annotated[str, Field(max_length=256)]
Epoch = Annotated[int, Field(ge=1, le=MAX_EPOCHS)]


class AgentProfile(Message):
    """What one agent takes objectives for, as its host says."""

    agent: Name
    capabilities: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    slots: Annotated[int, Field(ge=0, le=64)] = 1
    """Objectives that it works at at once; 0: it takes none."""


class HostProfile(Message):
    """Value of the ``profiles`` bucket: what a host's agents can do, and where the host is."""

    zone: Name
    started_ns: Nanoseconds
    """When the host's process started: what its agents had in hand before is lost."""
    agents: Annotated[tuple[AgentProfile, ...], Field(max_length=MAX_AGENTS_PER_HOST)]


class Objective(Message):
    """One piece of a mission's work: done by one agent."""

    name: Name
    task: Name = "watch"
    """What is to be done, in the agents' own terms; every agent knows ``watch``."""
    subject: Annotated[str, Field(max_length=128)] = ""
    """What about, e.g. an address."""
    role: Role | None = None
    """The role that is required; None: any."""
    capabilities: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    """Of which the agent has all."""
    zone: Name | None = None
    """Where it is done best."""
    work: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] = 1.0
    """Units: seconds of one agent's attention."""
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """How much its cost counts in the assignment."""
    after: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """Objectives that have to be done before it begins."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] = 60.0
    """From its being given to an agent that may begin, until its result; then it is another's."""


class MissionRequest(Message):
    """Coordinate some agents to reach some objectives."""

    title: Text = ""
    mission: Name | None = None
    """Its name; None: fleet makes one."""
    agents: Annotated[tuple[Name, ...], Field(max_length=MAX_MEMBERS)] = ()
    """Who may be assigned; empty: every healthy agent of ``roles`` and ``zones``."""
    roles: Annotated[tuple[Role, ...], Field(max_length=8)] = ()
    zones: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=MAX_OBJECTIVES)]
    links: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Links that the topology may have at most; None: three for each agent."""
    hops: Annotated[int, Field(ge=1, le=MAX_MEMBERS)] | None = None
    """Longest path that the topology may have; None: whatever its links allow."""
    channels: bool = True
    """Whether the channels along the topology are opened beforehand; else each is on its first use."""
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] = 3_600.0
    """Then the mission ends, whatever is open."""


class MissionAccepted(Message):
    """The mission is planned, kept, and on its way to the agents."""

    mission: Name


class ObjectiveState(StrEnum):
    """How far an objective is."""

    WAITING = "waiting"
    """For objectives that come before it."""
    ASSIGNED = "assigned"
    """Its agent may begin, and has not accepted yet."""
    RUNNING = "running"
    DONE = "done"
    INCOMPLETE = "incomplete"
    """Nobody is left who could do it, or what comes before it was not done."""


class MissionState(StrEnum):
    """How far a mission is."""

    RUNNING = "running"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


class ObjectiveRecord(Message):
    """An objective and what has become of it."""

    objective: Objective
    state: ObjectiveState
    agent: Name
    """Who has it now, or had it last."""
    epoch: Epoch = 1
    accepted_ns: Nanoseconds = 0
    """When fleet learnt that its agent's host has accepted this epoch; 0: not yet."""
    standbys: Annotated[tuple[Name, ...], Field(max_length=MAX_STANDBYS)] = ()
    tried: Annotated[tuple[Name, ...], Field(max_length=MAX_EPOCHS)] = ()
    """Who had it before."""
    since_ns: Nanoseconds = 0
    """When the present agent was given it and may begin."""
    ended_ns: Nanoseconds = 0
    summary: Summary = ""
    reason: Reason = ""
    """Why it went to another agent last, or was given up."""


class Topology(Message):
    """The graph over a mission's members: see :mod:`tocsin.fleet.topology`."""

    members: Annotated[tuple[Name, ...], Field(max_length=MAX_MEMBERS)]
    """On a ring, in this order."""
    offsets: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_MEMBERS)], ...], Field(max_length=64)]
    """Each member is linked with those so many places further on the ring, in both directions."""
    links: Annotated[int, Field(ge=0)]
    hops: Annotated[int, Field(ge=0)]
    """Longest shortest path."""
    cell: Annotated[int, Field(ge=1)]
    """Members of a group, consecutive on the ring; the last group may be smaller."""


class MissionRecord(Message):
    """Value of the ``missions`` bucket."""

    mission: Name
    title: Text
    by: Principal
    runner: Principal
    """The fleet instance that runs it."""
    state: MissionState
    proposed_ns: Nanoseconds
    coordinated_ns: Nanoseconds = 0
    """When every assignment that came first had been accepted; 0: not yet."""
    ended_ns: Nanoseconds = 0
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)]
    topology: Topology
    channels: bool = True
    """Whether the channels along the topology are opened beforehand."""
    objectives: Annotated[tuple[ObjectiveRecord, ...], Field(min_length=1, max_length=MAX_OBJECTIVES)]
    taken_over: Annotated[int, Field(ge=0)] = 0
    """Assignments that went to another agent."""
    fenced: Annotated[int, Field(ge=0)] = 0
    """Reports of agents that had lost the objective by then: not counted."""
    bound_s: Annotated[float, Field(ge=0)] = 0.0
    """No assignment to these agents can be done faster: see docs/explanation/missions.md."""
    efficiency: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the work that was done, times the bound over the time that the mission took; None until it ends."""
    utilisation: Annotated[float, Field(ge=0, le=1)] | None = None
    """Work done over what the assigned agents could have done meanwhile; None until it ends."""


# --- Fleet to the hosts -------------------------------------------------------------------------


class Task(Message):
    """One objective for one agent of the host that the part is for."""

    objective: Objective
    agent: Name
    epoch: Epoch
    begin: bool
    """Whether it may begin; else it is accepted, and waits for the word."""


class Recall(Message):
    """What an agent is to stop."""

    objective: Name
    epoch: Epoch


class Part(Message):
    """What one host has to do."""

    tasks: Annotated[tuple[Task, ...], Field(max_length=MAX_OBJECTIVES)] = ()
    recalls: Annotated[tuple[Recall, ...], Field(max_length=MAX_OBJECTIVES)] = ()


class HostPart(Message):
    """One host's part, as bytes that only that host has to read."""

    host: Name
    part: Annotated[bytes, Field(max_length=900_000)]
    """msgpack of :class:`Part`."""


class MissionOrder(Message):
    """Fleet to all hosts: a mission's assignments, all in one message; each host finds its part."""

    mission: Name
    number: Annotated[int, Field(ge=1)]
    """Grows with each order of the mission."""
    topology: Topology
    parts: Annotated[tuple[HostPart, ...], Field(max_length=MAX_MEMBERS)]
    until_ns: Nanoseconds
    """A host that hears nothing more lets the mission go then."""
    channels: bool = False
    """Open the channels along the topology."""
    ended: bool = False
    """The mission is over: let go of it."""


# --- The hosts to fleet -------------------------------------------------------------------------


class ReportKind(StrEnum):
    """What a host says of an assignment."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    PROGRESS = "progress"
    DONE = "done"
    FAILED = "failed"


class TaskReport(Message):
    """One assignment, as its agent's host reports it."""

    objective: Name
    agent: Name
    epoch: Epoch
    kind: ReportKind
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the work that is done."""
    text: Summary = ""
    """The result's summary, the progress in a line, or the reason code of a failure."""


class FailedLink(Message):
    """A channel that is not there, though it was tried."""

    agent: Name
    peer: Name
    reason: Reason


class LinkReport(Message):
    """How many channels of the topology are open, of those that one host's agents begin; or of all."""

    wanted: Annotated[int, Field(ge=0)]
    open: Annotated[int, Field(ge=0)]
    failed: Annotated[tuple[FailedLink, ...], Field(max_length=MAX_FAILED_LINKS)] = ()
    """They are tried again."""


class MissionReport(Message):
    """A host's reports on one mission, many in one."""

    mission: Name
    reports: Annotated[tuple[TaskReport, ...], Field(max_length=MAX_OBJECTIVES)]
    links: LinkReport | None = None
    """None: nothing has changed."""


# --- Questions and facts ------------------------------------------------------------------------


class MissionQuestion(Message):
    """Ask for all of one mission."""

    mission: Name


class MissionView(Message):
    """A mission and, of those objectives that run, how far they say they are."""

    record: MissionRecord
    progress: Annotated[dict[Name, Annotated[float, Field(ge=0, le=1)]], Field(max_length=MAX_OBJECTIVES)]
    links: LinkReport | None = None
    """The topology's channels, as the hosts say; None where they are not opened beforehand, or are closed again."""


class MissionListRequest(Message):
    """Ask for missions, the youngest first."""

    state: MissionState | None = None
    limit: Annotated[int, Field(ge=1, le=1024)] = 100


class MissionSummary(Message):
    """One mission in a line."""

    mission: Name
    title: Text
    state: MissionState
    objectives: Annotated[int, Field(ge=0)]
    done: Annotated[int, Field(ge=0)]
    agents: Annotated[int, Field(ge=0)]
    proposed_ns: Nanoseconds
    ended_ns: Nanoseconds


class MissionList(Message):
    """Missions, the youngest first."""

    missions: Annotated[tuple[MissionSummary, ...], Field(max_length=1024)]
    total: Annotated[int, Field(ge=0)]


class MissionNews(StrEnum):
    """What has happened to a mission."""

    STARTED = "started"
    COORDINATED = "coordinated"
    """Every assignment that came first was accepted."""
    TAKEN_OVER = "taken_over"
    """Objectives went to other agents."""
    RECOVERED = "recovered"
    """Every assignment that went to another agent was accepted."""
    RESUMED = "resumed"
    """A fleet instance goes on with it."""
    ENDED = "ended"


class MissionEvent(Message):
    """What has happened to a mission: event ``fleet.mission``."""

    mission: Name
    news: MissionNews
    state: MissionState
    objectives: Annotated[int, Field(ge=0)]
    done: Annotated[int, Field(ge=0)]
    open: Annotated[int, Field(ge=0)]
    """Objectives that have not ended."""
    concerns: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    """Objectives that it is about: the first 64."""
    ms: Annotated[float, Field(ge=0)] | None = None
    """COORDINATED: since the proposal was made. RECOVERED: since fleet learnt that the agents were gone."""
    text: Text = ""
