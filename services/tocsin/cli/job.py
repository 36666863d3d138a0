"""The main job, watched from outside: one attack becomes one decided, delivered, verified response.

The job does nothing that the agents and services do not do themselves: it listens to what they publish,
notes when each stage began and ended, and says when the story is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from tocsin.bus import Bus, Context
from tocsin.cli.story import Case, JobOutcome, Moment, Story
from tocsin.contracts.analysis import AssessmentMade, StageState, WorkflowStage
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_BALLOT, CONSENSUS_DECISION, DELIVER_ALL, EVENT
from tocsin.contracts.decisions import Ballot, Choice, DecisionAnnounced, Proposal
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.observations import SensorReady
from tocsin.contracts.response import Actuation, ActuationOutcome
from tocsin.contracts.routing import Delivery, ThreatAlert
from tocsin.contracts.workflows import AllocationMade

ALERT_TIMEOUT_S = 15.0
CASE_TIMEOUT_S = 45.0
"""For a case to come from its alert to its end."""
QUIET_S = 2.5
"""A hunter gathers for at most two seconds: so long after the last alert, no further case begins."""
MAX_EARLY = 4096
"""What was heard of decisions whose proposals have not come yet; what goes beyond is not in the story."""
MAX_EARLY_DELIVERIES = 256
NS_PER_MS = 1e6

Tell = Callable[[Moment], None]


class Job:
    """Watches one main job."""

    def __init__(self, bus: Bus, *, guardians: int, tell: Tell, advice: str | None = None) -> None:
        """Watch by ``bus``; ``advice`` is what to do when a stage does not come."""
        self.story = Story(time.time_ns())
        self._bus = bus
        self._guardians = guardians
        self._tell = tell
        self._advice = advice
        self._changed = asyncio.Event()
        self._attack_ns: int | None = None
        self._last_alert_s = 0.0
        self._early: dict[bytes, list[Callable[[Case], None]]] = {}
        self._early_deliveries: dict[bytes, Delivery] = {}

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
        """Follow every case to its end.

        Args:
            expected: an alert must come: live fire, or the sentinel has said that it found something.

        Raises:
            UnavailableError: ``stage_missing``: a stage did not come in time; names it.
        """
        story = self.story
        if not expected and not story.alerts:
            return JobOutcome.NO_ANOMALIES
        await self._until(lambda: None if story.alerts else "an alert", ALERT_TIMEOUT_S)
        await self._until(self._waits_for, CASE_TIMEOUT_S)
        return story.outcome

    async def _until(self, waits_for: Callable[[], str | None], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (what := waits_for()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise UnavailableError(
                    f"{what} did not come within {timeout_s:g} s", reason="stage_missing", advice=self._advice
                )
            self._changed.clear()
            try:
                async with asyncio.timeout(min(left, 0.25)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _waits_for(self) -> str | None:
        cases = self.story.cases.values()
        if not cases:
            return "an assessment of what was found"
        for case in cases:
            if what := self.story.answer_to(case).waits_for(self._guardians):
                return what
        quiet = time.monotonic() - self._last_alert_s > QUIET_S
        return None if quiet else "further cases"

    # --- What is heard ------------------------------------------------------------------------

    def _case(self, workflow: bytes) -> Case:
        return self.story.cases.setdefault(workflow, Case(workflow))

    def _about(self, decision: bytes, tell: Callable[[Case], None]) -> None:
        """Tell the case of a decision something, once its proposal is known.

        What follows that can overtake it on the way here: each subject has a line of its own, emergencies as well.
        """
        case = next((case for case in self.story.cases.values() if case.decision_id == decision), None)
        if case is not None:
            tell(case)
        elif sum(map(len, self._early.values())) < MAX_EARLY:
            self._early.setdefault(decision, []).append(tell)

    async def _on_delivered(self, body: Message, context: Context) -> None:
        if isinstance(body, ThreatAlert):
            self._on_alert(body, context)
        elif isinstance(body, Proposal):
            self._on_proposal(body, context)

    def _on_alert(self, alert: ThreatAlert, context: Context) -> None:
        story = self.story
        if alert.order is not None:
            self._about(alert.order.decision, partial(self._on_order, alert, context))
            return
        story.alerts.append(alert)
        self._last_alert_s = time.monotonic()
        if len(story.alerts) == 1:
            begun_ns = self._attack_ns or story.begun_ns
            story.latencies_ms["detection"] = (context.content.issued_at - begun_ns) / NS_PER_MS
            story.latencies_ms["alert_routed"] = (time.time_ns() - context.content.issued_at) / NS_PER_MS
        text = f"{context.sender.name}: {alert.summary} [{alert.severity.value}]"
        self.note("alert", text, headline=len(story.alerts) == 1)

    def _on_order(self, alert: ThreatAlert, context: Context, case: Case) -> None:
        case.order_leaf, case.order_issued_ns = context.leaf, context.content.issued_at
        self.note("response", f"{context.sender.name} broadcasts: {alert.summary}")
        if (early := self._early_deliveries.pop(context.leaf, None)) is not None:
            self._on_delivery(early)

    def _on_proposal(self, proposal: Proposal, context: Context) -> None:
        if context.sender.role is not Role.ADMIN:
            return  # a question of somebody else's, whatever workflow it names
        case = self._case(proposal.workflow)
        if case.proposal is None:
            case.proposal, case.decision_id = proposal, context.leaf
            self.note("decision", f"{context.sender.name} proposes: {proposal.options[0].text}", headline=True)
            for tell in self._early.pop(context.leaf, ()):
                tell(case)

    async def _on_ballot(self, ballot: Ballot, context: Context) -> None:
        option = "abstain" if ballot.choice is Choice.ABSTAIN else str(ballot.option)
        self._about(ballot.decision, lambda case: case.ballots.update({context.sender.name: option}))

    async def _on_decision(self, announced: DecisionAnnounced, _: Context) -> None:
        self._about(announced.decision, partial(self._on_end, announced))

    def _on_end(self, announced: DecisionAnnounced, case: Case) -> None:
        if case.decision is not None:
            return
        case.decision = announced
        case.latencies_ms["decision"] = announced.elapsed_ms
        what = announced.option.text if announced.option else announced.why
        counted = f"{announced.ballots_for} ballots, quorum {announced.quorum} of {announced.participants}"
        self.note("decision", f"{announced.outcome.value}: {what}, {counted}", headline=True)

    async def _on_event(self, body: Message, context: Context) -> None:
        if isinstance(body, SensorReady):
            self.story.sensors.append(body)
        elif isinstance(body, WorkflowStage):
            self._on_stage(body)
        elif isinstance(body, AllocationMade):
            self._case(body.workflow).allocation = body.allocation
        elif isinstance(body, AssessmentMade):
            self._on_assessment(body)
        elif isinstance(body, Delivery):
            self._on_delivery(body)
        elif isinstance(body, Actuation):
            self._about(body.decision, partial(self._on_actuation, body, context.sender.name))
        self._changed.set()

    def _on_stage(self, stage: WorkflowStage) -> None:
        self._case(stage.workflow).stages.append(stage)
        if stage.state is not StageState.STARTED:
            text = f"{stage.stage} {stage.state.value} ({stage.elapsed_ms:.0f} ms): {stage.detail}"
            self.note("analysis", text)

    def _on_assessment(self, made: AssessmentMade) -> None:
        case = self._case(made.workflow)
        case.made = made
        case.latencies_ms["analysis"] = max((stage.elapsed_ms for stage in case.stages), default=0.0)
        if made.assessment is not None:
            said = made.assessment
            text = f"{said.subject} is {said.verdict.value}, confidence {said.confidence:.2f}"
        else:
            text = f"failed: {made.failure.detail if made.failure else 'no reason given'}"
        self.note("analysis", text, headline=True)

    def _on_delivery(self, delivery: Delivery) -> None:
        case = next((case for case in self.story.cases.values() if case.order_leaf == delivery.leaf), None)
        if case is None:
            # Its account can overtake an order on the way here.
            if len(self._early_deliveries) < MAX_EARLY_DELIVERIES:
                self._early_deliveries[delivery.leaf] = delivery
            return
        case.delivery = delivery
        late = ""
        if delivery.last_ms is not None:
            case.latencies_ms["delivery_last"] = delivery.last_ms
            late = f", the last after {delivery.last_ms:.0f} ms"
        text = f"delivered to {delivery.delivered} of {delivery.due} agents{late}"
        self.note("response", text, headline=True)

    def _on_actuation(self, record: Actuation, guardian: str, case: Case) -> None:
        if record.outcome not in {ActuationOutcome.UNDONE, ActuationOutcome.STUCK}:
            case.actuations[guardian] = record  # what became of it later is a line of the timeline
        if case.order_issued_ns:
            case.latencies_ms["actuation_last"] = (record.at_ns - case.order_issued_ns) / NS_PER_MS
        self.note("response", f"{guardian}: {record.outcome.value.replace('_', ' ')}: {record.detail}")
