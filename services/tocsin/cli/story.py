"""The story of a run: what was seen of each case, from the alert to the response. Pure, no bus."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tocsin.contracts.analysis import Assessment, AssessmentMade, WorkflowStage
from tocsin.contracts.decisions import DecisionAnnounced, Outcome, Proposal
from tocsin.contracts.observations import Finding, SensorReady
from tocsin.contracts.quantum import Allocation
from tocsin.contracts.response import Actuation, ActuationOutcome
from tocsin.contracts.routing import Delivery, ThreatAlert


class JobOutcome(StrEnum):
    """How a case, or the whole story, ended; the later ones outweigh the earlier."""

    NO_ANOMALIES = "no_anomalies"
    BENIGN = "benign"
    RESPONDED = "responded"
    INCOMPLETE = "incomplete"
    NOT_DECIDED = "not_decided"
    NOT_ASSESSED = "not_assessed"


CARRIED_OUT = frozenset({ActuationOutcome.DONE, ActuationOutcome.WOULD_DO})
"""What guardians do that is as it was decided."""
WEIGHT = {outcome: weight for weight, outcome in enumerate(JobOutcome)}


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline."""

    at_ns: int
    stage: str
    text: str
    headline: bool = False
    """Whether it says how the stage stands, rather than one thing among many."""


@dataclass(slots=True)
class Case:
    """One incident: its analysis, what was decided about it, and what was done."""

    workflow: bytes
    stages: list[WorkflowStage] = field(default_factory=list)
    allocation: Allocation | None = None
    """The QPU that it was given, and what that won by."""
    made: AssessmentMade | None = None
    proposal: Proposal | None = None
    decision_id: bytes | None = None
    ballots: dict[str, str] = field(default_factory=dict)
    """Choice by agent."""
    decision: DecisionAnnounced | None = None
    order_leaf: bytes | None = None
    order_issued_ns: int = 0
    delivery: Delivery | None = None
    actuations: dict[str, Actuation] = field(default_factory=dict)
    """By guardian."""
    latencies_ms: dict[str, float] = field(default_factory=dict)

    @property
    def assessment(self) -> Assessment | None:
        """What workflow concluded."""
        return self.made.assessment if self.made else None

    @property
    def calls_for_response(self) -> bool:
        """Whether the assessment recommends a command."""
        return self.assessment is not None and self.assessment.recommended is not None

    @property
    def orders_response(self) -> bool:
        """Whether a command was decided."""
        decision = self.decision
        return (
            decision is not None
            and decision.outcome is Outcome.DECIDED
            and decision.option is not None
            and decision.option.command is not None
        )

    def responds_to(self, other: Case) -> bool:
        """Whether what another case calls for is being decided, or was decided, in this one."""
        wanted = other.assessment.recommended if other.assessment else None
        if wanted is None or self.proposal is None or (self.decision is not None and not self.orders_response):
            return False
        return any(
            (option.command.action, option.command.address) == (wanted.action, wanted.address)
            for option in self.proposal.options
            if option.command is not None
        )

    def waits_for(self, guardians: int) -> str | None:
        """Return what is still to come, or None when the case has ended."""
        if self.made is None:
            return "an assessment"
        if not self.calls_for_response:
            return None
        if self.decision is None:
            return "a decision"
        if not self.orders_response:
            return None
        if self.delivery is None:
            return "the proof of the order's delivery"
        missing = guardians - len(self.actuations)
        return f"the record of {missing} guardians" if missing > 0 else None

    def outcome(self) -> JobOutcome:
        """Return how the case ended."""
        if self.assessment is None:
            return JobOutcome.NOT_ASSESSED
        if not self.calls_for_response:
            return JobOutcome.BENIGN
        decision = self.decision
        if decision is None or decision.outcome is not Outcome.DECIDED:
            return JobOutcome.NOT_DECIDED
        if not self.orders_response:
            return JobOutcome.BENIGN
        delivered = self.delivery is not None and self.delivery.complete
        done = all(record.outcome in CARRIED_OUT for record in self.actuations.values())
        return JobOutcome.RESPONDED if delivered and done else JobOutcome.INCOMPLETE


@dataclass(slots=True)
class Story:
    """Everything that was seen."""

    begun_ns: int
    timeline: list[Moment] = field(default_factory=list)
    alerts: list[ThreatAlert] = field(default_factory=list)
    sensors: list[SensorReady] = field(default_factory=list)
    cases: dict[bytes, Case] = field(default_factory=dict)
    """By workflow, in the order in which they began."""
    latencies_ms: dict[str, float] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """What the alerts were about: the strongest of each host and kind, strongest first."""
        found = sorted((a.finding for a in self.alerts if a.finding), key=lambda finding: finding.score)
        return list({(f.subject, f.kind): f for f in found}.values())[::-1]

    @property
    def main(self) -> Case | None:
        """The case that the summary tells: the one that went furthest, of those the strongest."""

        def rank(case: Case) -> tuple[bool, bool, float]:
            score = case.assessment.finding.score if case.assessment else 0.0
            return case.orders_response, case.calls_for_response, score

        return max(self.cases.values(), key=rank, default=None)

    def answer_to(self, case: Case) -> Case:
        """Return the case in which this one's response is decided: itself, or the one that had asked for it before.

        A late finding about the same host makes a case of its own; admins propose nothing that is being decided or is
        in force.
        """
        if case.proposal is not None:
            return case
        return next((other for other in self.cases.values() if other.responds_to(case)), case)

    @property
    def outcome(self) -> JobOutcome:
        """How it ended: the worst of its cases."""
        outcomes = [self.answer_to(case).outcome() for case in self.cases.values()]
        return max(outcomes, key=WEIGHT.__getitem__, default=JobOutcome.NO_ANOMALIES)
