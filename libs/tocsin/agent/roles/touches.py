"""How a canary notices that a token file was touched.

:class:`InotifyWatch` is told by the kernel what is done to the very file, and looks every LOOK_S whether the file is
still in its place. :class:`PollingWatch` looks at the file's times and size; it is the way where inotify is not to be
had. Its limits: several touches between two looks are one; on a file system that is mounted ``noatime`` reading is not
seen at all; with ``relatime``, the usual one, the first reading after the file was put out is (proc(5), mount(8): the
access time is written if it is not younger than the change), so it is set back after each.

Neither opens a file that is watched, so nothing that a canary does itself is a touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from tocsin.agent.inotify import Inotify, Mask
from tocsin.agent.roles.memory import Memory
from tocsin.contracts.errors import UnavailableError

LOOK_S = 0.5
BURST_S = 10.0
"""Touches of a file with less time between them are one burst."""
MAX_BURSTS = 256
BACK_S = 1.0
"""By so much the access time is set back behind the change."""


class Touch(StrEnum):
    """What was done to a file."""

    OPENED = "opened"
    READ = "read"
    CHANGED = "changed"
    MOVED = "moved"
    REMOVED = "removed"


LOOKED = frozenset({Touch.OPENED, Touch.READ})
"""Touches that leave a file as it is."""

OnTouch = Callable[[Path, Touch], None]

_TOUCHES = (
    (Mask.OPEN, Touch.OPENED),
    (Mask.ACCESS, Touch.READ),
    (Mask.MODIFY | Mask.ATTRIB, Touch.CHANGED),
    (Mask.MOVE_SELF, Touch.MOVED),
    (Mask.DELETE_SELF | Mask.UNMOUNT, Touch.REMOVED),
)
_ALL = Mask.OPEN | Mask.ACCESS | Mask.MODIFY | Mask.ATTRIB | Mask.MOVE_SELF | Mask.DELETE_SELF


class Bursts:
    """Tells which touches are news: in one burst the first look at a file, and the first change. Pure."""

    def __init__(self) -> None:
        self._last: Memory[tuple[Path, bool], float] = Memory(MAX_BURSTS)

    def is_news(self, path: Path, touches: set[Touch], now_s: float) -> bool:
        """Take what was done to a file; return whether it is to be said."""
        changed = bool(touches - LOOKED)
        last_s = self._last.get((path, changed))
        self._last.keep((path, changed), now_s)
        if changed:
            self._last.keep((path, False), now_s)  # who looks at what they have just changed is no news
        return last_s is None or now_s >= last_s + BURST_S


class TouchWatch(Protocol):
    """Watches files."""

    def watch(self, path: Path) -> None:
        """Watch a file that was just put out, in place of the one that was there.

        Raises:
            UnavailableError: it cannot be watched.
        """

    def forget(self, path: Path) -> None:
        """Stop watching: what follows is the canary's own doing."""

    async def run(self) -> None:
        """Tell of touches until cancelled."""


class InotifyWatch:
    """Watches by inotify.

    Raises:
        UnavailableError: ``no_inotify``.
    """

    def __init__(self, on_touch: OnTouch) -> None:
        self._on_touch = on_touch
        self._notes = Inotify()
        self._paths: dict[int, Path] = {}
        self._inodes: dict[Path, tuple[int, int]] = {}

    def watch(self, path: Path) -> None:
        """Watch a file."""
        self.forget(path)
        self._paths[self._notes.add(path, _ALL)] = path
        if (inode := _inode(path)) is not None:
            self._inodes[path] = inode

    def forget(self, path: Path) -> None:
        """Stop watching a file, and drop what is told of it."""
        for watch in [watch for watch, of in self._paths.items() if of == path]:
            del self._paths[watch]
            self._notes.remove(watch)
        self._inodes.pop(path, None)

    async def run(self) -> None:
        """Tell what the kernel tells, at once; and what it does not: that a folder above was moved."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._notes.descriptor, ready.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await ready.wait()
                ready.clear()
                self._tell()
                for path, inode in list(self._inodes.items()):
                    if _inode(path) != inode:
                        self._on_touch(path, Touch.MOVED)
        finally:
            loop.remove_reader(self._notes.descriptor)
            self._notes.close()

    def _tell(self) -> None:
        for note in self._notes.read():
            if note.mask & Mask.Q_OVERFLOW:
                for path in set(self._paths.values()):
                    self._on_touch(path, Touch.CHANGED)  # what is lost may have been anything
            path_of = self._paths.get(note.watch)
            if path_of is not None:
                for mask, touch in _TOUCHES:
                    if note.mask & mask:
                        self._on_touch(path_of, touch)


class PollingWatch:
    """Watches by looking."""

    def __init__(self, on_touch: OnTouch, *, look_s: float = LOOK_S) -> None:
        self._on_touch = on_touch
        self._look_s = look_s
        self._seen: dict[Path, os.stat_result] = {}

    def watch(self, path: Path) -> None:
        """Watch a file; its access time is set back, so that the next reading shows."""
        try:
            now = path.lstat()
            os.utime(path, ns=(now.st_mtime_ns - int(BACK_S * 1e9), now.st_mtime_ns), follow_symlinks=False)
            self._seen[path] = path.lstat()
        except OSError as error:
            raise UnavailableError(f"{path.name}: {error.strerror}", reason="no_file") from error

    def forget(self, path: Path) -> None:
        """Stop watching a file."""
        self._seen.pop(path, None)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            for path, before in list(self._seen.items()):
                touch = compare(before, _stat(path))
                if touch is not None:
                    self._on_touch(path, touch)


def compare(before: os.stat_result, now: os.stat_result | None) -> Touch | None:
    """Return what happened between two looks at a file. Pure."""
    if now is None:
        return Touch.REMOVED
    if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
        return Touch.MOVED
    if (now.st_mtime_ns, now.st_size, now.st_ctime_ns) != (
        before.st_mtime_ns,
        before.st_size,
        before.st_ctime_ns,
    ):
        return Touch.CHANGED
    return Touch.READ if now.st_atime_ns != before.st_atime_ns else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _inode(path: Path) -> tuple[int, int] | None:
    found = _stat(path)
    return None if found is None else (found.st_dev, found.st_ino)
