"""A canary's token files: decoys that look worth stealing, each with a token of its own, and the record of them.

The record (``<canary>.tokens.json`` in the host's state folder) says which files are ours and what is in them, so that
a canary that starts again knows its files, finds out which were touched while it was away, and never overwrites a file
of somebody else. A token that turns up elsewhere names the file it is from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tocsin.contracts.errors import ConflictError, UnavailableError

TOKEN_BYTES = 20
MODE = 0o644
"""Others can read it: that is what it is for."""
MAX_RECORD_BYTES = 256 * 1024


def decoy(name: str, token: str) -> bytes:
    """Return what a file of this name might hold, with a token in it."""
    lower = name.lower()
    if "credentials" in lower or lower.endswith(".ini"):
        key, secret = token[:16].upper(), token * 2
        text = f"[default]\naws_access_key_id = AKIA{key}\naws_secret_access_key = {secret[:40]}\n"
    elif lower.endswith(".env"):
        text = f"DATABASE_URL=postgresql://backup:{token}@db-01.internal:5432/payroll\n"
    elif lower.endswith(".csv"):
        text = f"account,owner,pin\nadmin,operations,{token}\n"
    else:
        text = f"Recovery key (confidential, do not forward)\n\n{token}\n"
    return text.encode()


class Placed(BaseModel):
    """One line of the record."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    token: str
    sha256: str


class Record(BaseModel):
    """The record, by the files' absolute paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: dict[str, Placed] = {}


def read_record(path: Path) -> Record:
    """Return the record; an empty one, where there is none or it cannot be read as one."""
    try:
        with path.open("rb") as file:
            return Record.model_validate_json(file.read(MAX_RECORD_BYTES))
    except (OSError, ValidationError):
        return Record()


def write_record(path: Path, files: Mapping[Path, TokenFile]) -> None:
    """Replace the record.

    Raises:
        UnavailableError: ``no_file``.
    """
    record = Record(files={str(one.path): Placed(token=one.token, sha256=one.sha256) for one in files.values()})
    _replace(path, record.model_dump_json().encode(), mode=0o600)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One decoy."""

    path: Path
    token: str

    @property
    def content(self) -> bytes:
        """What it holds."""
        return decoy(self.path.name, self.token)

    @property
    def sha256(self) -> str:
        """SHA-256 of its content, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self) -> None:
        """Put it in its place, whatever is there: a reader sees all of it or nothing.

        Raises:
            UnavailableError: ``no_file``: the folder is not there or not ours, or a folder is in its place.
        """
        _replace(self.path, self.content, mode=MODE)

    def intact(self) -> bool:
        """Read it: only before it is watched."""
        try:
            with self.path.open("rb") as file:
                return file.read(len(self.content) + 1) == self.content
        except OSError:
            return False


def place(path: Path, record: Record, *, ours: bool) -> tuple[TokenFile, bool]:
    """Put a token file out, or find the one of an earlier run.

    Args:
        path: Where.
        record: Of the earlier run.
        ours: Whether what is there is ours, even if the record does not know it.

    Returns:
        The file, and whether the one of the earlier run was changed or removed while nobody watched.

    Raises:
        ConflictError: ``file_exists``: a file of somebody else is there.
        UnavailableError: ``no_file``.
    """
    known = record.files.get(str(path))
    if known is None:
        if not ours and os.path.lexists(path):
            raise ConflictError(
                f"{path} exists and is no token file of this canary",
                reason="file_exists",
                advice="name another",
            )
        made = TokenFile(path, secrets.token_hex(TOKEN_BYTES))
        made.write()
        return made, False
    made = TokenFile(path, known.token)
    if made.intact():
        return made, False
    made.write()
    return made, True


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UnavailableError(f"{path.name}: {error.strerror}", reason="no_file") from error
