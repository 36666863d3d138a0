"""Linux's inotify(7) by ctypes: who opens, reads, changes or removes a file is told while it happens.

The standard library has no inotify, and two calls of libc do not need another dependency. An event says what was done,
not who did it. Not told: stat(2), and what another machine does on a shared file system.

    notes = Inotify()
    watch = notes.add(Path("decoy"), Mask.OPEN | Mask.ACCESS)
    [note.mask for note in notes.read() if note.watch == watch]
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from tocsin.contracts.errors import InvalidInputError, UnavailableError

READ_BYTES = 64 * 1024
_HEAD = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name."""


class Mask(IntFlag):
    """What happened (inotify(7)); values are the kernel's interface and never change."""

    ACCESS = 0x1
    MODIFY = 0x2
    ATTRIB = 0x4
    OPEN = 0x20
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    """The kernel's queue was full: some notes are lost; ``watch`` is -1."""
    IGNORED = 0x8000
    """The watch is gone: its file is, or it was removed."""
    DONT_FOLLOW = 0x2000000


@dataclass(frozen=True, slots=True)
class Note:
    """One event."""

    watch: int
    mask: Mask


def parse(data: bytes) -> list[Note]:
    """Read the kernel's bytes.

    Raises:
        InvalidInputError: ``bad_notes``: they end within an event.
    """
    notes = []
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            raise InvalidInputError("an event is cut off", reason="bad_notes")
        watch, mask, _, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size + length
        if at > len(data):
            raise InvalidInputError("an event's name is cut off", reason="bad_notes")
        notes.append(Note(watch, Mask(mask)))
    return notes


class Inotify:
    """One instance. Never blocks: wait for :attr:`descriptor` to be readable."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            UnavailableError: ``no_inotify``: another system than Linux, or the user's instances are used up.
        """
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self.descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (AttributeError, OSError) as error:
            raise UnavailableError("this system has no inotify", reason="no_inotify") from error
        if self.descriptor < 0:
            raise self._failed("inotify_init1")

    def add(self, path: Path, mask: Mask) -> int:
        """Watch a file; return the watch.

        Raises:
            UnavailableError: ``no_inotify``: the file is not there, or the user's watches are used up.
        """
        watch: int = self._libc.inotify_add_watch(
            self.descriptor, os.fsencode(path), ctypes.c_uint32(mask | Mask.DONT_FOLLOW)
        )
        if watch < 0:
            raise self._failed(f"inotify_add_watch {path.name}")
        return watch

    def remove(self, watch: int) -> None:
        """End a watch; one that is gone already is nothing."""
        self._libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[Note]:
        """Return what has happened since; nothing, if nothing has.

        Raises:
            UnavailableError: ``no_inotify``: it is closed.
        """
        try:
            return parse(os.read(self.descriptor, READ_BYTES))
        except BlockingIOError:
            return []
        except OSError as error:
            raise UnavailableError(f"inotify: {error.strerror}", reason="no_inotify") from error

    def close(self) -> None:
        """Close it; every watch ends."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _failed(self, what: str) -> UnavailableError:
        return UnavailableError(f"{what}: {os.strerror(ctypes.get_errno())}", reason="no_inotify")
