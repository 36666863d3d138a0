"""A guardian's ledger: which orders it has claimed, what is in force, and until when; it survives the process.

Every step of an order is an entry of a log (:class:`tocsin.evidence.journal.Journal`), on the disk before what it says
is done:

    CLAIMED -> APPLIED -> UNDONE
       |-----> FAILED --> UNDONE or ABANDONED      (APPLIED -> ABANDONED, too)

An order that is CLAIMED and nothing else was interrupted: its actuator may have been asked or not. An order is *open*
until it is UNDONE or ABANDONED. Whatever bytes an entry has, it is read or the ledger refuses to open: who cannot know
what it did must not act. Entries of 32 bytes are those of earlier versions: a decision that was acted on.

Bounds: MAX_ACTED decisions are remembered so that none is acted on twice; MAX_OPEN orders may be open, more are
refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from tocsin.agent.roles.memory import Memory
from tocsin.contracts.base import Digest, Message, Nanoseconds
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError, InvariantBrokenError
from tocsin.contracts.response import Command
from tocsin.evidence.journal import Journal

MAX_ACTED = 65_536
MAX_OPEN = 4096
NS_PER_S = 1_000_000_000


class Step(StrEnum):
    """How far an order is."""

    CLAIMED = "claimed"
    APPLIED = "applied"
    FAILED = "failed"
    UNDONE = "undone"
    ABANDONED = "abandoned"


CLOSED = frozenset({Step.UNDONE, Step.ABANDONED})


class Entry(Message):
    """One step of one order, as it is written."""

    decision: Digest
    step: Step
    command: Command
    until_ns: Nanoseconds
    """When its time is over."""
    ballots: Annotated[int, Field(ge=0)] = 0
    quorum: Annotated[int, Field(ge=0)] = 0

    def encode(self) -> bytes:
        """Return its bytes in the log."""
        return self.model_dump_json().encode()


def decode(data: bytes) -> Entry | bytes:
    """Read an entry, or the decision that an earlier version wrote.

    Raises:
        InvalidInputError: ``bad_entry``.
    """
    if len(data) == 32:
        return data
    try:
        return Entry.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInputError("no entry of a guardian's ledger", reason="bad_entry") from error


@dataclass(frozen=True, slots=True)
class Book:
    """What the entries say, in memory. Without I/O and clock."""

    acted: Memory[bytes, None]
    open: dict[bytes, Entry]

    @classmethod
    def empty(cls) -> Book:
        """Return a book without entries."""
        return cls(Memory(MAX_ACTED), {})

    def enter(self, entry: Entry | bytes) -> None:
        """Take an entry."""
        if isinstance(entry, bytes):
            self.acted.keep(entry, None)
            return
        self.acted.keep(entry.decision, None)
        if entry.step in CLOSED:
            self.open.pop(entry.decision, None)
        else:
            self.open[entry.decision] = entry

    def check_new(self, decision: bytes) -> None:
        """Refuse a decision that was acted on, or one too many.

        Raises:
            ConflictError: ``already_acted``.
            ExhaustedError: ``too_many_orders``.
        """
        if decision in self.acted:
            raise ConflictError("this decision was acted on", reason="already_acted")
        if len(self.open) >= MAX_OPEN:
            raise ExhaustedError(f"{MAX_OPEN} orders are in force", reason="too_many_orders")

    def due(self, now_ns: int) -> list[Entry]:
        """Return what has to be undone now: its time is over, or it failed."""
        return [one for one in self.open.values() if one.step is Step.FAILED or one.until_ns <= now_ns]

    def longest(self, entry: Entry) -> Entry | None:
        """Return the other order in force for the same action and address that lasts longest."""
        same = [
            one
            for one in self.open.values()
            if one.step is Step.APPLIED
            and one.decision != entry.decision
            and (one.command.action, one.command.address) == (entry.command.action, entry.command.address)
        ]
        return max(same, key=lambda one: one.until_ns, default=None)


class Ledger:
    """The book and its log. Opening it blocks; one writes at a time."""

    def __init__(self, path: Path) -> None:
        """Open the log and read it.

        Raises:
            InvariantBrokenError: ``damaged_log``: an entry that is none, or the log's own.
            ConflictError: ``log_in_use``.
            UnavailableError: the file cannot be opened or read.
        """
        self.book = Book.empty()
        self._log = Journal(path)
        try:
            for _, data in self._log.entries():
                self.book.enter(decode(data))
        except InvalidInputError as error:
            self._log.close()
            raise InvariantBrokenError(
                f"{path.name} holds what no guardian wrote",
                reason="damaged_log",
                advice="restore it; a guardian that cannot know what it did must not act",
            ) from error

    async def write(self, entry: Entry) -> None:
        """Write an entry; when this returns it is on the disk, and in the book.

        Raises:
            UnavailableError: ``log_failed``.
        """
        await asyncio.to_thread(self._log.append, [entry.encode()])
        self.book.enter(entry)

    def close(self) -> None:
        """Close the log."""
        self._log.close()
