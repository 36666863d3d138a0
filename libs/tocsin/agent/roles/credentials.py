r"""What attackers tried to log in with, in a file of this host, as text that is safe to look at.

One JSON line a login, to ``<agent>.credentials.jsonl`` with mode 0600:

    {"at_s": 1795580122.5, "imitates": "ftp", "source": "203.0.113.9", "user": "root", "guess": "t\\x00r", "cut": false}

Every byte that is no printable ASCII character is written ``\xNN``, and so is the backslash: no control sequence, no
other alphabet and no line end of an attacker's reaches a terminal or a parser. Nothing is interpreted. Of a value
MAX_VALUE bytes are kept (``cut`` says so). With ``hashed`` the values are salted hashes, new with each start, by which
only repetition shows: for those who must not keep passwords, since people, too, mistake a honeypot for the real thing.

Bounds: a file of MAX_FILE_BYTES, then it becomes ``.1`` and the former ``.1`` is gone; MAX_WAITING logins wait to be
written, more are counted and dropped. Process logs hold the hashes only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from pathlib import Path

from tocsin.agent.roles.honeypot import Visit
from tocsin.contracts.errors import UnavailableError

MAX_VALUE = 64
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_WAITING = 4096


def escaped(value: bytes) -> str:
    r"""Return bytes as printable ASCII, unambiguously; at most MAX_VALUE of them."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in value[:MAX_VALUE]
    )


def fingerprint(value: bytes, salt: bytes) -> str:
    """Return 16 hex digits of a keyed hash: equal for equal values under one salt, and nothing more."""
    return hashlib.blake2b(value, key=salt, digest_size=8).hexdigest()


class CredentialLog:
    """The file. :meth:`put` is quick and does no I/O; :meth:`write` blocks.

    Args:
        path: The file.
        salt: Of the hashes, 16 to 64 random bytes.
        hashed: Whether values are written as hashes.
    """

    def __init__(
        self, path: Path, salt: bytes, *, hashed: bool = False, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._path = path
        self._salt = salt
        self._hashed = hashed
        self._max_file_bytes = max_file_bytes
        self._waiting: deque[str] = deque()
        self.dropped = 0
        """Logins that were not written for want of room."""

    def put(self, visit: Visit) -> None:
        """Take the logins of a visit."""
        for login in visit.logins:
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                continue
            line = {
                "at_s": round(visit.at_s, 3),
                "imitates": visit.imitates,
                "source": visit.client[0],
                "user": self._shown(login.user),
                "guess": self._shown(login.guess),
                "cut": max(len(login.user), len(login.guess)) > MAX_VALUE,
            }
            self._waiting.append(json.dumps(line) + "\n")

    def write(self) -> None:
        """Append what waits.

        Raises:
            UnavailableError: ``credentials_lost``: the file cannot be written; what waited is gone.
        """
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        data = "".join(lines).encode()
        try:
            if self._path.exists() and self._path.stat().st_size + len(data) > self._max_file_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnavailableError(f"{self._path.name}: {error.strerror}", reason="credentials_lost") from error

    def _shown(self, value: bytes) -> str:
        return fingerprint(value, self._salt) if self._hashed else escaped(value)
