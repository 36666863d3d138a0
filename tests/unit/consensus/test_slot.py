"""One slot's rules, among one and among four instances."""

from __future__ import annotations

import pytest

from tocsin.consensus.slot import Cast, Slot
from tocsin.contracts.decisions import Step
from tocsin.contracts.errors import UntrustedError

X, Y = b"x" * 32, b"y" * 32
FOUR = ("i0", "i1", "i2", "i3")


def alone(admissible: set[bytes]) -> Slot:
    return Slot(("i0",), "i0", rotation=0, admissible=admissible.__contains__)


def four(me: str, admissible: set[bytes]) -> Slot:
    return Slot(FOUR, me, rotation=0, admissible=admissible.__contains__)


def committed_by(slot: Slot) -> set[str]:
    """Return whose votes commit, if any do."""
    return set() if slot.commit is None else set(slot.commit.votes)


def feed_own(slot: Slot, me: str, casts: list[Cast]) -> list[Step]:
    """Give a slot its own casts back until nothing follows; return the steps taken."""
    taken: list[Step] = []
    while casts:
        cast, *casts = casts
        taken.append(cast.step)
        casts += slot.receive(cast.step, me, cast.view, cast.value, cast.step.value.encode())
    return taken


def test_one_instance_commits_what_it_proposes() -> None:
    slot = alone({X})
    assert feed_own(slot, "i0", slot.propose(X)) == [Step.PROPOSE, Step.VOTE1, Step.VOTE2]
    assert slot.commit is not None
    assert (slot.commit.value, dict(slot.commit.votes)) == (X, {"i0": b"vote2"})


def test_what_is_inadmissible_is_not_proposed() -> None:
    assert alone(set()).propose(X) == []


def test_nothing_is_cast_twice_though_another_value_becomes_admissible() -> None:
    admissible = {X}
    slot = alone(admissible)
    casts = slot.propose(X)
    admissible.clear()
    admissible.add(Y)
    assert slot.propose(Y) == []
    assert feed_own(slot, "i0", casts) == [Step.PROPOSE, Step.VOTE1, Step.VOTE2]
    assert slot.commit is not None
    assert slot.commit.value == X
    assert slot.propose(Y) == slot.advance() == []


def test_after_a_restart_own_votes_are_known_and_what_lacks_follows() -> None:
    slot = alone({X, Y})
    assert [cast.step for cast in slot.receive(Step.VOTE1, "i0", 1, X, b"v1")] == [Step.VOTE2]
    assert slot.receive(Step.PROPOSE, "i0", 1, X, b"p") == []
    assert slot.propose(Y) == []


def test_three_of_four_commit() -> None:
    slot = four("i1", {X})
    assert [c.step for c in slot.receive(Step.PROPOSE, "i0", 1, X, b"p")] == [Step.VOTE1]
    assert slot.receive(Step.VOTE1, "i0", 1, X, b"a") == []
    assert slot.receive(Step.VOTE1, "i1", 1, X, b"b") == []
    assert [c.step for c in slot.receive(Step.VOTE1, "i2", 1, X, b"c")] == [Step.VOTE2]
    assert slot.lock == (1, X)
    for instance in ("i0", "i2"):
        slot.receive(Step.VOTE2, instance, 1, X, instance.encode())
    assert committed_by(slot) == set()
    slot.receive(Step.VOTE2, "i3", 1, X, b"i3")
    assert committed_by(slot) == {"i0", "i2", "i3"}


def test_two_votes_of_one_instance_are_one() -> None:
    slot = four("i1", {X})
    for _ in range(5):
        assert slot.receive(Step.VOTE1, "i2", 1, X, b"") == []
        slot.receive(Step.VOTE2, "i2", 1, X, b"")
    assert slot.commit is None


def test_only_the_leader_proposes_and_its_first_proposal_counts() -> None:
    slot = four("i1", {X, Y})
    with pytest.raises(UntrustedError) as caught:
        slot.receive(Step.PROPOSE, "i2", 1, X, b"")
    assert caught.value.reason == "not_the_leader"
    assert slot.propose(X) == []
    assert [c.value for c in slot.receive(Step.PROPOSE, "i0", 1, X, b"")] == [X]
    assert slot.receive(Step.PROPOSE, "i0", 1, Y, b"") == []


def test_a_proposal_waits_until_it_is_admissible_here() -> None:
    admissible: set[bytes] = set()
    slot = four("i1", admissible)
    assert slot.receive(Step.PROPOSE, "i0", 1, X, b"") == []
    admissible.add(X)
    assert [c.step for c in slot.advance()] == [Step.VOTE1]


def test_another_view_is_not_counted() -> None:
    slot = alone({X})
    assert slot.receive(Step.VOTE2, "i0", 2, X, b"") == []
    assert slot.commit is None
