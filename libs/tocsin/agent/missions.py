"""A host's part in missions: it accepts what its agents are given, lets them work, and reports.

Fleet's order is one message for all hosts; each finds its part, accepts it for all of its agents in one report, and
subscribes to the mission and its groups. A task is known by mission, objective and epoch: an order that comes again is
answered again and begins nothing twice. A host that dies loses what its agents have in hand; fleet gives it to others.

Bounds: ``MAX_TASKS`` at a time, beyond which a host declines (``host_full``); a mission of which nothing more is heard
is let go when its time is over. Reports wait, at most ``MAX_WAITING``, until the stream MISSIONS has them; of more, the
oldest word on progress goes first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tocsin.agent.agent import Agent
from tocsin.agent.delivery import Delivery
from tocsin.agent.mission_links import MissionLinks
from tocsin.agent.mission_reports import MissionReports
from tocsin.agent.objectives import ObjectiveContext, groups_of
from tocsin.bus import Bus, Context
from tocsin.bus.envelope import decode_body
from tocsin.contracts.catalogue import DELIVER_GROUP, DELIVER_MISSION, MISSION_ORDER, PROFILES
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.missions import (
    AgentProfile,
    HostProfile,
    MissionOrder,
    Part,
    ReportKind,
    Task,
    TaskReport,
    Topology,
)
from tocsin.contracts.subjects import Subject
from tocsin.telemetry import get_logger

MAX_TASKS = 8192
MAX_MISSIONS = 256
SAID_S = 0.1
"""For how long agents wait with their work until the stream has what their host has accepted."""
SWEEP_S = 5.0
MAX_TEXT = 256
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


@dataclass(slots=True)
class _Job:
    """A task of one agent."""

    task: Task
    last: TaskReport
    """What was reported last that counts: accepted, or the end."""
    running: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Mission:
    topology: Topology
    until_ns: int
    jobs: dict[str, _Job] = field(default_factory=dict)
    listening: list[asyncio.Task[None]] = field(default_factory=list)
    linking: asyncio.Task[None] | None = None


class Missions:
    """The missions that one host's agents take part in."""

    def __init__(
        self,
        bus: Bus,
        host: str,
        zone: str,
        agents: Mapping[str, Agent],
        delivery: Delivery,
        links: MissionLinks,
        *,
        is_fit: Callable[[str], bool],
    ) -> None:
        self._bus = bus
        self._host = host
        self._zone = zone
        self._agents = agents
        self._delivery = delivery
        self._links = links
        self._is_fit = is_fit
        self._missions: dict[str, _Mission] = {}
        self._slots = {name: asyncio.Semaphore(max(agent.slots, 1)) for name, agent in agents.items()}
        self._reports = MissionReports(bus, host)
        self._closed = False

    async def start(self) -> None:
        """Say what the agents can do, and listen for orders."""
        mine = HostProfile(
            zone=self._zone, started_ns=time.time_ns(), agents=tuple(map(_profile, self._agents.values()))
        )
        await self._bus.subscribe(MISSION_ORDER, self.on_order)
        # Afterwards: whoever learns of the new process asks at once whether it has what the last one had.
        await self._bus.records(PROFILES).change(self._bus.id.token, lambda _: mine)
        self._bus.spawn(self._reports.run(), "mission reports")
        self._bus.spawn(self._sweep(), "missions' ends")

    async def stop(self, *, timeout_s: float) -> None:
        """Take nothing more, and give back what is in hand."""
        self._closed = True
        for mission, held in self._missions.items():
            for job in held.jobs.values():
                if job.last.kind is ReportKind.ACCEPTED:
                    self._say(mission, job, ReportKind.FAILED, "host_leaving")
            _cancel(held.jobs.values())
        await self._reports.flush(timeout_s=timeout_s)

    def on_order(self, order: MissionOrder, _: Context) -> None:
        """Take an order of fleet.

        Raises:
            InvalidInputError: ``bad_body``: this host's part cannot be read.
        """
        if order.ended:
            self._let_go(order.mission)
            return
        mine = next((one.part for one in order.parts if one.host == self._host), None)
        part = decode_body(Part, mine) if mine is not None else Part()
        mission = self._missions.get(order.mission)
        concerned = part.tasks or any(name in self._agents for name in order.topology.members)
        if mission is None and concerned and not self._closed:
            if len(self._missions) >= MAX_MISSIONS:
                self._bus.metrics.count("missions_refused")
                self._decline(order.mission, part.tasks, "host_full")
                return
            mission = self._missions[order.mission] = _Mission(order.topology, order.until_ns)
        if mission is None:
            self._decline(order.mission, part.tasks, "host_leaving")
            return
        for recall in part.recalls:
            job = mission.jobs.get(recall.objective)
            if job is not None and job.task.epoch <= recall.epoch:
                _cancel([job])
                del mission.jobs[recall.objective]
        begin = [job for task in part.tasks if (job := self._take(order.mission, mission, task)) is not None]
        if begin or not mission.listening or mission.topology != order.topology:
            self._bus.spawn(self._act(order.mission, mission, order, begin), "order")

    # --- Inside -------------------------------------------------------------------------------

    async def _act(self, name: str, mission: _Mission, order: MissionOrder, begin: list[_Job]) -> None:
        """Let agents begin, once it is said that they will: two hundred that begin would hold that up."""
        await self._reports.sent(within_s=SAID_S)
        if self._missions.get(name) is not mission:
            return
        for job in begin:
            if mission.jobs.get(job.task.objective.name) is job and job.running is None:
                self._begin(name, mission, job)
        if not mission.listening or mission.topology != order.topology:
            self._listen(name, mission, order.topology)
        if order.channels and mission.linking is None:
            say = partial(self._reports.add_links, name)
            mission.linking = self._bus.spawn(self._links.hold(mission.topology, say), f"links of {name}")

    def _take(self, name: str, mission: _Mission, task: Task) -> _Job | None:
        """Take one task, or say again what has become of it; return it if it is to begin now."""
        held = mission.jobs.get(task.objective.name)
        if held is not None and held.task.epoch > task.epoch:
            return None
        if held is not None and (held.task.epoch, held.task.agent) == (task.epoch, task.agent):
            self._reports.add(name, held.last)
            if task.begin and not held.task.begin:
                held.task = task
                return held
            return None
        if held is not None:
            _cancel([held])
        why = self._why_not(task)
        if why:
            self._decline(name, (task,), why)
            return None
        job = mission.jobs[task.objective.name] = _Job(task, _report(task, ReportKind.ACCEPTED))
        self._reports.add(name, job.last)
        return job if task.begin else None

    def _why_not(self, task: Task) -> str:
        if self._closed:
            return "host_leaving"
        if task.agent not in self._agents:
            return "no_such_agent"
        if not self._is_fit(task.agent):
            return "quarantined"
        if sum(len(mission.jobs) for mission in self._missions.values()) >= MAX_TASKS:
            return "host_full"
        return ""

    def _decline(self, name: str, tasks: Iterable[Task], why: str) -> None:
        for task in tasks:
            self._bus.metrics.count(f"tasks_declined.{why}")
            self._reports.add(name, _report(task, ReportKind.DECLINED, why))

    def _begin(self, name: str, mission: _Mission, job: _Job) -> None:
        job.running = self._bus.spawn(
            self._work(name, mission, job), f"objective {name}/{job.task.objective.name}"
        )

    async def _work(self, name: str, mission: _Mission, job: _Job) -> None:
        task = job.task
        agent = self._agents[task.agent]
        context = ObjectiveContext(
            name,
            task.epoch,
            task.agent,
            mission.topology,
            lambda share, text: self._reports.add(
                name, _report(task, ReportKind.PROGRESS, text, progress=share)
            ),
        )
        async with self._slots[task.agent]:
            begun = time.monotonic()
            try:
                result = await agent.on_objective(task.objective, context)
            except TocsinError as error:
                self._bus.metrics.count(f"objectives_failed.{error.reason}")
                log.warning("objective_failed", agent=agent.name, reason=error.reason, detail=str(error))
                self._say(name, job, ReportKind.FAILED, error.reason)
            except Exception:  # an agent's bug is its own, and is logged with its trace
                self._bus.metrics.count("objectives_failed.defect")
                log.exception("objective_failed", agent=agent.name)
                self._say(name, job, ReportKind.FAILED, "defect")
            else:
                self._say(name, job, ReportKind.DONE, str(result or ""))
            self._bus.metrics.observe_ms("objective", (time.monotonic() - begun) * 1e3)

    def _say(self, name: str, job: _Job, kind: ReportKind, text: str) -> None:
        job.last = _report(job.task, kind, text, progress=1.0 if kind is ReportKind.DONE else 0.0)
        self._reports.add(name, job.last)

    def _listen(self, name: str, mission: _Mission, topology: Topology) -> None:
        """Subscribe to the mission and to those groups of it that this host's agents are in."""
        self._silence(name, mission)
        mission.topology = topology
        members = frozenset(topology.members)
        channels: list[tuple[Subject, str, str, frozenset[str]]] = [(DELIVER_MISSION, "mission", name, members)]
        channels += [
            (DELIVER_GROUP, "group", group, frozenset(some))
            for group, some in groups_of(name, topology).items()
        ]
        for subject, token, value, some in channels:
            if not some.isdisjoint(self._agents):
                self._delivery.join(f"{token}.{value}", some, senders=members)
                mission.listening.append(
                    self._bus.spawn(self._subscribed(subject, token, value), f"listening to {token}.{value}")
                )

    async def _subscribed(self, subject: Subject, token: str, value: str) -> None:
        """Be subscribed until cancelled."""
        subscription = await self._bus.subscribe(subject, self._delivery.from_core, at={token: value})
        try:
            await asyncio.Event().wait()
        finally:
            await self._bus.unsubscribe(subscription)

    def _silence(self, name: str, mission: _Mission) -> None:
        for task in mission.listening:
            task.cancel()
        mission.listening.clear()
        self._delivery.leave(f"mission.{name}")
        for group in groups_of(name, mission.topology):
            self._delivery.leave(f"group.{group}")

    def _let_go(self, name: str) -> None:
        mission = self._missions.pop(name, None)
        if mission is not None:
            _cancel(mission.jobs.values())
            self._silence(name, mission)
            if mission.linking is not None:
                mission.linking.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_ns = time.time_ns()
            for name in [name for name, held in self._missions.items() if held.until_ns < now_ns]:
                self._bus.metrics.count("missions_let_go")
                self._let_go(name)


def _profile(agent: Agent) -> AgentProfile:
    return AgentProfile(agent=agent.name, capabilities=agent.capabilities, slots=agent.slots)


def _report(task: Task, kind: ReportKind, text: str = "", *, progress: float = 0.0) -> TaskReport:
    return TaskReport(
        objective=task.objective.name,
        agent=task.agent,
        epoch=task.epoch,
        kind=kind,
        progress=progress,
        text=text[:MAX_TEXT],
    )


def _cancel(jobs: Iterable[_Job]) -> None:
    for job in jobs:
        if job.running is not None:
            job.running.cancel()
