"""Follow a log file by its name, as ``tail -F`` does, through everything that logrotate and others do to it.

A :class:`Follower` holds the file open. Each :meth:`Follower.read` returns complete lines, at most some bytes of
them, and the :class:`Position` after them; whoever has dealt with the lines keeps the position, and a follower that is
made with it goes on there: nothing is read twice, and nothing passed over.

* **Appended**: the next lines. A last line without its end waits for the rest of it.
* **Renamed**, with or without a new file in its place: the old one is read to its end first, its last line too.
* **Truncated** in place (copytruncate), or overwritten: read again from its start. What was cut off unread is lost;
  that it happened is counted (``truncated``), how much it was nobody can know.
* **Gone** for a while: the name is looked up again at the next read.
* **Restart**: the file that the position is of may have been renamed meanwhile. It is looked for beside the log, under
  names that begin with the log's, and files that are younger than it are read after it, in their order. Is it not
  there any more, or compressed, the log is read from its start and that is counted (``lost_track``).

A file is known again by device, inode and a digest of its first bytes, since inodes are used anew. Blocking: for a
worker thread.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path

from tocsin.analysis.lines import MAX_LINE_BYTES

HEAD_BYTES = 1024
"""Of a file's start, to know it again; a file that is shorter is known by what it has."""
CHUNK_BYTES = 256 * 1024
MAX_SIBLINGS = 64
"""Rotated files that are looked at after a restart: the youngest."""
COMPRESSED = frozenset({".gz", ".xz", ".zst", ".bz2"})


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file was read."""

    device: int
    inode: int
    offset: int
    """In bytes: behind the end of a line, or the file's."""
    head_bytes: int
    head: str
    """SHA-256 of the first ``head_bytes`` bytes, hexadecimal."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What one read gave."""

    lines: tuple[bytes, ...]
    """Without their ends; empty and over-long ones are left out."""
    position: Position | None
    """After these lines; None before the first file was seen."""
    behind: bool
    """Whether there is more to read now."""
    first: bool = False
    """Whether they are a file's first ones."""


class Follower:
    """Follows one file.

    Args:
        path: the log's name.
        position: where a former follower ended; None reads from the start.
        max_line_bytes: of one line.
    """

    def __init__(
        self, path: Path, position: Position | None = None, *, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self.counts: Counter[str] = Counter()
        """``truncated``, ``rotated``, ``lost_track``, ``too_long``: how often."""
        self._path = path
        self._max_line = max_line_bytes
        self._file: FileIO | None = None
        self._offset = 0
        """Where the line begins that is not complete yet."""
        self._partial = bytearray()
        """What is there of that line, but for what was let go since it is too long."""
        self._let_go = 0
        self._head = b""
        self._queue: list[Path] = []
        self._resume = position

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, max_bytes: int = CHUNK_BYTES) -> Lines:
        """Return the next complete lines, of about ``max_bytes`` bytes together at most.

        Raises:
            OSError: the file is there and cannot be read.
        """
        if self._file is None and not self._open_next():
            return Lines((), None, behind=False)
        self._check_head()
        assert self._file is not None  # noqa: S101 - opened above
        first = self._read_so_far() == 0
        data = self._file.read(max_bytes)
        lines = self._split(data)
        ended = not data and self._is_left_behind()
        if ended:
            # Nobody writes to it any more: what stands there is its last line.
            lines += self._finish()
        position = self._position()
        if ended:
            self._leave()
        return Lines(tuple(lines), position, behind=bool(data) or ended, first=first and bool(data))

    # --- Which file ----------------------------------------------------------------------------

    def _open_next(self) -> bool:
        if self._resume is not None:
            self._find(self._resume)
            self._resume = None
            if self._file is not None:
                return True
        path = self._queue.pop(0) if self._queue else self._path
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        self._offset, self._head = 0, b""
        return True

    def _find(self, position: Position) -> None:
        """Open the file that a position is of, and put those that came after it into the queue."""
        found: list[tuple[int, Path]] = []
        for path in self._siblings():
            try:
                with path.open("rb", buffering=0) as file:
                    status = os.fstat(file.fileno())
                    is_it = (status.st_dev, status.st_ino) == (position.device, position.inode)
                    if is_it and status.st_size >= position.offset and _digest(file, position) == position.head:
                        younger = [other for _, other in found if other != self._path]
                        self._queue = younger if path == self._path else [*younger, self._path]
                        self._file = path.open("rb", buffering=0)
                        self._file.seek(position.offset)
                        self._offset = position.offset
                        self._head = self._read_head()
                        return
                    found.insert(0, (status.st_mtime_ns, path))
            except OSError:
                continue  # it went while it was looked at
        self.counts["lost_track"] += 1

    def _siblings(self) -> list[Path]:
        """Return the log and the files beside it whose names begin with its name, the youngest first."""
        name = self._path.name
        try:
            beside = [path for path in self._path.parent.iterdir() if path.name.startswith(name)]
            plain = [path for path in beside if path.suffix not in COMPRESSED and path.is_file()]
            dated = [(path.stat().st_mtime_ns, path) for path in plain]
        except OSError:  # one went while it was looked at, or the folder did
            return []
        # The log itself is the youngest, whatever the clock says.
        dated.sort(key=lambda one: (one[1] == self._path, one[0]), reverse=True)
        return [path for _, path in dated[:MAX_SIBLINGS]]

    def _is_left_behind(self) -> bool:
        """Tell whether the open file is not the one of the log's name any more, or others wait."""
        assert self._file is not None  # noqa: S101 - only called while it is open
        if self._queue:
            return True
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # renamed, and nothing new yet: it may still be written to
        status = os.fstat(self._file.fileno())
        return (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino)

    def _leave(self) -> None:
        self.counts["rotated"] += 1
        self.close()

    # --- What is in it -------------------------------------------------------------------------

    def _check_head(self) -> None:
        """Begin again if the file is shorter than what was read, or begins with something else."""
        assert self._file is not None  # noqa: S101 - only called while it is open
        read = self._read_so_far()
        if os.fstat(self._file.fileno()).st_size >= read:
            head = self._read_head(len(self._head))
            if head == self._head:
                if len(head) < HEAD_BYTES:
                    self._head = self._read_head(min(HEAD_BYTES, read))
                return
        self.counts["truncated"] += 1
        self._file.seek(0)
        self._offset, self._head = 0, b""
        self._forget_line()

    def _read_head(self, size: int = HEAD_BYTES) -> bytes:
        assert self._file is not None  # noqa: S101 - only called while it is open
        return os.pread(self._file.fileno(), min(size, self._read_so_far()), 0)

    def _split(self, data: bytes) -> list[bytes]:
        lines = []
        *complete, rest = data.split(b"\n")
        for part in complete:
            lines += self._finish(part)
            self._offset += 1
        self._gather(rest)
        return lines

    def _finish(self, part: bytes = b"") -> list[bytes]:
        """Complete the line that waits; return it, unless it is too long."""
        self._gather(part)
        self._offset += self._let_go + len(self._partial)
        line = [] if self._let_go else [bytes(self._partial).removesuffix(b"\r")]
        self.counts["too_long"] += self._let_go > 0
        self._forget_line()
        return [one for one in line if one]

    def _gather(self, part: bytes) -> None:
        self._partial += part
        if self._let_go or len(self._partial) > self._max_line:
            self._let_go += len(self._partial)
            self._partial.clear()

    def _forget_line(self) -> None:
        self._let_go = 0
        self._partial.clear()

    def _read_so_far(self) -> int:
        return self._offset + self._let_go + len(self._partial)

    def _position(self) -> Position:
        assert self._file is not None  # noqa: S101 - only called while it is open
        status = os.fstat(self._file.fileno())
        head = self._head[: min(len(self._head), self._offset)]
        return Position(status.st_dev, status.st_ino, self._offset, len(head), sha256(head).hexdigest())


def _digest(file: FileIO, position: Position) -> str:
    return sha256(os.pread(file.fileno(), position.head_bytes, 0)).hexdigest()
