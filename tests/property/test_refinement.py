"""Whatever ballots come: the next round's options follow from them by the rule, and by nothing else."""

from __future__ import annotations

import random

from council import DENY
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.consensus.refinement import LEFT, Chosen, refine
from tocsin.contracts.decisions import MAX_OPTIONS, Option
from tocsin.evidence.quorum import Quorum

ACTS = tuple(
    Option(name=f"deny-{n}", command=DENY.model_copy(update={"duration_s": n + 1}), text=f"{n}")
    for n in range(MAX_OPTIONS)
)
WAITS = tuple(Option(name=f"wait-{n}", command=None, text=f"{n}") for n in range(MAX_OPTIONS))
NEW = (
    Option(name="watch", command=None, text="Watch it"),
    Option(name="contain", command=DENY.model_copy(update={"address": "198.51.100.7"}), text="Contain it"),
)
TEN = Quorum.of(10)
"""f = 3, n - f = 7, q = 7."""


def named(options: tuple[Option, ...]) -> list[str]:
    return [option.name for option in options]


def test_fewer_than_all_but_f_ballots_change_nothing() -> None:
    v1 = (*ACTS[:3], WAITS[0])
    assert refine(v1, [2] * 6, TEN) == v1
    assert refine(v1, [2] * 7, TEN) != v1


def test_the_least_supported_goes_and_the_rest_stands_in_the_order_of_support() -> None:
    v1 = (*ACTS[:3], WAITS[0])
    assert named(refine(v1, [0, 0, 1, 2, 2, 2, 3, 3, 3, None], TEN)) == ["deny-2", "wait-0", "deny-0"]


def test_of_equals_the_later_one_goes_and_the_earlier_one_stands_first() -> None:
    v1 = (*ACTS[:3], WAITS[0])
    assert named(refine(v1, [0, 0, 1, 1, 2, 2, 3, 3, 3], TEN)) == ["wait-0", "deny-0", "deny-1"]


def test_those_that_would_go_one_after_the_other_go_together() -> None:
    v1 = (*ACTS[:5], WAITS[0])
    # 1 + 1 + 1 < 4: whatever the ones that supported them do, they cannot catch up one by one.
    assert named(refine(v1, [0, 1, 2, *[3] * 4, *[4] * 4], Quorum.of(13))) == ["deny-3", "deny-4", "wait-0"]


def test_two_stay_however_little_they_have() -> None:
    v1 = (ACTS[0], WAITS[0])
    assert refine(v1, [0] * 6 + [None] * 4, TEN) == v1
    assert refine(v1, [1] * 6 + [None] * 4, TEN) == (WAITS[0], ACTS[0])


def test_who_wants_no_action_can_always_say_so() -> None:
    v1 = (*ACTS[:2], *WAITS[:2])
    after = refine(v1, [0] * 5 + [1] * 5, TEN)
    assert WAITS[0] in after
    assert named(refine(after, [0] * 5 + [1] * 5, TEN))[-1] == "wait-0"


def test_a_counter_proposal_needs_more_than_f_that_make_it() -> None:
    v1 = (ACTS[0], WAITS[0])
    assert refine(v1, [*[NEW[0]] * 3, *[0] * 4, *[1] * 3], TEN) == v1
    assert refine(v1, [*[NEW[0]] * 4, *[0] * 4, *[1] * 2], TEN) == (ACTS[0], NEW[0], WAITS[0])


def test_a_flood_of_counter_proposals_brings_none_in() -> None:
    flood = [Option(name="flood", command=None, text=str(n)) for n in range(6)]
    v1 = (ACTS[0], WAITS[0])
    assert refine(v1, [*flood, 0, 0, 1, 1], TEN) == v1


def test_a_committee_takes_no_counter_proposal_that_commands() -> None:
    v1 = (WAITS[0], WAITS[1])
    chosen: list[Chosen] = [*[NEW[1]] * 5, *[NEW[0]] * 5]
    assert refine(v1, chosen, TEN, commands=False) == (NEW[0], *v1)
    assert set(refine(v1, chosen, TEN)) == {*NEW, *v1}


def test_no_two_options_have_one_name() -> None:
    v1 = (ACTS[0], WAITS[0])
    posing = WAITS[1].model_copy(update={"name": ACTS[0].name})
    assert refine(v1, [*[posing] * 6, *[0] * 2, *[1] * 2], TEN) == v1
    two = [NEW[0], NEW[0].model_copy(update={"text": "Watch it closely"})]
    assert refine(v1, [*[two[0]] * 4, *[two[1]] * 5, 0], TEN) == (two[1], *v1)


def test_what_is_an_option_already_comes_in_no_second_time() -> None:
    v1 = (ACTS[0], WAITS[0])
    assert refine(v1, [*[WAITS[0]] * 5, *[0] * 5], TEN) == v1


options = st.lists(st.sampled_from([*ACTS[:6], *WAITS[:4]]), min_size=2, max_size=MAX_OPTIONS, unique=True)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[tuple[Option, ...], list[Chosen], Quorum]:
    v = tuple(draw(options))
    quorum = Quorum.of(draw(st.integers(3, 30)))
    indices: list[Chosen] = list(range(len(v)))
    choice = st.sampled_from([*indices, None, *NEW, WAITS[7]])
    return v, draw(st.lists(choice, max_size=quorum.participants)), quorum


@settings(max_examples=500, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_it_follows_from_how_many_chose_what(
    asked: tuple[tuple[Option, ...], list[Chosen], Quorum], other: random.Random
) -> None:
    v, chosen, quorum = asked
    after = refine(v, chosen, quorum)
    shuffled = list(chosen)
    other.shuffle(shuffled)
    assert refine(v, shuffled, quorum) == after


@settings(max_examples=500, deadline=None)
@given(rounds())
def test_bounds_always_hold(asked: tuple[tuple[Option, ...], list[Chosen], Quorum]) -> None:
    v, chosen, quorum = asked
    after = refine(v, chosen, quorum)
    assert LEFT <= len(after) <= MAX_OPTIONS
    assert len({option.name for option in after}) == len(after)
    for option in set(after) - set(v):
        assert chosen.count(option) > quorum.tolerated_faults
    if any(option.command is None for option in v):
        assert any(option.command is None for option in after)


@settings(max_examples=300, deadline=None)
@given(rounds())
def test_what_has_most_support_never_goes(asked: tuple[tuple[Option, ...], list[Chosen], Quorum]) -> None:
    v, chosen, quorum = asked
    support = [chosen.count(index) for index in range(len(v))]
    if support.count(max(support)) == 1:
        assert v[support.index(max(support))] in refine(v, chosen, quorum)
