"""Whatever happens to a log, each complete line is read once, by followers that come and go."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.analysis.following import Follower, Position

LINE = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))
EVENT = st.one_of(
    st.tuples(st.just("append"), st.lists(LINE, min_size=1, max_size=5)),
    st.tuples(st.just("half"), LINE),
    st.tuples(st.just("rotate"), st.none()),
    st.tuples(st.just("remove_name"), st.none()),
    st.tuples(st.just("read"), st.sampled_from([1, 7, 4096])),
    st.tuples(st.just("restart"), st.none()),
)


class Log:
    """A writer that numbers its lines, so that each is unlike every other."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "eve.json"
        self.written: list[bytes] = []
        self.rotations = 0
        self.half = b""

    def append(self, lines: list[bytes]) -> None:
        with self.path.open("ab") as file:
            for line in lines:
                numbered = self.half + b"%d:" % len(self.written) + line
                file.write(numbered[len(self.half) :] + b"\n")
                self.written.append(numbered)
                self.half = b""

    def append_half(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(b"h" + data)
        self.half += b"h" + data

    def rotate(self) -> None:
        """Rename; a line without its end ends with its file."""
        if self.path.exists():
            self.rotations += 1
            self.path.rename(self.path.with_name(f"eve.json.{self.rotations}"))
            if self.half:
                self.written.append(self.half)
                self.half = b""


def drain(follower: Follower, seen: list[bytes], kept: Position | None, size: int = 4096) -> Position | None:
    while True:
        got = follower.read(size)
        seen += got.lines
        kept = got.position or kept
        if not got.behind:
            return kept


@settings(max_examples=300, deadline=None)
@given(events=st.lists(EVENT, max_size=25))
def test_every_complete_line_is_read_once(events: list[tuple[str, object]]) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder))
        follower, seen, kept = Follower(log.path), list[bytes](), None
        for what, value in events:
            match what, value:
                case "append", list(lines):
                    log.append(lines)
                case "half", bytes(data):
                    log.append_half(data)
                case "rotate", _:
                    # Who renames twice between two reads outruns `tail -F`, too; a restart finds them all.
                    kept = drain(follower, seen, kept)
                    log.rotate()
                    log.append([b"new"])
                case "remove_name", _:
                    kept = drain(follower, seen, kept)
                    log.rotate()
                case "read", int(size):
                    got = follower.read(size)
                    seen += got.lines
                    kept = got.position or kept
                case "restart", _:
                    follower.close()
                    follower = Follower(log.path, kept)
        drain(follower, seen, kept)
        whole = [line for line in log.written if line]
        assert seen == whole or (not log.path.exists() and seen == whole[: len(seen)])
        assert follower.counts["lost_track"] == follower.counts["truncated"] == 0
        follower.close()


@settings(max_examples=200, deadline=None)
@given(rotations=st.integers(0, 4), more=st.integers(0, 3))
def test_a_restart_finds_what_was_rotated_meanwhile(rotations: int, more: int) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder))
        log.append([b"a", b"b"])
        follower, seen = Follower(log.path), list[bytes]()
        kept = drain(follower, seen, None)
        follower.close()
        for number in range(rotations):
            log.append([b"x"] * more)
            log.rotate()
            os.utime(log.path.with_name(f"eve.json.{log.rotations}"), ns=(number, number))
            log.append([b"y"])
        again = Follower(log.path, kept)
        drain(again, seen, None)
        again.close()
        assert seen == log.written


@settings(max_examples=100, deadline=None)
@given(before=st.lists(LINE, min_size=1, max_size=5), after=st.lists(LINE, max_size=5), keep=st.booleans())
def test_a_truncated_file_is_read_again_and_counted(
    before: list[bytes], after: list[bytes], keep: bool
) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder))
        log.append(before)
        follower, seen = Follower(log.path), list[bytes]()
        kept = drain(follower, seen, None)
        os.truncate(log.path, 0)
        if keep:
            follower.close()
            follower = Follower(log.path, kept)
        log.append(after)
        drain(follower, seen, kept)
        assert seen == log.written
        assert follower.counts["truncated"] + follower.counts["lost_track"] == 1
        follower.close()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400), limit=st.integers(1, 50), size=st.integers(1, 64), cut=st.integers(0, 400))
def test_any_bytes_are_lines_and_a_restart_anywhere_goes_on(
    data: bytes, limit: int, size: int, cut: int
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(data)
        complete = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
        expected = [one.removesuffix(b"\r") for one in complete if len(one) <= limit]
        follower, seen, kept, reads = Follower(path, max_line_bytes=limit), list[bytes](), None, 0
        while True:
            got = follower.read(size)
            seen += got.lines
            kept = got.position or kept
            reads += 1
            if reads == cut:
                follower.close()
                follower = Follower(path, kept, max_line_bytes=limit)
            elif not got.behind:
                break
        assert seen == [one for one in expected if one]
        follower.close()
