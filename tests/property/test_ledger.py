"""Whatever is in a guardian's ledger: it opens with what it says, or it refuses."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.roles.ledger import CLOSED, Book, Entry, Ledger, Step
from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.response import Action, Command
from tocsin.evidence.journal import HEADER, Journal

COMMAND = Command(action=Action.DENY, address="203.0.113.9", duration_s=60)
ENTRIES = st.builds(
    Entry,
    decision=st.sampled_from([bytes([number]) * 32 for number in range(4)]),
    step=st.sampled_from(Step),
    command=st.just(COMMAND),
    until_ns=st.integers(0, 100),
)


def opened(path: Path) -> Book | None:
    """Return the book; None if the ledger refuses to open."""
    try:
        ledger = Ledger(path)
    except InvariantBrokenError as error:
        return None if error.reason == "damaged_log" else Book.empty()
    ledger.close()
    return ledger.book


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None)
def test_any_bytes_are_a_ledger_or_refused(data: bytes, headed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes((HEADER if headed else b"") + data)
        book = opened(path)
        assert book is None or not book.open


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=60), ENTRIES.map(Entry.encode)), max_size=6))
@settings(deadline=None)
def test_any_entries_are_taken_or_the_ledger_refuses(entries: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        journal = Journal(path)
        for entry in entries:
            journal.append([entry])
        journal.close()
        book = opened(path)
        assert (book is None) == any(len(entry) < 100 and len(entry) != 32 for entry in entries)


@given(st.lists(ENTRIES, max_size=30), st.integers(0, 100))
@settings(deadline=None)
def test_what_is_open_follows_from_the_last_step_of_each_order(entries: list[Entry], now_ns: int) -> None:
    book = Book.empty()
    last: dict[bytes, Entry] = {}
    for entry in entries:
        book.enter(entry)
        last[entry.decision] = entry
    assert book.open == {key: one for key, one in last.items() if one.step not in CLOSED}
    assert all(key in book.acted for key in last)
    due = {one.decision for one in book.due(now_ns)}
    assert due == {key for key, one in book.open.items() if one.step is Step.FAILED or one.until_ns <= now_ns}
    for entry in entries:
        other = book.longest(entry)
        assert other is None or (other.decision != entry.decision and other.step is Step.APPLIED)
