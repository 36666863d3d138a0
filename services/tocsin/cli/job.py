"""The main job, watched from outside: one attack becomes one decided, delivered, verified response.

The job does nothing that the agents and services do not do themselves: it listens to what they publish,
notes when each stage began and ended, and says when the story is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from tocsin.bus import Bus, Context
from tocsin.contracts.analysis import Assessment, AssessmentMade, StageState, WorkflowStage
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_BALLOT, CONSENSUS_DECISION, DELIVER_ALL, EVENT
from tocsin.contracts.decisions import Ballot, Choice, DecisionAnnounced, Outcome, Proposal
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import Finding, SensorReady
from tocsin.contracts.quantum import Allocation
from tocsin.contracts.response import Actuation, ActuationOutcome
from tocsin.contracts.routing import Delivery, ThreatAlert
from tocsin.contracts.workflows import AllocationMade

ALERT_TIMEOUT_S = 15.0
ANALYSIS_TIMEOUT_S = 45.0
DECISION_TIMEOUT_S = 20.0
RESPONSE_TIMEOUT_S = 20.0
QUIET_S = 2.5
"""How long no further workflow may begin before assessments without a command are taken as the last word."""
NS_PER_MS = 1e6


class JobOutcome(StrEnum):
    """How the story ended."""

    RESPONDED = "responded"
    NO_ANOMALIES = "no_anomalies"
    BENIGN = "benign"
    NOT_DECIDED = "not_decided"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline."""

    at_ns: int
    stage: str
    text: str
    headline: bool = False
    """Whether it says how the stage stands, rather than one thing among many."""


@dataclass(slots=True)
class Story:
    """Everything that was seen."""

    begun_ns: int
    timeline: list[Moment] = field(default_factory=list)
    alerts: list[tuple[ThreatAlert, float]] = field(default_factory=list)
    """With milliseconds from the sender's clock to here."""
    findings: list[Finding] = field(default_factory=list)
    sensors: list[SensorReady] = field(default_factory=list)
    stages: list[WorkflowStage] = field(default_factory=list)
    allocations: dict[bytes, Allocation] = field(default_factory=dict)
    """By workflow."""
    assessments: list[AssessmentMade] = field(default_factory=list)
    assessment: Assessment | None = None
    """The first one that calls for a response: the one that this story follows."""
    proposal: Proposal | None = None
    decision_id: bytes | None = None
    ballots: dict[str, str] = field(default_factory=dict)
    """Choice by agent, for the decision of this story."""
    decision: DecisionAnnounced | None = None
    order_leaf: bytes | None = None
    order_issued_ns: int | None = None
    delivery: Delivery | None = None
    actuations: list[Actuation] = field(default_factory=list)
    latencies_ms: dict[str, float] = field(default_factory=dict)

    @property
    def allocation(self) -> Allocation | None:
        """The QPU that the story's assessment was made with, and what it won by."""
        return self.allocations.get(self.assessment.workflow) if self.assessment else None


Tell = Callable[[Moment], None]


class Job:
    """Watches one main job."""

    def __init__(self, bus: Bus, *, guardians: int, tell: Tell) -> None:
        self.story = Story(time.time_ns())
        self._bus = bus
        self._guardians = guardians
        self._tell = tell
        self._changed = asyncio.Event()
        self._attack_ns: int | None = None
        self._running: set[bytes] = set()
        self._last_workflow_s = time.monotonic()
        self._early_ballots: dict[bytes, dict[str, str]] = {}

    async def watch(self) -> None:
        """Subscribe to what the story is told by."""
        await self._bus.subscribe(DELIVER_ALL, self._on_delivered)
        await self._bus.subscribe(EVENT, self._on_event)
        await self._bus.subscribe(CONSENSUS_BALLOT, self._on_ballot)
        await self._bus.subscribe(CONSENSUS_DECISION, self._on_decision)

    def attack_begins(self) -> None:
        """Note the moment from which detection is measured."""
        self._attack_ns = time.time_ns()

    def note(self, stage: str, text: str, *, headline: bool = False) -> None:
        """Add a line to the timeline."""
        moment = Moment(time.time_ns(), stage, text, headline)
        self.story.timeline.append(moment)
        self._tell(moment)
        self._changed.set()

    async def follow(self, *, expected: bool) -> JobOutcome:
        """Follow the story to its end.

        Args:
            expected: an alert must come: live fire, or the sentinel has said that it found something.

        Raises:
            UnavailableError: ``stage_missing``: a stage did not come in time; names it.
        """
        story = self.story
        if not expected and not story.alerts:
            return JobOutcome.NO_ANOMALIES
        await self._until(lambda: bool(story.alerts), ALERT_TIMEOUT_S, "an alert")
        await self._until(self._assessed, ANALYSIS_TIMEOUT_S, "an assessment")
        if story.assessment is None:
            return JobOutcome.BENIGN
        await self._until(lambda: story.decision is not None, DECISION_TIMEOUT_S, "a decision")
        decision = story.decision
        if decision is None or decision.outcome is not Outcome.DECIDED or decision.option is None:
            return JobOutcome.NOT_DECIDED
        if decision.option.command is None:
            return JobOutcome.BENIGN
        await self._until(
            self._responded, RESPONSE_TIMEOUT_S, "the response's delivery and every guardian's record"
        )
        delivered = story.delivery is not None and story.delivery.complete
        done = all(record.outcome is not ActuationOutcome.REFUSED for record in story.actuations)
        return JobOutcome.RESPONDED if delivered and done else JobOutcome.INCOMPLETE

    async def _until(self, holds: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            left = deadline - time.monotonic()
            if left <= 0:
                raise UnavailableError(f"{what} did not come within {timeout_s:g} s", reason="stage_missing")
            self._changed.clear()
            try:
                async with asyncio.timeout(min(left, 0.25)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _assessed(self) -> bool:
        if self.story.assessment is not None:
            return True
        quiet = time.monotonic() - self._last_workflow_s > QUIET_S
        return bool(self.story.assessments) and not self._running and quiet

    def _responded(self) -> bool:
        return self.story.delivery is not None and len(self.story.actuations) >= self._guardians

    # --- What is heard ------------------------------------------------------------------------

    async def _on_delivered(self, body: Message, context: Context) -> None:
        if isinstance(body, ThreatAlert):
            self._on_alert(body, context)
        elif isinstance(body, Proposal):
            self._on_proposal(body, context)

    def _on_alert(self, alert: ThreatAlert, context: Context) -> None:
        story, late_ms = self.story, (time.time_ns() - context.content.issued_at) / NS_PER_MS
        if alert.order is not None:
            if alert.order.decision == story.decision_id:
                story.order_leaf, story.order_issued_ns = context.leaf, context.content.issued_at
                self.note("response", f"{context.sender.name} broadcasts: {alert.summary}")
            return
        story.alerts.append((alert, late_ms))
        if alert.finding is not None:
            story.findings.append(alert.finding)
        if len(story.alerts) == 1:
            begun_ns = self._attack_ns or story.begun_ns
            story.latencies_ms["detection"] = (context.content.issued_at - begun_ns) / NS_PER_MS
            story.latencies_ms["alert_routed"] = late_ms
        text = f"{context.sender.name}: {alert.summary} [{alert.severity.value}]"
        self.note("alert", text, headline=len(story.alerts) == 1)

    def _on_proposal(self, proposal: Proposal, context: Context) -> None:
        story = self.story
        if story.assessment is None or proposal.workflow != story.assessment.workflow or story.proposal:
            return
        story.proposal, story.decision_id = proposal, context.leaf
        story.ballots = self._early_ballots.pop(context.leaf, {})
        self.note("decision", f"{context.sender.name} proposes: {proposal.options[0].text}", headline=True)

    async def _on_ballot(self, ballot: Ballot, context: Context) -> None:
        option = "abstain" if ballot.choice is Choice.ABSTAIN else str(ballot.option)
        if ballot.decision == self.story.decision_id:
            self.story.ballots[context.sender.name] = option
        elif len(self._early_ballots) < 64:  # a ballot can overtake its proposal on the way here
            self._early_ballots.setdefault(ballot.decision, {})[context.sender.name] = option
        self._changed.set()

    async def _on_decision(self, announced: DecisionAnnounced, _: Context) -> None:
        story = self.story
        if story.decision_id is None or announced.decision != story.decision_id or story.decision is not None:
            return
        story.decision = announced
        story.latencies_ms["decision"] = announced.elapsed_ms
        name = announced.option.name if announced.option else announced.why
        self.note(
            "decision",
            f"{announced.outcome.value}: {name}, {announced.ballots_for} ballots, quorum {announced.quorum} of "
            f"{announced.participants}",
            headline=True,
        )

    async def _on_event(self, body: Message, context: Context) -> None:
        story = self.story
        if isinstance(body, SensorReady):
            story.sensors.append(body)
        elif isinstance(body, WorkflowStage):
            self._on_stage(body)
        elif isinstance(body, AllocationMade):
            story.allocations[body.workflow] = body.allocation
        elif isinstance(body, AssessmentMade):
            self._on_assessment(body)
        elif isinstance(body, Delivery) and body.leaf == story.order_leaf:
            story.delivery = body
            if body.last_ms is not None:
                story.latencies_ms["delivery_last"] = body.last_ms
            late = "" if body.last_ms is None else f", the last after {body.last_ms:.0f} ms"
            self.note("response", f"delivered to {body.delivered} of {body.due} agents{late}", headline=True)
        elif isinstance(body, Actuation) and body.decision == story.decision_id:
            story.actuations.append(body)
            if story.order_issued_ns is not None:
                story.latencies_ms["actuation_last"] = (body.at_ns - story.order_issued_ns) / NS_PER_MS
            self.note("response", f"{context.sender.name}: {body.outcome.value}, {body.detail}")
        self._changed.set()

    def _on_stage(self, stage: WorkflowStage) -> None:
        self.story.stages.append(stage)
        self._running.add(stage.workflow)
        self._last_workflow_s = time.monotonic()
        if stage.state is not StageState.STARTED:
            self.note(
                "analysis", f"{stage.stage} {stage.state.value} ({stage.elapsed_ms:.0f} ms): {stage.detail}"
            )

    def _on_assessment(self, made: AssessmentMade) -> None:
        story = self.story
        self._running.discard(made.workflow)
        story.assessments.append(made)
        if made.failure is not None:
            self.note("analysis", f"failed: {made.failure.detail}")
        elif made.assessment is not None:
            assessment = made.assessment
            followed = story.assessment is None and assessment.recommended is not None
            if followed:
                story.assessment = assessment
                begun = [s for s in story.stages if s.workflow == made.workflow]
                story.latencies_ms["analysis"] = max((s.elapsed_ms for s in begun), default=0.0)
            self.note(
                "analysis",
                f"{assessment.subject} is {assessment.verdict.value}, confidence {assessment.confidence:.2f}",
                headline=followed,
            )
