"""A file of JSON lines that an agent writes for others to read, and reads itself when it starts again.

Lines are whole or not there: what is appended together is written at once and synced before :meth:`LineFile.append`
returns, and a torn end, which a crash leaves, is cut off. Others may rotate the file at any time by renaming it (as
logrotate does): the next line begins a new one. Blocking; for one writer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tocsin.analysis.following import is_rotated_name
from tocsin.contracts.errors import UnavailableError
from tocsin.telemetry import get_logger

RECENT_BYTES = 8 * 1024 * 1024
"""Of the end of the file, and of rotated ones, that is read at start: some 10,000 alerts."""

Line = Mapping[str, object]

log = get_logger(__name__)


class LineFile:
    """One such file; made with its folder if missing."""

    def __init__(self, path: Path) -> None:
        """Open the file, and cut off a torn end.

        Raises:
            UnavailableError: ``lines_failed``.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._open()
            self._cut_torn_end()
        except OSError as error:
            raise _unavailable(self.path, error) from error

    def append(self, lines: Sequence[Line]) -> None:
        """Append lines, all or none of them.

        Raises:
            UnavailableError: ``lines_failed``: none was appended.
        """
        if not lines:
            return
        data = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
        try:
            if not self._has_the_name():
                os.close(self._file)
                self._file = self._open()
            before = os.fstat(self._file).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file, view) :]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before)
                raise
        except OSError as error:
            raise _unavailable(self.path, error) from error

    def recent(self) -> list[Line]:
        """Return the last lines, see :func:`recent_lines`."""
        return recent_lines(self.path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _has_the_name(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _cut_torn_end(self) -> None:
        size = os.fstat(self._file).st_size
        whole = size
        while whole and os.pread(self._file, 1, whole - 1) != b"\n":
            piece = os.pread(self._file, min(whole, 65_536), max(0, whole - 65_536))
            whole = (
                max(0, whole - 65_536) + piece.rfind(b"\n") + 1 if b"\n" in piece else max(0, whole - 65_536)
            )
        if whole < size:
            log.warning("lines_torn", file=self.path.name, cut_bytes=size - whole)
            os.ftruncate(self._file, whole)


def hold(path: Path) -> int:
    """Hold a lock file for as long as this process lives, and wait until a process before it has let go. Blocking.

    Raises:
        UnavailableError: ``lines_failed``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _unavailable(path, error) from error
    return file


def recent_lines(path: Path) -> list[Line]:
    """Return the last lines of such a file and of its rotated ones, the oldest first; none if it is not there.

    What is no JSON object, as somebody may have written, is left out. Nothing is changed: whoever writes the file may
    be writing.

    Raises:
        UnavailableError: ``lines_failed``.
    """
    pieces: list[bytes] = []
    room = RECENT_BYTES
    try:
        rotated = [one for one in path.parent.iterdir() if is_rotated_name(one.name, path.name)]
        rotated.sort(key=lambda one: one.stat().st_mtime_ns, reverse=True)
        for one in (path, *rotated):
            if room > 0 and one.exists():
                pieces.insert(0, _last_lines(one, room))
                room -= len(pieces[0])
    except OSError as error:
        raise _unavailable(path, error) from error
    return [line for raw in b"".join(pieces).splitlines() if (line := _decoded(raw)) is not None]


def _unavailable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"cannot use {path}: {error.strerror}", reason="lines_failed")


def _last_lines(path: Path, room: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - room))
        piece = file.read(room)
    if size > room:
        return piece[piece.find(b"\n") + 1 :]
    return piece if piece.endswith(b"\n") or not piece else piece + b"\n"


def _decoded(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
