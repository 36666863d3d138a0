"""Rendezvous hashing: everyone agrees, and only what must move moves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.agent import rendezvous
from tocsin.contracts.errors import InvalidInputError

names = st.lists(st.text("abcdef-0123", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
keys = st.binary(max_size=40) | st.text(max_size=40)


@given(keys, names, st.randoms())
def test_the_order_of_the_names_does_not_matter(key: bytes | str, names: list[str], random: object) -> None:
    shuffled = sorted(names, key=lambda _: random.random())  # type: ignore[attr-defined]  # hypothesis's Random
    assert rendezvous(key, names) == rendezvous(key, shuffled)


@given(keys, names, st.data())
def test_removing_a_loser_changes_nothing(key: bytes | str, names: list[str], data: st.DataObject) -> None:
    winner = rendezvous(key, names)
    losers = [name for name in names if name != winner]
    gone = set(data.draw(st.lists(st.sampled_from(losers)))) if losers else set()
    assert rendezvous(key, [name for name in names if name not in gone]) == winner


@given(keys, names, st.text("xyz", min_size=1, max_size=8))
def test_a_newcomer_takes_keys_only_for_itself(key: bytes | str, names: list[str], new: str) -> None:
    assert rendezvous(key, [*names, new]) in {rendezvous(key, names), new}


def test_the_keys_are_shared_out_evenly() -> None:
    owners = Counter(rendezvous(f"10.0.0.{n}", ["a", "b", "c", "d"]) for n in range(4000))
    # Binomial(4000, 1/4): standard deviation 27, so four of them are 110.
    assert all(890 < owners[name] < 1110 for name in "abcd")


def test_nobody_to_choose_from_is_an_error() -> None:
    with pytest.raises(InvalidInputError):
        rendezvous("x", [])
