"""Keys that count no more: the root's numbered list, and fleet's word on which list is the current one."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from tocsin.contracts.base import Digest, Message, Nanoseconds

MAX_REVOCATIONS = 10_000
"""Most keys in a list: at 79 bytes each they fit into the 900 KiB of its type."""

ListNumber = Annotated[int, Field(ge=0, le=2**32)]


class RevocationReason(StrEnum):
    """Why a key counts no more."""

    COMPROMISED = "compromised"
    """Somebody else may have it: nothing that it signed is believed, whenever that says it was issued."""
    SUPERSEDED = "superseded"
    """An authority's key that another has taken the place of: nothing that it vouched for counts any more."""
    RETIRED = "retired"
    """It is out of use: what it signed before that moment stays as good as it was."""


class Revocation(Message):
    """One key that counts no more: a process's, or an authority's with all that it vouched for."""

    key_id: Digest
    reason: RevocationReason
    since_ns: Nanoseconds
    """When it was revoked. Of a compromised key this is for people only."""


class RevocationList(Message):
    """All revoked keys of an installation, signed by its root. Each list has the entries of those before it."""

    number: Annotated[int, Field(ge=1, le=2**32)]
    """Of two lists the higher number counts, and of two with one number the one made later."""
    made_ns: Nanoseconds
    entries: Annotated[tuple[Revocation, ...], Field(min_length=1, max_length=MAX_REVOCATIONS)]

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if len({entry.key_id for entry in self.entries}) != len(self.entries):
            raise ValueError("a key is listed twice")
        return self


class RevocationStatement(Message):
    """Fleet says, every few seconds, which list is the current one."""

    number: ListNumber
    """0 where nothing was ever revoked."""
    leaf: Digest | None
    """Leaf hash of the list's content: names these bytes and no others."""
    this_update_ns: Nanoseconds
    """When fleet said so, by its clock."""
