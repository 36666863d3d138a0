"""Follow a log file over rotations and restarts: the shell around :mod:`tocsin.analysis.following`.

    tail = Tail(Path("/var/log/suricata/eve.json"), mark)
    read = tail.poll(now_s=time.time())     # blocking, a few milliseconds: call it in a thread
    use(read.lines); keep(read.mark)

What it promises: every whole line comes once and in order, over renaming (once or often between two looks), replacing,
removing and restarts from a mark, as long as what was rotated lies beside the log, not compressed, until it was read.
After copying and truncating (``copytruncate``) the rest is read from the copy if there is one. What cannot be read any
more is a :class:`Loss`. A line longer than MAX_LINE_BYTES comes as None and is never held in memory.

Looking costs some system calls: every POLL_S is often enough for people, and little enough for a machine.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tocsin.analysis.following import (
    HEAD_BYTES,
    KEPT_DONE,
    NOTHING,
    TAIL_BYTES,
    Candidate,
    Done,
    FileId,
    Fingerprint,
    Look,
    Mark,
    Step,
    cut,
    decide,
    in_between,
    is_rotated_name,
)
from tocsin.analysis.lines import MAX_LINE_BYTES

POLL_S = 0.25
"""Pause between looks when nothing came."""
GRACE_S = 1.0
"""How long an old file must be quiet before the next one is begun."""
MAX_LINES = 2048
"""Of one read: some 2 MB of EVE, whose records are parsed in a tenth of a second."""
READ_BYTES = 1024 * 1024
MAX_HEADER_LINES = 32
MAX_SIBLINGS = 4096
"""Names of a folder that are looked at for rotated files."""


class LossKind(StrEnum):
    """Why something of a log was not read."""

    TRUNCATED = "truncated"
    """In place, and no copy was found: what was written after the last look is not known."""
    ROTATED_AWAY = "rotated_away"
    """The file that was read is gone or compressed: what it held behind the mark is not known."""
    UNFINISHED = "unfinished"
    """A file ended without a line end; ``octets`` of it are no line."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of a log that was not read."""

    kind: LossKind
    octets: int
    """As many at least, where that is known; else 0."""


@dataclass(slots=True)
class Read:
    """What one look brought."""

    mark: Mark | None
    """Where to go on; None while the log has never been there."""
    lines: list[bytes | None] = field(default_factory=list)
    """Without line ends; None where one was too long. All of one file."""
    begun: bool = False
    """Whether these lines begin a file: what an earlier file's header said does not hold for them."""
    losses: list[Loss] = field(default_factory=list)
    more: bool = False
    """Whether it is worth to look again at once."""
    absent: str = ""
    """Why the log's name cannot be opened, if nothing of it is open."""


class Tail:
    """Follows one log. Blocking; use it from one thread at a time."""

    def __init__(
        self,
        path: Path,
        mark: Mark | None = None,
        *,
        from_end: bool = False,
        grace_s: float = GRACE_S,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        """Prepare; nothing is opened before the first look.

        Args:
            path: the log's name; it need not exist yet.
            mark: where an earlier run stopped.
            from_end: without a mark, leave out what the log holds already.
            grace_s: see GRACE_S.
            max_line_bytes: longest line that is kept.
        """
        self.path = path
        self._mark = mark
        self._from_end = from_end
        self._grace_s = grace_s
        self._max_line_bytes = max_line_bytes
        self._file: int | None = None
        self._begun = False
        self._skipped_to = 0
        """Where to look for the end of a line that is too long; 0: there is none."""
        self._size = 0
        """As last seen: what a truncation takes at least."""
        self._grown_s = 0.0

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def poll(self, *, now_s: float) -> Read:
        """Look once.

        Args:
            now_s: seconds since the epoch.
        """
        read = Read(self._mark)
        if self._file is None and not self._open_first(read, now_s):
            return read
        assert self._file is not None  # noqa: S101 - just opened
        assert self._mark is not None  # noqa: S101 - set with it
        status = os.fstat(self._file)
        if status.st_size != self._size:
            self._grown_s = now_s
        intact = self._is_intact(self._file, self._mark)
        successor = self._successor()
        reached = max(self._mark.offset, self._skipped_to)
        look = Look(
            offset=reached,
            size=status.st_size,
            intact=intact,
            # A partial last line is read again at each look; when the next file has begun, it stays one.
            successor_size=successor.size if successor else None,
            quiet_s=max(now_s - status.st_mtime, now_s - self._grown_s),
        )
        step = decide(look, grace_s=self._grace_s)
        if step is Step.READ:
            self._size = status.st_size
            self._mark = self._mark.model_copy(update={"modified_ns": status.st_mtime_ns})
            if self._take(read):
                return read
            # Nothing but the beginning of a line.
            step = decide(_without_rest(look), grace_s=self._grace_s)
        if step is Step.TRUNCATED:
            self._begin_again(read)
        elif step is Step.NEXT and successor is not None:
            self._finish(read, status.st_size)
            read.more = self._open(successor, offset=0)
        read.mark = self._mark
        return read

    # --- Reading ------------------------------------------------------------------------------

    def _take(self, read: Read) -> bool:
        """Read whole lines; return whether anything came of it."""
        assert self._file is not None  # noqa: S101 - the caller's
        assert self._mark is not None  # noqa: S101 - the caller's
        offset = self._skipped_to or self._mark.offset
        data = os.pread(self._file, READ_BYTES + self._max_line_bytes, offset)
        if not self._is_intact(self._file, self._mark):
            read.more = True  # truncated while we read: seen at the next look
            return True
        if self._skipped_to:
            end = data.find(b"\n")
            if end < 0:
                self._skipped_to += len(data)
                read.more = bool(data)
                return True
            read.lines.append(None)
            self._advance(read, offset + end + 1)
            return True
        piece = cut(data, max_lines=MAX_LINES)
        if not piece.lines:
            if len(data) <= self._max_line_bytes:
                return False
            self._skipped_to = offset + len(data)
            read.more = True
            return True
        read.lines += [line if len(line) <= self._max_line_bytes else None for line in piece.lines]
        self._advance(read, offset + piece.length)
        return True

    def _advance(self, read: Read, offset: int) -> None:
        assert self._file is not None  # noqa: S101 - the caller's
        assert self._mark is not None  # noqa: S101 - the caller's
        self._skipped_to = 0
        self._mark = self._mark.model_copy(
            update={
                "offset": offset,
                "head": _fingerprint(self._file, 0, min(offset, HEAD_BYTES)),
                "tail": _fingerprint(self._file, max(0, offset - TAIL_BYTES), min(offset, TAIL_BYTES)),
            }
        )
        read.mark, read.begun, read.more = self._mark, self._begun, True
        self._begun = False

    def _is_intact(self, file: int, mark: Mark) -> bool:
        start = max(0, mark.offset - mark.tail.length)
        return (
            _fingerprint(file, 0, mark.head.length) == mark.head
            and _fingerprint(file, start, mark.tail.length) == mark.tail
        )

    # --- From file to file --------------------------------------------------------------------

    def _open_first(self, read: Read, now_s: float) -> bool:
        """Open the file that the mark names, or the log's own; return whether one is open."""
        self._grown_s = now_s
        if self._mark is None:
            try:
                file, size, modified_ns = _open_regular(self.path)
            except OSError as error:
                read.absent = error.strerror or type(error).__name__
                return False
            start = Mark(file=_id_of(os.fstat(file)), offset=0, modified_ns=modified_ns)
            self._file, self._mark, self._begun = file, start, True
            if not self._from_end or not size:
                return True
            self._skip_to_end(read, size)
            return False
        found = self._find_again(self._mark)
        if found is not None:
            return self._open(found, offset=self._mark.offset, begun=self._mark.offset == 0)
        done = _with(self._mark.done, Done(file=self._mark.file, head=self._mark.head))
        self._mark = self._mark.model_copy(update={"done": done})
        successor = self._successor()
        if successor is None:
            read.absent = "No such file"
            return False
        read.losses.append(Loss(LossKind.ROTATED_AWAY, 0))
        return self._open(successor, offset=0)

    def _skip_to_end(self, read: Read, size: int) -> None:
        """Go on behind the last whole line; of what is in front, the header lines alone are handed on."""
        assert self._file is not None  # noqa: S101 - the caller's
        front = cut(os.pread(self._file, READ_BYTES, 0), max_lines=MAX_HEADER_LINES).lines
        read.lines += [line for line in front if line.startswith(b"#")]
        back = os.pread(self._file, min(size, READ_BYTES), max(0, size - READ_BYTES))
        self._advance(read, max(0, size - READ_BYTES) + back.rfind(b"\n") + 1)

    def _find_again(self, mark: Mark) -> Candidate | None:
        """Return the file that was read up to the mark, under whatever name, or a copy of it."""
        named = self._at_path()
        every = [*([named] if named else []), *self._siblings()]
        same = [one for one in every if one.file == mark.file and one.size >= mark.offset]
        copies = [one for one in every if one.file != mark.file and one.size >= mark.offset and mark.offset]
        for one in (*same, *copies):
            if self._fits(one, mark):
                return one
        return None

    def _fits(self, candidate: Candidate, mark: Mark) -> bool:
        try:
            file, _, _ = _open_regular(self.path.with_name(candidate.name))
        except OSError:
            return False
        try:
            return self._is_intact(file, mark)
        finally:
            os.close(file)

    def _begin_again(self, read: Read) -> None:
        """Our file was truncated: read the rest from its copy, if there is one, then the file anew."""
        assert self._file is not None  # noqa: S101 - the caller's
        assert self._mark is not None  # noqa: S101 - the caller's
        mark = self._mark
        copies = [one for one in self._siblings() if one.file != mark.file and one.size >= mark.offset]
        copy = next((one for one in copies if mark.offset and self._fits(one, mark)), None)
        read.more = True
        if copy is not None and self._open(copy, offset=mark.offset, begun=False):
            return
        read.losses.append(Loss(LossKind.TRUNCATED, max(0, self._size - mark.offset)))
        done = _with(mark.done, Done(file=mark.file, head=mark.head))
        self._mark = Mark(file=mark.file, offset=0, modified_ns=mark.modified_ns, done=done)
        self._begun, self._skipped_to, self._size = True, 0, 0

    def _successor(self) -> Candidate | None:
        """Return the file to read after ours: rotated ones that were never read first, then the log's own."""
        assert self._mark is not None  # noqa: S101 - callers have one
        named = self._at_path()
        if named is not None and self._file is not None and named.file == self._mark.file:
            return None
        # Where nothing is open, our own file's inode may hold something else by now.
        but = frozenset({named.file if named else None, self._mark.file if self._file is not None else None})
        for one in in_between(self._siblings(), self._mark, but):
            if not self._is_done(one):
                return one
        return None if named is None or self._is_done(named) else named

    def _is_done(self, candidate: Candidate) -> bool:
        assert self._mark is not None  # noqa: S101 - callers have one
        heads = [done.head for done in self._mark.done if done.file == candidate.file]
        if not heads:
            return False
        try:
            file, _, _ = _open_regular(self.path.with_name(candidate.name))
        except OSError:
            return True
        try:
            return any(_fingerprint(file, 0, head.length) == head for head in heads)
        finally:
            os.close(file)

    def _finish(self, read: Read, size: int) -> None:
        """Leave the open file for good."""
        assert self._file is not None  # noqa: S101 - the caller's
        assert self._mark is not None  # noqa: S101 - the caller's
        if size > self._mark.offset:
            read.losses.append(Loss(LossKind.UNFINISHED, size - self._mark.offset))
        # All of its head, also what is no line: what is remembered as read to its end must not fit another file.
        head = _fingerprint(self._file, 0, min(size, HEAD_BYTES))
        self._mark = self._mark.model_copy(update={"head": head})

    def _open(self, candidate: Candidate, *, offset: int, begun: bool = True) -> bool:
        """Open a file in the place of the one that is open."""
        assert self._mark is not None  # noqa: S101 - callers have one
        try:
            file, size, modified_ns = _open_regular(self.path.with_name(candidate.name))
        except OSError:
            return False
        was, identity = self._mark, _id_of(os.fstat(file))
        done = was.done
        if self._file is not None or identity != was.file:
            done = _with(done, Done(file=was.file, head=was.head))
        self.close()
        update: dict[str, object] = {
            "file": identity,
            "offset": offset,
            "modified_ns": modified_ns,
            "done": done,
        }
        if offset == 0:
            update |= {"head": NOTHING, "tail": NOTHING}
        self._mark = was.model_copy(update=update)
        self._file, self._begun, self._skipped_to, self._size = file, begun, 0, size
        return True

    def _at_path(self) -> Candidate | None:
        return _candidate(self.path)

    def _siblings(self) -> list[Candidate]:
        try:
            with os.scandir(self.path.parent) as entries:
                names = [one.name for one in entries if is_rotated_name(one.name, self.path.name)]
        except OSError:
            return []
        found = (_candidate(self.path.with_name(name)) for name in names[:MAX_SIBLINGS])
        return [one for one in found if one is not None]


def _without_rest(look: Look) -> Look:
    """Return the look as if the unfinished line at the end were read."""
    return Look(look.size, look.size, look.intact, look.successor_size, look.quiet_s)


def _with(done: tuple[Done, ...], one: Done) -> tuple[Done, ...]:
    # One without a head would fit every later file with that inode.
    return (*done, one)[-KEPT_DONE:] if one.head.length and one not in done else done


def _fingerprint(file: int, start: int, length: int) -> Fingerprint:
    return Fingerprint.of(os.pread(file, length, start)) if length else NOTHING


def _id_of(status: os.stat_result) -> FileId:
    return FileId(device=status.st_dev, inode=status.st_ino)


def _candidate(path: Path) -> Candidate | None:
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Candidate(path.name, _id_of(status), status.st_size, status.st_mtime_ns)


def _open_regular(path: Path) -> tuple[int, int, int]:
    """Open a regular file; return it with its size and time of last writing."""
    # Not blocking: a pipe under this name must not stop us.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise OSError(0, "not a regular file")
    return file, status.st_size, status.st_mtime_ns
