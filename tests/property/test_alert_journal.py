"""The host's journal of emergencies: any bytes are read as far as they hold, and nothing accepted is lost."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from tocsin.agent.accepted import Accepted, frames_of
from tocsin.agent.journal import HEADER, AlertJournal

AGENTS = ("a", "b", "c")
LEAVES = tuple(bytes([number]) * 32 for number in range(4))
NOW_NS = 1_800_000_000_000_000_000

acceptances = st.tuples(
    st.just("accept"), st.sampled_from(LEAVES), st.lists(st.sampled_from(AGENTS), min_size=1, unique=True)
)
marks = st.tuples(
    st.just("handled"), st.sampled_from(LEAVES), st.lists(st.sampled_from(AGENTS), min_size=1, max_size=1)
)
scripts = st.lists(st.one_of(acceptances, marks), max_size=30)


def written(script: list[tuple[str, bytes, list[str]]], state: Accepted) -> list[bytes]:
    return [
        state.accept(leaf, b"envelope" + leaf, "core", NOW_NS, agents)
        if what == "accept"
        else state.handled(leaf, agents)
        for what, leaf, agents in script
    ]


def seen(state: Accepted) -> list[tuple[bytes, tuple[str, ...], frozenset[str], bytes]]:
    return [(one.leaf, tuple(one.agents), frozenset(one.waiting), one.data) for one in state]


@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_far_as_they_hold(data: bytes) -> None:
    state = Accepted()
    end = state.load(data)
    assert 0 <= end <= len(data)
    again = Accepted()
    assert again.load(data[:end]) == end
    assert seen(again) == seen(state)


@given(scripts)
def test_what_was_written_is_read_back_and_reading_it_twice_changes_nothing(
    script: list[tuple[str, bytes, list[str]]],
) -> None:
    state, once = Accepted(), Accepted()
    data = b"".join(written(script, state))
    assert once.load(data) == len(data)
    assert seen(once) == seen(state)
    compact = Accepted()
    compact.load(frames_of(state.snapshot()))
    assert seen(compact) == seen(state)


@given(scripts, st.integers(0, 2000), st.booleans())
def test_a_torn_or_flipped_tail_costs_the_tail_only(
    script: list[tuple[str, bytes, list[str]]], at: int, flip: bool
) -> None:
    frames = written(script, Accepted())
    data = b"".join(frames)
    at = min(at, len(data))
    torn = data[:at]
    if flip and at < len(data):
        torn = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    whole: list[bytes] = []
    while frames and sum(map(len, whole)) + len(frames[0]) <= at:
        whole.append(frames.pop(0))
    state, expected = Accepted(), Accepted()
    assert state.load(torn) == sum(map(len, whole))
    expected.load(b"".join(whole))
    assert seen(state) == seen(expected)


@given(st.binary(max_size=200), st.booleans())
def test_any_file_is_opened_and_is_whole_afterwards(rest: bytes, is_ours: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "alerts.journal"
        path.write_bytes(HEADER + rest if is_ours else rest)
        journal = AlertJournal(path, now_ns=NOW_NS)
        assert path.read_bytes().startswith(HEADER)
        journal._thread.shutdown()
