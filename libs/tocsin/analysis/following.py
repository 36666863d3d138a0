"""How a log file is followed while others rename, truncate and replace it: the decisions of ``tail -F``, pure.

A follower reads one file at a time, by its open descriptor and not by its name. At each look it is told what the file
system shows (:class:`Look`) and decides one :class:`Step`:

* the file is shorter than what was read, or the bytes before the offset are others: it was **truncated** in place (or
  copied and truncated); what was written between the last read and that moment is gone, unless a copy is found;
* there are bytes that were not read: **read** them;
* another file has the name, or lies between ours and it, and holds something; ours has been quiet for ``grace_s``: go
  to the **next**. A writer that was told late of the rotation goes on with the old file until it reopens the name, and
  only then does the new one fill: so an empty new file is no reason to leave the old one;
* else **wait**.

A file is known again by device, inode and two fingerprints (:class:`Mark`): the hash of its first bytes, since inodes
are used again after a file was removed, and that of the last bytes before the offset, since log files may begin alike.

Only whole lines are counted as read, so that an offset is always the beginning of a line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Message

HEAD_BYTES = 1024
"""Of the head that is fingerprinted: past Zeek's header lines, into the first records."""
TAIL_BYTES = 256
"""Of the end of what was read."""
KEPT_DONE = 16
"""Files that were read to their end and are remembered, so that none is read again under another name."""

Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Fingerprint(Message):
    """Hash of some bytes of a file; of none, it fits every file."""

    length: Annotated[int, Field(ge=0, le=HEAD_BYTES)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, data: bytes) -> Fingerprint:
        """Return the fingerprint of ``data``."""
        return cls(length=len(data), sha256=hashlib.sha256(data).hexdigest())


NOTHING = Fingerprint.of(b"")


class FileId(Message):
    """Which file, while it exists."""

    device: Whole
    inode: Whole


class Done(Message):
    """A file that was read to its end."""

    file: FileId
    head: Fingerprint


class Mark(Message):
    """How far a log was read: what must survive a restart."""

    file: FileId
    offset: Whole
    """Where the first line begins that was not read."""
    head: Fingerprint = NOTHING
    tail: Fingerprint = NOTHING
    modified_ns: Whole = 0
    """When the file was last written, as far as was seen."""
    done: Annotated[tuple[Done, ...], Field(max_length=KEPT_DONE)] = ()


class Step(StrEnum):
    """What to do next."""

    READ = "read"
    TRUNCATED = "truncated"
    NEXT = "next"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Look:
    """What the file system shows."""

    offset: int
    """How far the open file was read."""
    size: int
    """Of the open file."""
    intact: bool
    """Whether the bytes before the offset are those that were read."""
    successor_size: int | None
    """Of the next file; None if ours is the last one."""
    quiet_s: float
    """How long the open file has not grown."""


def decide(look: Look, *, grace_s: float) -> Step:
    """Decide by the rules at the head of this module."""
    if look.size < look.offset or not look.intact:
        return Step.TRUNCATED
    if look.size > look.offset:
        return Step.READ
    if look.successor_size and look.quiet_s >= grace_s:
        return Step.NEXT
    return Step.WAIT


_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")


def is_rotated_name(name: str, of: str) -> bool:
    """Tell whether ``name`` looks like an earlier ``of`` after a rotation.

    logrotate appends a number or a date (``eve.json.1``, ``eve.json-20240816``), or puts it before the extension;
    Zeek puts the time there (``conn.2024-08-16-09-00-00.log``, ``conn-24-08-16_09.00.00.log``). Compressed ones are
    left out: whoever compresses waits until they were read (logrotate's ``delaycompress``).
    """
    if name == of or name.endswith(_PACKED):
        return False
    stem, dot, extension = of.rpartition(".")
    middle = None
    if name.startswith(of):
        middle = name[len(of) :]
    elif dot and stem and name.startswith(stem) and name.endswith(f".{extension}"):
        middle = name[len(stem) : -len(extension) - 1]
    return middle is not None and re.fullmatch(r"[.\-_](old|[0-9][0-9A-Za-z.:_\-+]*)", middle) is not None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file beside ours that may be read after it."""

    name: str
    file: FileId
    size: int
    modified_ns: int


def in_between(candidates: Iterable[Candidate], mark: Mark, but: frozenset[FileId | None]) -> list[Candidate]:
    """Return the rotated files that come after ours and before the one that has the name, the oldest first.

    By their times of last writing: a file that was rotated later was written later. Ties are kept in, since whoever
    rotates twice within one tick of the file system's clock loses nothing by it; which of them were read already is
    told by ``mark.done`` (whose fingerprints the caller compares).

    Args:
        candidates: Files with a rotated name.
        mark: How far the log was read.
        but: Files that are none: the open one, and the one that has the name.
    """
    later = [
        one
        for one in candidates
        if one.modified_ns >= mark.modified_ns and one.file not in but and one.size > 0
    ]
    return sorted(later, key=lambda one: (one.modified_ns, one.name))


@dataclass(frozen=True, slots=True)
class Cut:
    """Lines cut from a piece of a file."""

    lines: tuple[bytes, ...]
    length: int
    """Bytes of the piece that these lines had, with their line ends."""


def cut(data: bytes, *, max_lines: int) -> Cut:
    r"""Cut whole lines, at most ``max_lines``, from the front of ``data``; ``\r`` before the end goes too."""
    lines: list[bytes] = []
    at = 0
    while len(lines) < max_lines and (end := data.find(b"\n", at)) >= 0:
        lines.append(data[at:end].rstrip(b"\r"))
        at = end + 1
    return Cut(tuple(lines), at)
