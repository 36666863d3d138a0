"""A sender's allowance: what it grants, to whom, and what it remembers."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.errors import ExhaustedError
from tocsin.router.limits import MAX_PROVEN, Excess, RateLimits

ENROLLED = frozenset({"a", "b"})


def limits(*, per_s: float = 10, burst: int = 5, enrolled: Collection[str] = ENROLLED) -> RateLimits:
    return RateLimits(per_s=per_s, burst=burst, known=enrolled.__contains__)


def granted(by: RateLimits, sender: str, moments_s: list[float], *, urgent: bool = False) -> list[float]:
    """Return the moments at which the sender was let through."""
    taken = []
    for at_s in moments_s:
        with contextlib.suppress(ExhaustedError):
            by.take(sender, urgent=urgent, at_s=at_s)
            taken.append(at_s)
    return taken


def test_a_burst_is_granted_and_then_the_sustained_rate() -> None:
    by = limits()
    assert len(granted(by, "a", [100.0] * 20)) == 5
    assert granted(by, "a", [100.05, 100.101, 100.102, 100.2]) == [100.101, 100.2]
    assert len(granted(by, "a", [200.0] * 20)) == 5
    with pytest.raises(ExhaustedError) as caught:
        by.take("a", urgent=False, at_s=200.0)
    assert caught.value.reason == "rate_limited"


@given(
    st.lists(st.floats(0, 10, allow_nan=False), max_size=200).map(sorted),
    st.integers(1, 50),
    st.floats(1, 1000),
)
def test_no_interval_holds_more_than_its_burst_and_rate_allow(
    moments_s: list[float], burst: int, per_s: float
) -> None:
    taken = granted(limits(per_s=per_s, burst=burst), "a", moments_s)
    for first, since_s in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - since_s) * per_s + 0.01


@given(st.lists(st.floats(0.1, 2), max_size=100))
def test_who_stays_below_the_rate_is_never_refused(pauses_s: list[float]) -> None:
    moments_s = [1000.0]
    for pause_s in pauses_s:
        moments_s.append(moments_s[-1] + pause_s)
    assert all(later - sooner >= 0.09 for sooner, later in pairwise(moments_s))
    assert granted(limits(per_s=10, burst=1), "a", moments_s) == moments_s


def test_one_senders_flood_is_nobody_elses_and_not_its_own_alarms() -> None:
    by = limits()
    granted(by, "a", [0.0] * 100)
    assert len(granted(by, "b", [0.0] * 100)) == 5
    assert len(granted(by, "a", [0.0] * 100, urgent=True)) == 5


def test_made_up_names_share_one_allowance() -> None:
    by = limits()
    assert len([name for name in map(str, range(100)) if granted(by, name, [0.0])]) == 5
    assert granted(by, "a", [0.0]) == [0.0]
    assert sum(len(spent) for spent in by._spent_until_s.values()) == 2


def test_who_is_proven_has_an_allowance_of_its_own_and_is_told_once_of_what_was_before() -> None:
    by = limits()
    granted(by, "a", [0.0] * 100)
    granted(by, "stranger", [0.0] * 100)
    assert not by.is_proven("a")
    assert (by.proved("a"), by.proved("a"), by.proved("stranger")) == (True, False, False)
    assert by.is_proven("a")
    assert len(granted(by, "stranger", [0.0] * 100)) == 5


def test_what_is_remembered_is_bounded() -> None:
    by = limits()
    for number in range(MAX_PROVEN + 10):
        by.proved(f"n{number}")
    assert not by.is_proven(f"n{MAX_PROVEN + 1}")
    assert len(by._proven) == MAX_PROVEN


def test_a_sender_exceeds_by_its_own_verified_messages_only() -> None:
    excess = Excess(per_s=10)
    for name, own, held_back in (("loud", 10, 10), ("framed", 4, 500), ("busy", 10, 3)):
        for _ in range(own):
            assert excess.verified(name, at_s=5.5) == []
        for _ in range(held_back):
            excess.held_back(name)
    assert excess.verified("busy", at_s=6.0) == ["loud"]
    assert excess.verified("busy", at_s=7.0) == []
