"""When a case has ended, and how: also one whose response another case had asked for before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from council import DENY, OPTIONS, proposal_body
from unit.roles.cases import assessment

from tocsin.bus.envelope import uuid7
from tocsin.cli.story import Case, JobOutcome, Story
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome
from tocsin.contracts.response import Action, Command

OTHER = Command(action=Action.CONTAIN, address="10.0.0.1", duration_s=60)


def case_of(story: Story, command: Command | None) -> Case:
    """Add a case that was assessed, and calls for a command."""
    workflow = uuid7()
    made = assessment(recommended=command).model_copy(update={"workflow": workflow})
    case = story.cases[workflow] = Case(workflow)
    case.made = AssessmentMade(workflow=workflow, incident=made.incident, requester="x", assessment=made)
    return case


def decided(option: Option | None) -> DecisionAnnounced:
    """Return an announcement, as far as a story reads it."""
    outcome = Outcome.CLOSED if option is None else Outcome.DECIDED
    return cast("DecisionAnnounced", SimpleNamespace(outcome=outcome, option=option))


def test_a_late_case_is_answered_by_the_one_that_asks_for_the_same() -> None:
    story = Story(0)
    first, late = case_of(story, DENY), case_of(story, DENY.model_copy(update={"duration_s": 60}))
    assert late.waits_for(0) == "a decision"
    assert story.answer_to(late) is late
    first.proposal = proposal_body(bytes(32))
    assert story.answer_to(late) is first
    assert story.answer_to(first) is first
    outcomes = [story.outcome]
    first.decision = decided(OPTIONS[0])
    assert story.answer_to(late) is first
    assert [*outcomes, story.outcome] == [JobOutcome.NOT_DECIDED, JobOutcome.INCOMPLETE]


def test_a_case_is_not_answered_by_another_command_nor_by_what_was_not_decided() -> None:
    story = Story(0)
    first, late, benign = case_of(story, DENY), case_of(story, OTHER), case_of(story, None)
    first.proposal = proposal_body(bytes(32))
    assert story.answer_to(late) is late
    assert story.answer_to(benign) is benign
    same = case_of(story, DENY)
    first.decision = decided(None)
    assert story.answer_to(same) is same
    first.decision = decided(OPTIONS[1])
    assert story.answer_to(same) is same
    same.proposal = proposal_body(bytes(32))
    first.decision = decided(OPTIONS[0])
    assert story.answer_to(same) is same
