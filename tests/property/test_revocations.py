"""The book of revocations: whatever comes, in whatever order, it never goes back and never claims to be fresher."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.bus.envelope import decode_body, encode_body
from tocsin.bus.revocations import RevocationBook
from tocsin.cli.revoke import GRAVITY, extend
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL, DISCOVERY, REVOCATIONS, THREAT_ALERT
from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.revocations import (
    MAX_REVOCATIONS,
    Revocation,
    RevocationList,
    RevocationReason,
    RevocationStatement,
)

S = 1_000_000_000
COMPROMISED, RETIRED = RevocationReason.COMPROMISED, RevocationReason.RETIRED


def key(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def list_of(number: int, made_ns: int = 0) -> tuple[RevocationList, bytes]:
    """Make a list and its leaf hash."""
    entry = Revocation(key_id=key(number), reason=COMPROMISED, since_ns=made_ns)
    return RevocationList(number=number, made_ns=made_ns, entries=(entry,)), key(number * 1000 + made_ns)


LISTS = st.builds(list_of, st.integers(1, 5), st.integers(0, 3))


@given(st.lists(LISTS, max_size=20))
def test_every_order_of_lists_leads_to_the_same_one(lists: list[tuple[RevocationList, bytes]]) -> None:
    book = RevocationBook(max_age_ns=30 * S, started_ns=0)
    highest = (0, -1)
    for offered, leaf in lists:
        age = (offered.number, offered.made_ns)
        if leaf == book.leaf:
            assert not book.take(offered, leaf, now_ns=0)
        elif age > highest:
            assert book.take(offered, leaf, now_ns=0)
        else:
            with pytest.raises(UntrustedError):
                book.take(offered, leaf, now_ns=0)
        highest = max(highest, age)
    assert book.number == max(highest[0], 0)


@given(st.lists(st.tuples(LISTS, st.integers(0, 100), st.booleans()), max_size=20), st.integers(0, 100))
def test_only_a_statement_of_the_list_that_is_held_makes_it_fresh(
    said: list[tuple[tuple[RevocationList, bytes], int, bool]], ends_s: int
) -> None:
    book = RevocationBook(max_age_ns=30 * S, started_ns=0)
    newest = 0
    for (offered, leaf), at_s, is_taken in said:
        try:
            if is_taken:
                book.take(offered, leaf, now_ns=100 * S)
            else:
                statement = RevocationStatement(number=offered.number, leaf=leaf, this_update_ns=at_s * S)
                book.hear(statement, now_ns=100 * S)
                newest = max(newest, at_s)
        except UntrustedError:
            pass
    assert book.age_ns(100 * S) >= (100 - newest) * S
    assert book.stale(ends_s * S) == (ends_s * S - (100 * S - book.age_ns(100 * S)) > 30 * S)


def test_a_statement_from_the_future_buys_no_time() -> None:
    book = RevocationBook(max_age_ns=30 * S, started_ns=0)
    assert book.hear(RevocationStatement(number=0, leaf=None, this_update_ns=1000 * S), now_ns=10 * S)
    assert book.age_ns(20 * S) == 10 * S
    assert book.stale(41 * S)


def test_what_has_effects_is_refused_when_stale_and_the_rest_is_not() -> None:
    book = RevocationBook(max_age_ns=30 * S, started_ns=0)
    book.check_effects(THREAT_ALERT, Priority.CRITICAL, now_ns=30 * S)
    for kind, priority in ((THREAT_ALERT, Priority.CRITICAL), (CONSENSUS_PROPOSAL, Priority.LOW)):
        with pytest.raises(UnavailableError) as caught:
            book.check_effects(kind, priority, now_ns=31 * S)
        assert caught.value.reason == "revocations_stale"
    book.check_effects(THREAT_ALERT, Priority.HIGH, now_ns=31 * S)
    book.check_effects(DISCOVERY, Priority.CRITICAL, now_ns=31 * S)


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(RevocationReason)), min_size=1, max_size=20))
def test_the_gravest_reason_that_was_given_stays(orders: list[tuple[int, RevocationReason]]) -> None:
    held: RevocationList | None = None
    for at_ns, (number, reason) in enumerate(orders):
        held = extend(held, [key(number)], reason, now_ns=at_ns) or held
    assert held is not None
    found = {entry.key_id: entry.reason for entry in held.entries}
    for number, reason in orders:
        assert GRAVITY.index(found[key(number)]) >= GRAVITY.index(reason)
        assert found[key(number)] in {given for other, given in orders if other == number}
    assert extend(held, list(found), RETIRED, now_ns=99) is None


def test_the_longest_list_fits_into_its_type() -> None:
    entries = tuple(
        Revocation(key_id=key(n), reason=COMPROMISED, since_ns=2**63 - 1) for n in range(MAX_REVOCATIONS)
    )
    full = RevocationList(number=2**32, made_ns=2**63 - 1, entries=entries)
    # A list's envelope has a signature of at most 4,627 bytes (ML-DSA-87) and some hundred bytes of its own.
    assert len(encode_body(full)) < REVOCATIONS.max_bytes - 6_000
    with pytest.raises(ExhaustedError):
        extend(full, [bytes(32)], RETIRED, now_ns=0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_one_of_our_errors(data: bytes) -> None:
    for model in (RevocationList, RevocationStatement):
        with contextlib.suppress(TocsinError):
            decode_body(model, data)


def test_a_clock_that_steps_back_hides_no_later_list() -> None:
    """What fleet states by an earlier clock is about a later list all the same: the one that is held is not current."""
    book = RevocationBook(max_age_ns=30 * S, started_ns=0)
    (first, first_leaf), (second, second_leaf) = list_of(1), list_of(2)
    book.take(first, first_leaf, now_ns=0)
    assert book.hear(RevocationStatement(number=1, leaf=first_leaf, this_update_ns=100 * S), now_ns=100 * S)
    later = RevocationStatement(number=2, leaf=second_leaf, this_update_ns=90 * S)
    assert not book.hear(later, now_ns=101 * S)
    assert not book.confirmed
    replayed = RevocationStatement(number=1, leaf=first_leaf, this_update_ns=101 * S)
    assert not book.hear(replayed, now_ns=102 * S)
    assert book.take(second, second_leaf, now_ns=102 * S)
    assert book.confirmed
