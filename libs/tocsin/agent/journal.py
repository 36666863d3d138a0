"""The host's journal of emergencies: accepted means that it is on the disk.

Group commit: whatever is accepted while one write is made shares the next write and its one fsync. The mark
that an agent has handled an alert is written, not fsynced: after a power cut the alert comes to the agent once
more, after a crash of the process alone it does not. A torn or damaged tail is cut off, and said: what it held
was either never confirmed, or comes again. The file is written anew, without what is done, when it has grown
to twice what it held then.

After a failed write, or while there is no room, nothing is promised: agents are handed their alerts all the same,
once each, since the state in memory remembers them, and the routers count them as undelivered.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tocsin.agent.accepted import MAX_KEPT, Acceptance, Accepted, Snapshot, frames_of
from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError
from tocsin.telemetry import get_logger

HEADER = b"tocsin alert journal 1\n"
MAX_WAITING = 4096
"""Acceptances that wait for the disk."""
REWRITE_BYTES = 4 * 1024 * 1024
"""Below this the file is not written anew."""
MAX_BYTES = 256 * 1024 * 1024
"""Size beyond which nothing is accepted: as much as stream ALERTS holds."""

REWRITE_FULL_S = 5.0
"""How often a full file is written anew, in the hope that something is done or old by now."""

log = get_logger(__name__)


class AlertJournal:
    """One host's journal, for one event loop. The constructor reads the file: make it in a thread."""

    def __init__(self, path: Path, *, now_ns: int) -> None:
        """Open or create the journal.

        Raises:
            UnavailableError: ``journal_failed``.
        """
        self._path = path
        self._state = Accepted()
        self._frames: list[bytes] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: dict[bytes, asyncio.Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alert-journal")
        self._task: asyncio.Task[None] | None = None
        self._failed = False
        self._unwritten: set[bytes] = set()
        try:
            data = path.read_bytes() if path.exists() else HEADER
            held = self._state.load(data[len(HEADER) :]) if data.startswith(HEADER) else 0
            if (cut := len(data) - len(HEADER) - held) > 0 or not data.startswith(HEADER):
                log.warning("alert_journal_torn", journal=path.name, cut_bytes=max(cut, 0))
            self._state.forget(now_ns=now_ns)
            self._file, self._size = _replace(path, HEADER + frames_of(self._state.snapshot()))
        except OSError as error:
            raise _unavailable(path, error) from error
        self._rewritten_bytes = self._size
        self._rewritten_s = time.monotonic()

    def unhandled(self) -> list[Acceptance]:
        """Return what some agent has not handled, in the order of acceptance."""
        return [one for one in self._state if one.waiting]

    def since(self, taken_ns: int) -> list[Acceptance]:
        """Return what was accepted since a moment, as far as it is still known for whom."""
        return [one for one in self._state if one.taken_ns >= taken_ns and one.agents]

    def has(self, leaf: bytes, agent: str) -> bool:
        """Tell whether an emergency was accepted for an agent, be it not on the disk yet."""
        return self._state.has(leaf, agent)

    def accept(
        self, leaf: bytes, data: bytes, channel: str, taken_ns: int, agents: list[str]
    ) -> asyncio.Future[None]:
        """Accept an emergency for agents: from now on :meth:`has` knows it.

        Returns:
            A future that is done when it is on the disk; it fails with UnavailableError (``journal_failed``) or
            ExhaustedError (``journal_full``), and then nothing may be confirmed.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        frame = self._state.accept(leaf, data, channel, taken_ns, agents)
        if self._failed:
            done.set_exception(self._failed_before())
            if len(self._state) > 2 * MAX_KEPT:  # no rewriting forgets them any more
                self._state.forget(now_ns=taken_ns)
        elif len(self._waiting) >= MAX_WAITING or self._size > MAX_BYTES:
            self._unwritten.add(leaf)
            done.set_exception(_full())
            self._write_soon()
        else:
            self._frames.append(frame)
            self._waiting.append(done)
            self._writing[leaf] = done
            self._write_soon()
        return done

    async def durable(self, leaf: bytes) -> None:
        """Wait until what was accepted is on the disk.

        Raises:
            UnavailableError: ``journal_failed``.
            ExhaustedError: ``journal_full``.
        """
        writing = self._writing.get(leaf)
        if writing is not None:
            await asyncio.shield(writing)
        if self._failed:
            raise self._failed_before()
        if leaf in self._unwritten:
            raise _full()

    def handled(self, leaf: bytes, agent: str) -> None:
        """Note that an agent has handled an emergency."""
        frame = self._state.handled(leaf, (agent,))
        if not self._failed:
            self._frames.append(frame)
            self._write_soon()

    def missed(self, leaf: bytes) -> None:
        """Note that some agent had no room for an emergency: it is remembered by name who has had it."""
        frame = self._state.missed(leaf)
        if not self._failed:
            self._frames.append(frame)
            self._write_soon()

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=True)
        os.close(self._file)
        self._failed = True

    def _write_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_all(), name="alert journal")

    async def _write_all(self) -> None:
        await asyncio.sleep(0)  # those that are accepted in the same turn of the loop join
        loop = asyncio.get_running_loop()
        while self._frames or self._is_overgrown():
            frames, self._frames = self._frames, []
            waiting, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._append, b"".join(frames), bool(waiting))
                if self._is_overgrown():
                    self._state.forget(now_ns=time.time_ns())
                    saved = frozenset(self._unwritten)
                    await loop.run_in_executor(self._thread, self._rewrite, self._state.snapshot())
                    self._unwritten -= saved
            except OSError as error:
                self._fail(waiting, error)
                return
            for done in waiting:
                if not done.done():
                    done.set_result(None)
            self._forget_written()

    def _append(self, data: bytes, sync: bool) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        if sync:
            os.fsync(self._file)
        self._size += len(data)

    def _is_overgrown(self) -> bool:
        """Tell whether to write the file anew: it has doubled; or it is full, and some time has passed."""
        full = self._size > MAX_BYTES and time.monotonic() - self._rewritten_s > REWRITE_FULL_S
        return full or self._size > max(REWRITE_BYTES, 2 * self._rewritten_bytes)

    def _rewrite(self, state: Snapshot) -> None:
        old = self._file
        self._file, self._size = _replace(self._path, HEADER + frames_of(state))
        os.close(old)
        self._rewritten_bytes = self._size
        self._rewritten_s = time.monotonic()

    def _fail(self, waiting: list[asyncio.Future[None]], error: OSError) -> None:
        """Accept nothing more: what reached the disk is not known."""
        self._failed = True
        log.error("alert_journal_failed", journal=self._path.name, detail=error.strerror)
        for done in (*waiting, *self._waiting):
            if not done.done():
                done.set_exception(_unavailable(self._path, error))
        self._frames.clear()
        self._waiting.clear()
        self._forget_written()

    def _failed_before(self) -> TocsinError:
        return UnavailableError(
            f"{self._path.name} failed before", reason="journal_failed", advice="see to the disk, restart"
        )

    def _forget_written(self) -> None:
        self._writing = {leaf: done for leaf, done in self._writing.items() if not done.done()}


def _replace(path: Path, data: bytes) -> tuple[int, int]:
    """Put a file with this content in the place of the old one in one step; return it open at its end."""
    fresh = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, len(data)


def _unavailable(path: Path, error: OSError) -> TocsinError:
    return UnavailableError(f"{path.name}: {error.strerror}", reason="journal_failed")


def _full() -> TocsinError:
    return ExhaustedError("the alert journal has no room", reason="journal_full")
