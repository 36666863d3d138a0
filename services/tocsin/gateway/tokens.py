"""The bearer token: read from a private file, compared in constant time, shown nowhere."""

from __future__ import annotations

import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tocsin.contracts.errors import DeniedError, InvalidInputError, UnavailableError

MIN_CHARS = 22
"""128 bits in base64url, the least that RFC 6749 section 10.10 asks of a guess (2^-128)."""
MAX_CHARS = 512
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")
"""A bearer token's alphabet: ``b64token`` of RFC 6750 section 2.1."""
_ADVICE = "write one with: (umask 077; openssl rand -base64 32 > FILE)"


@dataclass(frozen=True, slots=True)
class ApiToken:
    """The token that clients present."""

    _secret: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the token.

        Raises:
            UnavailableError: ``missing_file``.
            InvalidInputError: ``token_file_mode``: it is this user's own, and others may read it;
                ``bad_token_file``.
        """
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                data = file.read(MAX_CHARS + 2).strip()
        except OSError as error:
            raise UnavailableError(
                f"cannot read the API token in {path}: {error.strerror}", reason="missing_file", advice=_ADVICE
            ) from error
        # Somebody else's file can be read here only because they opened it, as they must for a container.
        own = os.name == "posix" and about.st_uid == os.geteuid()
        if own and about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidInputError(
                f"others may read the API token in {path}",
                reason="token_file_mode",
                advice=f"chmod 600 {path}, and write a new token, for this one may be known",
            )
        if not MIN_CHARS <= len(data) <= MAX_CHARS or not _TOKEN.fullmatch(data):
            raise InvalidInputError(
                f"{path} holds no token of {MIN_CHARS} to {MAX_CHARS} characters of RFC 6750",
                reason="bad_token_file",
                advice=_ADVICE,
            )
        return cls(data)

    def check(self, authorization: str | None) -> None:
        """Admit the value of an ``Authorization`` header.

        Raises:
            DeniedError: ``unauthenticated``, whatever was wrong with it.
        """
        scheme, _, presented = (authorization or "").partition(" ")
        same = hmac.compare_digest(presented.strip().encode("utf-8", "surrogateescape"), self._secret)
        if scheme.lower() != "bearer" or not same:
            raise DeniedError(
                "a bearer token is needed",
                reason="unauthenticated",
                advice="send 'Authorization: Bearer TOKEN' with the token of TOCSIN_API_TOKEN_FILE",
            )
