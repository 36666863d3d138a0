"""One mission under way: reports and losses in, orders out. Pure: the time, and who is fit, are passed in.

Each objective has one agent at a time, and an epoch that grows with every change of it. A report counts only if it
names the present agent and epoch and comes from that agent's host; an earlier epoch's is *fenced*: whoever was presumed
dead may have done the work, and its result is not joined, so none counts twice.

    waiting -> assigned -> running -> done
                  ^  |        |
                  |  v        v          (lost, declined, failed, overdue, not accepted in time)
               next agent, epoch + 1     -> incomplete, when nobody is left

The next agent is the first standby that is fit and has not had it, else the cheapest agent that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tocsin.contracts.missions import (
    MAX_EPOCHS,
    MissionRecord,
    MissionState,
    MissionSummary,
    Objective,
    ObjectiveRecord,
    ObjectiveState,
    Part,
    Recall,
    ReportKind,
    Task,
    TaskReport,
    Topology,
)
from tocsin.fleet.assignment import Spare

NS_PER_S = 1_000_000_000
ACCEPT_NS = 3 * NS_PER_S
"""An assignment that its host has not accepted by then goes to another agent."""
REMIND_NS = NS_PER_S // 2
"""How often an assignment that is not accepted is sent again until then."""
_S = ObjectiveState
OPEN = frozenset({_S.WAITING, _S.ASSIGNED, _S.RUNNING})


class Verdict(StrEnum):
    """What became of a report."""

    COUNTED = "counted"
    KNOWN = "known"
    """It says what is known."""
    FENCED = "fenced"
    """Of an assignment that is another's by now."""
    NOT_ASSIGNED = "not_assigned"
    """Nobody ever gave this objective to this agent, or not by this host, or not in this epoch."""


@dataclass(slots=True)
class _Held:
    objective: Objective
    state: ObjectiveState
    agent: str
    epoch: int
    accepted_ns: int
    standbys: tuple[str, ...]
    tried: tuple[str, ...]
    since_ns: int
    ended_ns: int
    summary: str
    reason: str
    progress: float = 0.0
    first_ns: int = 0
    """When its present agent was told first, and when last; 0: not yet by this process."""
    sent_ns: int = 0

    @property
    def accepted(self) -> bool:
        """Whether its agent's host has accepted it."""
        return self.accepted_ns > 0

    @property
    def due_ns(self) -> int:
        """When it must have been accepted, or be done."""
        return self.since_ns + int(self.objective.deadline_s * NS_PER_S)


@dataclass(slots=True)
class Changes:
    """What the last calls have changed and nobody has been told yet."""

    order: set[str] = field(default_factory=set)
    """Objectives whose agents have to be told of them."""
    recalls: list[tuple[str, str, int]] = field(default_factory=list)
    """Agents that are to stop: agent, objective, epoch."""
    moved: list[str] = field(default_factory=list)
    """Objectives that went to another agent."""
    kept: bool = False
    """Whether something has changed that must survive a restart before anybody acts on it."""


class Mission:
    """A mission that runs.

    Args:
        record: the plan, or what an earlier process has kept of it.
    """

    def __init__(self, record: MissionRecord) -> None:
        self._record = record
        self._held = {
            one.objective.name: _Held(
                one.objective,
                one.state,
                one.agent,
                one.epoch,
                one.accepted_ns,
                one.standbys,
                one.tried,
                one.since_ns,
                one.ended_ns,
                one.summary,
                one.reason,
            )
            for one in record.objectives
        }
        self._after: dict[str, list[str]] = {}
        for one in record.objectives:
            for name in one.objective.after:
                self._after.setdefault(name, []).append(one.objective.name)
        self._open = {name for name, held in self._held.items() if held.state in OPEN}
        self._unaccepted = {name for name in self._open if not self._held[name].accepted}
        self._mean = sum(one.objective.work for one in record.objectives) / len(record.objectives)
        self.coordinated_ns = record.coordinated_ns
        self.ended_ns = record.ended_ns
        self.taken_over = record.taken_over
        self.fenced = record.fenced
        self.late = record.ended_ns > 0
        self.changes = Changes()

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.mission

    @property
    def proposed_ns(self) -> int:
        """When it was proposed."""
        return self._record.proposed_ns

    @property
    def until_ns(self) -> int:
        """When it ends, whatever is open."""
        return self._record.proposed_ns + int(self._record.deadline_s * NS_PER_S)

    @property
    def ended(self) -> bool:
        """Whether nothing is open."""
        return not self._open

    @property
    def unaccepted(self) -> frozenset[str]:
        """Open objectives whose present agent has not accepted."""
        return frozenset(self._unaccepted)

    @property
    def state(self) -> MissionState:
        """How far it is."""
        if self._open:
            return MissionState.RUNNING
        done = all(held.state is _S.DONE for held in self._held.values())
        return MissionState.COMPLETE if done else MissionState.INCOMPLETE

    @property
    def done(self) -> int:
        """Objectives that are done."""
        return sum(held.state is _S.DONE for held in self._held.values())

    @property
    def open(self) -> int:
        """Objectives that have not ended."""
        return len(self._open)

    @property
    def channels(self) -> bool:
        """Whether the channels along its topology are opened beforehand."""
        return self._record.channels

    @property
    def topology(self) -> Topology:
        """The graph over its members."""
        return self._record.topology

    @property
    def incomplete(self) -> list[str]:
        """Objectives that were given up, in the order of the request."""
        return [name for name, held in self._held.items() if held.state is _S.INCOMPLETE]

    def __len__(self) -> int:
        return len(self._held)

    def agents(self) -> set[str]:
        """Return who has something open."""
        return {self._held[name].agent for name in self._open}

    def load(self) -> dict[str, float]:
        """Return the units of work that each agent has in hand."""
        found: dict[str, float] = {}
        for name in self._open:
            held = self._held[name]
            found[held.agent] = found.get(held.agent, 0.0) + held.objective.work
        return found

    # --- In -----------------------------------------------------------------------------------

    def report(
        self, report: TaskReport, host: str, host_of: Callable[[str], str | None], spare: Spare, *, now_ns: int
    ) -> Verdict:
        """Take one report.

        Args:
            report: it.
            host: who signed it.
            host_of: where an agent is enrolled.
            spare: the cheapest agent that is fit for an objective.
            now_ns: now.
        """
        verdict = self._judge(report, host, host_of)
        if verdict is not Verdict.COUNTED:
            self.fenced += verdict is Verdict.FENCED
            return verdict
        name, held = report.objective, self._held[report.objective]
        if report.kind in {ReportKind.DECLINED, ReportKind.FAILED}:
            self._pass_on(name, report.text or report.kind.value, spare, now_ns)
        elif report.kind is ReportKind.DONE:
            self._finish(name, held, report.text, now_ns)
        else:
            held.progress = max(held.progress, report.progress)
            was_accepted = held.accepted
            self._accept(name, held, now_ns)
            if was_accepted and report.kind is ReportKind.ACCEPTED:
                return Verdict.KNOWN
        return Verdict.COUNTED

    def lost(self, agents: Iterable[str], spare: Spare, *, now_ns: int) -> list[str]:
        """Give what these agents have in hand to others; return the objectives. O(objectives)."""
        gone = frozenset(agents)
        concerned = [name for name in self._held if name in self._open and self._held[name].agent in gone]
        for name in concerned:
            self._pass_on(name, "agent_lost", spare, now_ns)
        return concerned

    def advance(self, spare: Spare, *, now_ns: int) -> None:
        """Let time pass: what is late goes to others; what was not accepted is said again."""
        if now_ns >= self.until_ns and self._open:
            self.late = True
            for name in list(self._open):
                self._give_up(name, "mission_overdue", now_ns)
        for name in [name for name in self._open if self._held[name].state is not _S.WAITING]:
            held = self._held[name]
            if now_ns >= held.due_ns:
                self._pass_on(name, "overdue", spare, now_ns)
        for name in list(self._unaccepted):
            held = self._held[name]
            if held.first_ns and now_ns - held.first_ns >= ACCEPT_NS:
                self._pass_on(name, "not_accepted", spare, now_ns)
        if any(now_ns - self._held[name].sent_ns >= REMIND_NS for name in self._unaccepted):
            self.changes.order |= self._unaccepted

    def begin(self) -> None:
        """Have everybody told of everything that is open."""
        self.changes.order |= self._open

    def ask_again(self, *, now_ns: int, agents: Iterable[str] | None = None, grace_ns: int = 0) -> bool:
        """Have some agents' hosts say again that they have what they accepted: one of the two has restarted.

        Args:
            now_ns: now.
            agents: whose; None: everybody's.
            grace_ns: how much longer than usual they may take, in nanoseconds.

        Returns:
            whether that concerns anything.
        """
        some = None if agents is None else frozenset(agents)
        asked = [name for name in self._open if some is None or self._held[name].agent in some]
        for name in asked:
            held = self._held[name]
            held.accepted_ns, held.first_ns = 0, now_ns + grace_ns
            if held.state is _S.RUNNING:
                held.state = _S.ASSIGNED
        self._unaccepted.update(asked)
        self.changes.order.update(asked)
        return bool(asked)

    def next_ns(self) -> int:
        """Return when :meth:`advance` has something to do next."""
        due = [self.until_ns]
        due += [self._held[n].due_ns for n in self._open if self._held[n].state is not _S.WAITING]
        due += [self._held[n].sent_ns + REMIND_NS for n in self._unaccepted]
        return min(due)

    # --- Out ----------------------------------------------------------------------------------

    def parts(self, host_of: Callable[[str], str | None], *, now_ns: int) -> dict[str, Part]:
        """Return what each host is to be told, and forget that it has to be."""
        tasks: dict[str, list[Task]] = {}
        recalls: dict[str, list[Recall]] = {}
        for name in sorted(self.changes.order & self._open):
            held = self._held[name]
            held.first_ns, held.sent_ns = held.first_ns or now_ns, now_ns
            tasks.setdefault(host_of(held.agent) or "", []).append(
                Task.model_construct(
                    objective=held.objective,
                    agent=held.agent,
                    epoch=held.epoch,
                    begin=held.state is not _S.WAITING,
                )
            )
        for agent, name, epoch in self.changes.recalls:
            recalls.setdefault(host_of(agent) or "", []).append(Recall(objective=name, epoch=epoch))
        self.changes.order.clear()
        self.changes.recalls.clear()
        return {
            host: Part(tasks=tuple(tasks.get(host, ())), recalls=tuple(recalls.get(host, ())))
            for host in sorted(tasks.keys() | recalls.keys())
            if host
        }

    def record(self, *, now_ns: int) -> MissionRecord:
        """Return what is to be kept."""
        objectives = tuple(
            ObjectiveRecord.model_construct(
                objective=held.objective,
                state=held.state,
                agent=held.agent,
                epoch=held.epoch,
                accepted_ns=held.accepted_ns,
                standbys=held.standbys,
                tried=held.tried,
                since_ns=held.since_ns,
                ended_ns=held.ended_ns,
                summary=held.summary,
                reason=held.reason,
            )
            for held in self._held.values()
        )
        if self.ended and not self.ended_ns:
            self.ended_ns = now_ns
        return self._record.model_copy(
            update={
                "state": self.state,
                "objectives": objectives,
                "coordinated_ns": self.coordinated_ns,
                "ended_ns": self.ended_ns,
                "taken_over": self.taken_over,
                "fenced": self.fenced,
                **self._figures(),
            }
        )

    def progress(self) -> dict[str, float]:
        """Return how far those say they are that run."""
        return {name: self._held[name].progress for name in self._open if self._held[name].progress > 0}

    # --- Inside -------------------------------------------------------------------------------

    def _judge(self, report: TaskReport, host: str, host_of: Callable[[str], str | None]) -> Verdict:
        """Tell whether a report counts, with no regard to what it says."""
        held = self._held.get(report.objective)
        if held is None or host_of(report.agent) != host:
            return Verdict.NOT_ASSIGNED
        had = dict(enumerate((*held.tried, held.agent), start=1))
        if had.get(report.epoch) != report.agent:
            return Verdict.NOT_ASSIGNED
        if report.kind is ReportKind.DONE and held.state is _S.WAITING:
            return Verdict.NOT_ASSIGNED
        if report.epoch < held.epoch or held.state is _S.INCOMPLETE:
            return Verdict.FENCED if report.kind is ReportKind.DONE else Verdict.KNOWN
        return Verdict.KNOWN if held.state is _S.DONE else Verdict.COUNTED

    def _accept(self, name: str, held: _Held, now_ns: int) -> None:
        if held.accepted:
            return
        held.accepted_ns = now_ns
        self._unaccepted.discard(name)
        if held.state is _S.ASSIGNED:
            held.state = _S.RUNNING
        if not self._unaccepted and not self.coordinated_ns:
            self.coordinated_ns = now_ns

    def _finish(self, name: str, held: _Held, summary: str, now_ns: int) -> None:
        self._accept(name, held, now_ns)
        held.state, held.summary, held.ended_ns, held.progress = _S.DONE, summary, now_ns, 1.0
        self._close(name)
        for later in self._after.get(name, ()):
            self._release(later, now_ns)

    def _release(self, name: str, now_ns: int) -> None:
        """Let an objective begin if all that come before it are done."""
        held = self._held[name]
        if held.state is _S.WAITING and all(self._held[one].state is _S.DONE for one in held.objective.after):
            # Its host has to hear that it may begin, and says so again.
            held.state, held.accepted_ns, held.since_ns, held.first_ns = _S.ASSIGNED, 0, now_ns, 0
            self._unaccepted.add(name)
            self.changes.order.add(name)
            self.changes.kept = True

    def _pass_on(self, name: str, reason: str, spare: Spare, now_ns: int) -> None:
        """Give an objective to the next agent, or give it up."""
        if name not in self._open:
            return  # what it waited for was given up a moment ago, and it with that
        held = self._held[name]
        tried = (*held.tried, held.agent)
        self.changes.recalls.append((held.agent, name, held.epoch))
        following = next((one for one in held.standbys if one not in tried and spare.is_fit(one)), None)
        if following is None:
            following = spare.cheapest(held.objective, frozenset(tried), self._mean)
        if following is None or held.epoch >= MAX_EPOCHS:
            self._give_up(name, reason, now_ns)
            return
        held.tried, held.agent, held.epoch, held.reason = tried, following, held.epoch + 1, reason
        held.accepted_ns, held.progress, held.first_ns = 0, 0.0, 0
        if held.state is not _S.WAITING:
            held.state, held.since_ns = _S.ASSIGNED, now_ns
        self.taken_over += 1
        self._unaccepted.add(name)
        self.changes.order.add(name)
        self.changes.moved.append(name)
        self.changes.kept = True

    def _give_up(self, name: str, reason: str, now_ns: int) -> None:
        """End an objective that nobody can do, and what waits for it."""
        ending = [(name, reason)]
        while ending:
            one, why = ending.pop()
            held = self._held[one]
            if one not in self._open:
                continue
            held.state, held.reason, held.ended_ns = _S.INCOMPLETE, why[:64], now_ns
            self._close(one)
            ending += [(later, "blocked") for later in self._after.get(one, ())]

    def _close(self, name: str) -> None:
        self._open.discard(name)
        self._unaccepted.discard(name)
        self.changes.order.discard(name)

    def _figures(self) -> Mapping[str, float | None]:
        """Return the efficiency and the utilisation of a mission that has ended, at most 1."""
        took_s = (self.ended_ns - self._record.proposed_ns) / NS_PER_S
        if not self.ended_ns or took_s <= 0:
            return {}
        works = [(held.objective.work, held.state is _S.DONE) for held in self._held.values()]
        done = sum(work for work, is_done in works if is_done)
        share = done / sum(work for work, _ in works)
        agents = len({held.agent for held in self._held.values()})
        return {
            "efficiency": share * min(1.0, self._record.bound_s / took_s),
            "utilisation": min(1.0, done / (agents * took_s)),
        }


def summary_of(record: MissionRecord) -> MissionSummary:
    """Return a mission in a line."""
    return MissionSummary(
        mission=record.mission,
        title=record.title,
        state=record.state,
        objectives=len(record.objectives),
        done=sum(one.state is _S.DONE for one in record.objectives),
        agents=len({one.agent for one in record.objectives}),
        proposed_ns=record.proposed_ns,
        ended_ns=record.ended_ns,
    )
