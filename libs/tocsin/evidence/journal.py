r"""A local, append-only, fsynced log of evidence: where ballots and votes live before they are sent.

    file  = "tocsin evidence log 1\n" frame*
    frame = "TEL1" || length (4) || SHA-256(payload)[:16] || payload
    payload = (length (4) || entry)+

One frame is one append, however many entries it has, and one fsync. The next frame is written only after the
fsync of the one before, so a crash can tear the last frame only: a torn tail is cut off on opening, and said.
A bad frame with a good one behind it is damage, and the log refuses to open: who cannot know what it has
voted must not vote. After a failed write or fsync nothing more is appended, for the same reason.

The file is locked: a second process with the same log would be a twin that votes twice. It only grows; nothing
is ever removed from it. It does not protect against whoever deletes it or puts an old copy in its place.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tocsin.contracts.errors import ConflictError, InvalidInputError, InvariantBrokenError, UnavailableError
from tocsin.telemetry import get_logger

HEADER = b"tocsin evidence log 1\n"
MAGIC = b"TEL1"
FRAME_BYTES = len(MAGIC) + 4 + 16
MAX_PAYLOAD = 64 * 1024 * 1024
"""Longest payload: a round of 4,096 ballots of 16 KiB."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands in the file."""

    offset: int
    length: int


class Journal:
    """The log. Blocking: open and append in a thread, or through :class:`JournalWriter`."""

    def __init__(self, path: Path) -> None:
        """Open or create the log and cut off a torn tail.

        Raises:
            UnavailableError: the file cannot be opened or read.
            ConflictError: ``log_in_use``: another process has it.
            InvariantBrokenError: ``damaged_log``.
        """
        self.path = path
        self._failed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unavailable(error) from error
        try:
            self._places = self._recover()
        except BaseException:
            os.close(self._file)
            raise

    def _recover(self) -> list[Place]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConflictError(
                f"{self.path.name} is another process's log", reason="log_in_use", advice="stop that process"
            ) from error
        try:
            start = os.pread(self._file, len(HEADER), 0)
            if start != HEADER:
                self._begin(start)
            places, end = self._scan()
            if (cut := os.fstat(self._file).st_size - end) > 0:
                log.warning("evidence_log_torn", log=self.path.name, cut_bytes=cut)
                os.ftruncate(self._file, end)
                os.fsync(self._file)
        except OSError as error:
            raise self._unavailable(error) from error
        self._end = end
        return places

    def _begin(self, start: bytes) -> None:
        """Write the first line: the file is new, or was torn within that line."""
        if not HEADER.startswith(start):
            raise InvariantBrokenError(f"{self.path.name} is no evidence log", reason="damaged_log")
        os.ftruncate(self._file, 0)
        self._write((HEADER,), 0)
        os.fsync(self._file)
        _sync_folder(self.path.parent)

    def _scan(self) -> tuple[list[Place], int]:
        """Return the places of all entries, and where the good part ends; one frame in memory at a time."""
        size = os.fstat(self._file).st_size
        places: list[Place] = []
        end = len(HEADER)
        while end < size:
            payload = self._payload_at(end)
            if payload is None:
                self._refuse_damage(end, size)
                break
            places += _places(payload, end + FRAME_BYTES)
            end += FRAME_BYTES + len(payload)
        return places, end

    def _payload_at(self, offset: int) -> bytes | None:
        """Return the payload of the good frame that begins here, or None."""
        head = os.pread(self._file, FRAME_BYTES, offset)
        length = int.from_bytes(head[4:8], "big")
        if len(head) < FRAME_BYTES or not head.startswith(MAGIC) or not 0 < length <= MAX_PAYLOAD:
            return None
        payload = os.pread(self._file, length, offset + FRAME_BYTES)
        good = len(payload) == length and sha256(payload).digest()[:16] == head[8:]
        return payload if good else None

    def _refuse_damage(self, end: int, size: int) -> None:
        """A bad frame is a torn tail only if no good one follows. The rest is at most one frame, if it is torn."""
        rest = os.pread(self._file, min(size - end, 2 * MAX_PAYLOAD), end)
        at = 0
        while (at := rest.find(MAGIC, at + 1)) >= 0:
            if self._payload_at(end + at) is not None:
                raise InvariantBrokenError(
                    f"{self.path.name} is damaged at byte {end}: what was voted is not known",
                    reason="damaged_log",
                    advice="restore it, or take part in the next epoch under a new key",
                )

    def entries(self) -> Iterator[tuple[Place, bytes]]:
        """Return what the log held when it was opened, in order."""
        for place in self._places:
            yield place, self.read(place)

    def read(self, place: Place) -> bytes:
        """Return one entry."""
        try:
            return os.pread(self._file, place.length, place.offset)
        except OSError as error:
            raise self._unavailable(error) from error

    def append(self, entries: Sequence[bytes]) -> list[Place]:
        """Write entries in one frame; when this returns they are on the disk.

        Raises:
            UnavailableError: the disk refuses; from then on every append does.
        """
        payload = b"".join(len(entry).to_bytes(4, "big") + entry for entry in entries)
        if not entries or len(payload) > MAX_PAYLOAD:
            raise InvalidInputError(f"{len(payload)} bytes for one append", reason="too_large")
        if self._failed:
            raise UnavailableError(
                f"{self.path.name} failed before", reason="log_failed", advice="see to the disk, then restart"
            )
        head = MAGIC + len(payload).to_bytes(4, "big") + sha256(payload).digest()[:16]
        try:
            self._write((head, payload), self._end)
            os.fsync(self._file)
        except OSError as error:
            # What reached the disk is not known, and a second fsync would not tell.
            self._failed = True
            raise self._unavailable(error) from error
        places = list(_places(payload, self._end + FRAME_BYTES))
        self._end += len(head) + len(payload)
        return places

    def _write(self, parts: Sequence[bytes], offset: int) -> None:
        """Write all of it; the disk may take less at a time, and then the rest is copied."""
        written = os.pwritev(self._file, parts, offset)
        while written < sum(map(len, parts)):
            written += os.pwrite(self._file, b"".join(parts)[written:], offset + written)

    def close(self) -> None:
        """Close the file and give up its lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._failed = True

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError(f"{self.path.name}: {error.strerror}", reason="log_failed")


class JournalWriter:
    """Group commit: whatever is ready while one fsync runs shares the next. For one event loop."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._waiting: list[tuple[Sequence[bytes], asyncio.Future[list[Place]]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._commit: asyncio.Task[None] | None = None

    async def append(self, entries: Sequence[bytes]) -> list[Place]:
        """Append entries; when this returns they are on the disk, though the caller be cancelled meanwhile."""
        done: asyncio.Future[list[Place]] = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, done))
        if self._commit is None or self._commit.done():
            self._commit = asyncio.create_task(self._commit_all(), name="journal")
        return await done

    async def _commit_all(self) -> None:
        # The first ready pass of the loop: those whose signature came in the same batch join.
        await asyncio.sleep(0)
        while self._waiting:
            group, self._waiting = self._waiting, []
            flat = [entry for entries, _ in group for entry in entries]
            try:
                loop = asyncio.get_running_loop()
                places = await loop.run_in_executor(self._thread, self.journal.append, flat)
            except BaseException as error:
                for _, done in group:
                    if not done.done():
                        done.set_exception(
                            error
                            if isinstance(error, Exception)
                            else UnavailableError("closing", reason="closing")
                        )
                if not isinstance(error, Exception):
                    raise
                continue
            start = 0
            for entries, done in group:
                if not done.done():
                    done.set_result(places[start : start + len(entries)])
                start += len(entries)

    def close(self) -> None:
        """End the thread and close the log; call it when nothing is being appended."""
        self._thread.shutdown(wait=True)
        self.journal.close()


def _places(payload: bytes, offset: int) -> Iterator[Place]:
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at : at + 4], "big")
        yield Place(offset + at + 4, length)
        at += 4 + length


def _sync_folder(folder: Path) -> None:
    """Make the file's name itself survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
