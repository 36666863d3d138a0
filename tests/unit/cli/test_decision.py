"""A question from a command line, and decisions as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.cli.decision_arguments import options_from, scope_from
from tocsin.cli.decision_views import Ended, lines_of, list_lines, view_of
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome, Scope
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Role

ANNOUNCED = DecisionAnnounced(
    decision=b"\xab" * 32,
    epoch=bytes(32),
    outcome=Outcome.DECIDED,
    why="3 of 3 ballots for one option",
    option=Option(name="yes", command=None, text="Yes"),
    certificate=bytes(32),
    certificate_bytes=10,
    object_name="ab",
    round=2,
    participants=4,
    quorum=3,
    ballots_for=3,
    ballots_received=3,
    missing=("s-4",),
    agreement=1.0,
    elapsed_ms=12.0,
)
ENDED = Ended(ANNOUNCED, 1_790_000_000_000_000_000, "0")


@pytest.mark.parametrize(
    ("named", "deny", "contain", "names"),
    [
        (["a", "b=Be"], None, None, ["a", "b"]),
        ([], "203.0.113.7", None, ["deny", "observe"]),
        (["wait"], None, "192.0.2.1", ["contain", "wait"]),
    ],
)
def test_options_are_named_or_follow_from_a_command(
    named: list[str], deny: str | None, contain: str | None, names: list[str]
) -> None:
    options = options_from(named, deny, contain, "1h")
    assert [option.name for option in options] == names


@given(
    named=st.lists(st.text(max_size=20), max_size=4),
    deny=st.none() | st.text(max_size=20),
    lasts=st.text(max_size=5),
)
def test_any_arguments_are_options_or_one_of_our_errors(named: list[str], deny: str | None, lasts: str) -> None:
    try:
        options = options_from(named, deny, None, lasts)
    except TocsinError as error:
        reason = error.reason
    else:
        reason = "" if len(options) >= 2 else "too few"
    assert reason in {"", "bad_options", "bad_address", "bad_duration"}


def test_a_scope_is_all_a_role_or_a_mission() -> None:
    assert scope_from("all", None, []) == Scope()
    assert scope_from("role:hunter", None, []) == Scope(role=Role.HUNTER)
    assert scope_from("all", "m-1", ["b", "a", "b"]) == Scope(mission="m-1", members=("a", "b"))
    for scope, members in (("role:king", []), ("some", []), ("all", ["a"])):
        with pytest.raises(InvalidInputError) as caught:
            scope_from(scope, None, members)
        assert caught.value.reason == "bad_scope"


def test_a_decision_says_who_was_asked_what_came_and_who_did_not_ballot() -> None:
    said = "\n".join(lines_of(ENDED, None))
    for part in ("ab" * 32, "decided: yes", "4 participants, quorum 3", "agreement 100 %", "s-4", "round 2"):
        assert part in said
    assert "not accounted for" in said
    view = view_of(ENDED)
    assert (view["no_ballot"], view["agreement"], view["subject"]) == (["s-4"], 1.0, None)


def test_a_list_is_a_line_each_and_says_what_it_leaves_out() -> None:
    lines = list_lines([ENDED], before=17, refused=2)
    assert len(lines) == 4
    assert lines[1].startswith("ab" * 8)
    assert "--before 17" in lines[2]
    assert "2 announcements prove nothing" in lines[3]
    assert list_lines([]) == ["no decisions"]


def test_a_proposal_of_another_decision_is_not_shown_as_this_ones() -> None:
    forged = Ended(ANNOUNCED.model_copy(update={"proposal": b"\x93\x01"}), 0, "0")
    assert forged.proposal is None
