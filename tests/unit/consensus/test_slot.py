"""One slot's rules, among one and among four instances; then whole worlds of slots, hostile ones among them."""

from __future__ import annotations

import pytest
from slot_world import Schedule

from tocsin.consensus.slot import Cast, Commit, QuorumCert, Received, Slot
from tocsin.contracts.decisions import MAX_VIEW, Step
from tocsin.contracts.errors import UntrustedError

X, Y = b"x" * 32, b"y" * 32
FOUR = ("i0", "i1", "i2", "i3")


def alone(admissible: set[bytes]) -> Slot:
    return Slot(("i0",), "i0", rotation=0, admissible=admissible.__contains__)


def four(me: str, admissible: set[bytes]) -> Slot:
    return Slot(FOUR, me, rotation=0, admissible=admissible.__contains__)


def said(step: Step, who: str, value: bytes | None, view: int = 1, high: QuorumCert | None = None) -> Received:
    return Received(step, who, view, value, high, f"{who} {step}".encode())


def qc(view: int, value: bytes) -> QuorumCert:
    return QuorumCert(view, value, dict.fromkeys(FOUR[:3], b""))


def committed_by(slot: Slot) -> set[str]:
    """Return whose votes commit, if any do."""
    return set() if slot.commit is None else set(slot.commit.votes)


def feed_own(slot: Slot, me: str, casts: list[Cast]) -> list[Step]:
    """Give a slot its own casts back until nothing follows; return the steps taken."""
    taken: list[Step] = []
    while casts:
        cast, *casts = casts
        taken.append(cast.step)
        casts += slot.receive(said(cast.step, me, cast.value, cast.view, cast.high))
    return taken


def lock(slot: Slot, value: bytes, view: int = 1) -> None:
    """Let a slot see Q VOTE1, its own among them, and give it its VOTE2."""
    for who in FOUR[:3]:
        for cast in slot.receive(said(Step.VOTE1, who, value, view)):
            feed_own(slot, "i1", [cast])
    assert slot.lock is not None
    assert (slot.lock.view, slot.lock.value) == (view, value)


def enter(slot: Slot, view: int) -> None:
    """Let Q time out of the view before."""
    for who in ("i0", "i2", "i3"):
        for cast in slot.receive(said(Step.TIMEOUT, who, None, view - 1)):
            feed_own(slot, "i1", [cast])
    assert slot.view == view


def test_one_instance_commits_what_it_proposes() -> None:
    slot = alone({X})
    assert feed_own(slot, "i0", slot.propose(X)) == [Step.PROPOSE, Step.VOTE1, Step.VOTE2]
    assert slot.commit is not None
    assert slot.commit.value == X
    assert set(slot.commit.votes) == {"i0"}


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


def test_after_a_restart_own_steps_are_known_and_what_lacks_follows() -> None:
    slot = alone({X, Y})
    slot.restore(said(Step.PROPOSE, "i0", X))
    slot.restore(said(Step.VOTE1, "i0", X))
    assert [cast.step for cast in slot.advance()] == [Step.VOTE2]
    assert slot.propose(Y) == []


def test_three_of_four_commit() -> None:
    slot = four("i1", {X})
    assert [c.step for c in slot.receive(said(Step.PROPOSE, "i0", X))] == [Step.VOTE1]
    assert slot.receive(said(Step.VOTE1, "i0", X)) == []
    assert slot.receive(said(Step.VOTE1, "i1", X)) == []
    assert [c.step for c in slot.receive(said(Step.VOTE1, "i2", X))] == [Step.VOTE2]
    for instance in ("i0", "i2"):
        slot.receive(said(Step.VOTE2, instance, X))
    assert committed_by(slot) == set()
    slot.receive(said(Step.VOTE2, "i3", X))
    assert committed_by(slot) == {"i0", "i2", "i3"}


def test_two_votes_of_one_instance_are_one() -> None:
    slot = four("i1", {X})
    for _ in range(5):
        assert slot.receive(said(Step.VOTE1, "i2", X)) == []
        slot.receive(said(Step.VOTE2, "i2", X))
    assert slot.commit is None


def test_only_the_leader_proposes_and_its_first_proposal_counts() -> None:
    slot = four("i1", {X, Y})
    with pytest.raises(UntrustedError) as caught:
        slot.receive(said(Step.PROPOSE, "i2", X))
    assert caught.value.reason == "not_the_leader"
    assert slot.propose(X) == []
    assert [c.value for c in slot.receive(said(Step.PROPOSE, "i0", X))] == [X]
    assert slot.receive(said(Step.PROPOSE, "i0", Y)) == []


def test_a_proposal_waits_until_it_is_admissible_here() -> None:
    admissible: set[bytes] = set()
    slot = four("i1", admissible)
    assert slot.receive(said(Step.PROPOSE, "i0", X)) == []
    assert slot.waiting == X
    admissible.add(X)
    assert [c.step for c in slot.advance()] == [Step.VOTE1]
    assert slot.waiting is None


def test_a_valid_hqc_makes_a_value_admissible() -> None:
    slot = four("i2", set())
    for who in ("i0", "i1", "i3"):
        slot.receive(said(Step.TIMEOUT, who, None, 1, qc(1, X) if who == "i3" else None))
    assert slot.view == 2
    casts = slot.receive(said(Step.PROPOSE, "i1", X, 2, qc(1, X)))
    assert [(c.step, c.view, c.high) for c in casts] == [(Step.VOTE1, 2, qc(1, X))]


@pytest.mark.parametrize("high", [None, qc(1, X), qc(2, Y)])
def test_a_lock_holds_against_another_value_without_a_later_certificate(high: QuorumCert | None) -> None:
    """Locked on x in view 2: no vote for y, with an omitted hqc, one of an older view, or one for x."""
    slot = four("i3", {X, Y})
    enter_as(slot, "i3", 2)
    for who in FOUR[:3]:
        for cast in slot.receive(said(Step.VOTE1, who, X, 2)):
            feed_own(slot, "i3", [cast])
    enter_as(slot, "i3", 3)
    if high is not None and high.value == X:
        assert slot.receive(said(Step.PROPOSE, "i2", Y, 3, high)) == []
    elif high is None:
        assert slot.receive(said(Step.PROPOSE, "i2", Y, 3, None)) == []
    else:
        assert [c.value for c in slot.receive(said(Step.PROPOSE, "i2", Y, 3, high))] == [Y]


def enter_as(slot: Slot, me: str, view: int) -> None:
    for who in [name for name in FOUR if name != me]:
        for cast in slot.receive(said(Step.TIMEOUT, who, None, view - 1)):
            feed_own(slot, me, [cast])
    assert slot.view == view


def test_a_leader_proposes_the_highest_certificate_again() -> None:
    slot = four("i1", {Y})
    slot.receive(said(Step.TIMEOUT, "i0", None, 1, qc(1, X)))
    enter(slot, 2)
    casts = slot.propose(Y)
    assert [(c.step, c.value) for c in casts] == [(Step.PROPOSE, X), (Step.VOTE1, X)]
    assert casts[0].high == qc(1, X)


def test_what_one_has_timed_out_of_it_does_not_vote_in() -> None:
    slot = four("i1", {X})
    assert [c.step for c in slot.expire()] == [Step.TIMEOUT]
    assert slot.receive(said(Step.PROPOSE, "i0", X)) == []
    assert slot.expire() == []


def test_more_than_g_time_outs_are_joined_and_q_begin_the_next_view() -> None:
    slot = four("i1", set())
    assert slot.receive(said(Step.TIMEOUT, "i0", None)) == []
    (joined,) = slot.receive(said(Step.TIMEOUT, "i2", None))
    assert joined.step is Step.TIMEOUT
    assert slot.view == 1
    slot.receive(said(Step.TIMEOUT, "i1", None))
    assert slot.view == 2


def test_more_hostile_instances_than_are_tolerated_lead_nobody_beyond_the_last_view() -> None:
    slot = four("i1", {X})
    casts = [cast for who in ("i2", "i3") for cast in slot.receive(said(Step.TIMEOUT, who, None, MAX_VIEW))]
    assert [(cast.step, cast.view) for cast in casts] == [(Step.TIMEOUT, MAX_VIEW)]
    assert feed_own(slot, "i1", casts) == [Step.TIMEOUT]
    assert slot.view == MAX_VIEW
    assert slot.expire() == []


def test_a_lock_survives_a_restart_in_whatever_order_the_log_has() -> None:
    slot = four("i1", {X, Y})
    slot.restore(said(Step.VOTE2, "i1", Y, 3, qc(3, Y)))
    slot.restore(said(Step.VOTE2, "i1", X, 2, qc(2, X)))
    assert slot.lock == slot.high == qc(3, Y)


def test_a_vote_for_a_locked_value_names_its_lock() -> None:
    slot = four("i1", {X})
    lock(slot, X)
    enter(slot, 2)
    assert slot.lock is not None
    cast = slot.propose(None)[1]
    assert (cast.step, cast.value) == (Step.VOTE1, X)
    assert cast.high is not None
    assert cast.high.view == 1


def test_a_commit_that_is_shown_is_taken_once() -> None:
    slot = four("i1", set())
    slot.settle(Commit(X, 3, {}))
    slot.settle(Commit(Y, 4, {}))
    assert slot.commit == Commit(X, 3, {})
    assert slot.expire() == []


@pytest.mark.parametrize("hostile", [0, 1])
def test_no_schedule_makes_two_outcomes_and_all_finish(hostile: int) -> None:
    for seed in range(150):
        schedule = Schedule(seed, hostile=hostile)
        schedule.run()
        assert len(set(schedule.committed.values())) <= 1, f"seed {seed} forks"
        assert len(schedule.committed) == len(schedule.nodes), f"seed {seed} does not end"


def test_more_hostile_instances_than_are_tolerated_can_fork() -> None:
    """That the schedules are strong enough to break what is broken."""
    assert any(forks(seed, hostile=2) for seed in range(1_000))


def forks(seed: int, *, hostile: int) -> bool:
    schedule = Schedule(seed, hostile=hostile)
    schedule.run()
    return len(set(schedule.committed.values())) > 1
