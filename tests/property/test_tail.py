"""However a log is appended to, rotated, truncated and replaced: each whole line comes once, or is said to be lost."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.roles.tail import LossKind, Tail
from tocsin.analysis.following import Look, Mark, Step, cut, decide, is_rotated_name

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(
            st.sampled_from(["partial", "rotate", "replace", "truncate", "copytruncate", "remove"]), st.just(0)
        ),
        st.tuples(st.sampled_from(["poll", "poll", "restart"]), st.just(0)),
    ),
    max_size=40,
)


@dataclass
class Writer:
    """Writes numbered lines, and knows which of them must be read and which may be lost."""

    folder: Path
    written: list[bytes] = field(default_factory=list)
    may_lose: set[bytes] = field(default_factory=set)
    unread: list[bytes] = field(default_factory=list)
    """Whole lines of the present file since the tail last looked."""
    partial: bytes = b""
    rotations: int = 0
    known: bool = False
    """Whether a line of the present file was read."""

    @property
    def path(self) -> Path:
        return self.folder / "eve.json"

    def append(self, count: int) -> None:
        with self.path.open("ab") as file:
            for _ in range(count):
                line = self.partial + b'{"n":%d}' % (len(self.written) + 1_000_000)
                self.written.append(line)
                self.unread.append(line)
                file.write(line[len(self.partial) :] + b"\n")
                self.partial = b""

    def write_partial(self) -> None:
        with self.path.open("ab") as file:
            file.write(b"{}")
        self.partial += b"{}"

    def rotate(self) -> None:
        if self.path.exists():
            self.rotations += 1
            self.path.rename(self.folder / f"eve.json-{self.rotations:04d}")
        self._new_file()

    def replace(self) -> None:
        """As an editor does: what nobody has open is gone."""
        self.may_lose |= set(self.unread)
        fresh = self.folder / ".fresh"
        fresh.write_bytes(b"")
        fresh.replace(self.path)
        self._new_file()

    def truncate(self) -> None:
        self.may_lose |= set(self.unread)
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(0)
        self._new_file()

    def copytruncate(self) -> None:
        if self.path.exists():
            self.rotations += 1
            shutil.copy(self.path, self.folder / f"eve.json-{self.rotations:04d}")
            if not self.known:  # a copy is known by what was read of it
                self.may_lose |= set(self.unread)
            with self.path.open("r+b") as file:
                file.truncate(0)
        self._new_file()

    def remove(self) -> None:
        self.may_lose |= set(self.unread)
        self.path.unlink(missing_ok=True)
        self._new_file()

    def looked_at(self) -> None:
        self.known = self.known or bool(self.unread)
        self.unread.clear()

    def _new_file(self) -> None:
        self.known = False
        self.partial = b""
        self.unread.clear()


@given(OPERATIONS)
@settings(max_examples=150, deadline=None)
def test_every_whole_line_comes_once_and_in_order_or_may_be_lost(operations: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run(Writer(Path(folder)), operations)


def _run(writer: Writer, operations: list[tuple[str, int]]) -> None:
    tail = Tail(writer.path, grace_s=0)
    got: list[bytes] = []
    losses: list[LossKind] = []
    mark: Mark | None = None

    def drain() -> None:
        nonlocal mark
        while True:
            read = tail.poll(now_s=4e9)
            got.extend(line for line in read.lines if line is not None)
            losses.extend(loss.kind for loss in read.losses)
            mark = read.mark
            if not read.more:
                break
        writer.looked_at()

    writer.append(1)
    drain()
    for operation, count in operations:
        if operation == "append":
            writer.append(count)
        elif operation == "partial":
            writer.write_partial()
        elif operation == "poll":
            drain()
        elif operation == "restart":
            tail.close()
            tail = Tail(writer.path, mark, grace_s=0)
        else:
            getattr(writer, operation)()
    writer.append(1)
    drain()
    tail.close()
    assert len(got) == len(set(got)), "a line came twice"
    missing = [line for line in writer.written if line not in set(got)]
    assert set(missing) <= writer.may_lose, "a line is missing that could be read"
    assert set(got) <= set(writer.written), "a line came that nobody wrote"


@given(st.binary(max_size=200), st.integers(1, 9))
def test_cutting_loses_nothing(data: bytes, most: int) -> None:
    piece = cut(data, max_lines=most)
    assert data[: piece.length].count(b"\n") == len(piece.lines) <= most
    assert [line + b"\n" for line in piece.lines] == [
        line.rstrip(b"\r") + b"\n" for line in data[: piece.length].split(b"\n")[:-1]
    ]


@given(
    st.builds(Look, *(st.integers(0, 9),) * 2, st.booleans(), st.none() | st.integers(0, 9), st.floats(0, 9))
)
def test_a_file_is_left_only_when_it_is_read_and_quiet(look: Look) -> None:
    step = decide(look, grace_s=5)
    assert (step is Step.TRUNCATED) == (look.size < look.offset or not look.intact)
    if step is Step.NEXT:
        assert look.size == look.offset
        assert look.quiet_s >= 5
        assert look.successor_size


@given(st.text(max_size=40), st.text(min_size=1, max_size=20))
def test_any_names_are_told_apart(name: str, of: str) -> None:
    assert is_rotated_name(name, of) in {True, False}
    assert not is_rotated_name(of, of)
