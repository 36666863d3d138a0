"""One-time enrolment tokens, and the code that proves one without sending it.

Host and fleet compute the same code. Both read their tokens from a file, a JSON list; the host's names the
agents that each token is for, fleet's binds them to a host and to their roles as well:

    [{"token_id": "h1-0", "secret_hex": "...", "names_host": true, "agents": ["sentinel-01"],
      "root_fingerprint": "..."}]
    [{"token_id": "h1-0", "secret_hex": "...", "names_host": true, "host": "h1",
      "agents": [{"name": "sentinel-01", "role": "sentinel"}]}]
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgpack
from pydantic import Field, TypeAdapter, ValidationError

from tocsin.contracts.base import Message, Name, Nanoseconds
from tocsin.contracts.errors import InvalidInputError, UnavailableError, UntrustedError
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST, AgentSpec, EnrolRequest

DOMAIN = b"tocsin/enrol/1"
MAX_TOKENS = 20_000
MAX_FILE_BYTES = 16 * 1024 * 1024


class EnrolToken(Message):
    """What host and fleet both know of a token."""

    token_id: Name
    secret_hex: Annotated[str, Field(pattern="^([0-9a-f]{2}){16,64}$", repr=False)]
    """16 to 64 random bytes."""
    names_host: bool = True
    expires_ns: Nanoseconds | None = None
    """Until when a key can be enrolled with it, nanoseconds since the epoch by fleet's clock; None for ever."""

    @property
    def secret(self) -> bytes:
        """The token itself."""
        return bytes.fromhex(self.secret_hex)


class HeldToken(EnrolToken):
    """A token as the host holds it."""

    host: Name | None = None
    agents: Annotated[tuple[Name, ...], Field(max_length=MAX_AGENTS_PER_HOST)]
    root_fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the root's certificate in DER: under which root this token is good."""


class IssuedToken(EnrolToken):
    """A token as fleet knows it."""

    host: Name
    agents: Annotated[tuple[AgentSpec, ...], Field(max_length=MAX_AGENTS_PER_HOST)]
    withdrawn_ns: Nanoseconds | None = None
    """When it was withdrawn; a key that was enrolled with it before may renew."""


T = TypeVar("T", HeldToken, IssuedToken)


def read_tokens(path: Path, model: type[T]) -> tuple[T, ...]:
    """Read a tokens file.

    Raises:
        UnavailableError: ``missing_file``.
        InvalidInputError: ``bad_tokens_file``; the message shows no value of it.
    """
    advice = "`tocsin init` and `tocsin up` write one; docs/reference/settings.md has its form"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnavailableError(
            f"cannot read the tokens file {path.name}: {error.strerror}", reason="missing_file", advice=advice
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInputError(f"{path.name} is too large", reason="bad_tokens_file", advice=advice)
    adapter: TypeAdapter[tuple[T, ...]] = TypeAdapter(tuple[model, ...])  # type: ignore[valid-type]  # a model as a value
    try:
        tokens = adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInputError(
            f"{path.name}: {place or 'file'}: {first['type']}", reason="bad_tokens_file", advice=advice
        ) from None
    if len({token.token_id for token in tokens}) != len(tokens) or len(tokens) > MAX_TOKENS:
        raise InvalidInputError(
            f"{path.name} has a token_id twice, or too many", reason="bad_tokens_file", advice=advice
        )
    return tokens


def check_root(tokens: Sequence[HeldToken], fingerprint: str) -> None:
    """Check that tokens are good under the root that is trusted here: with another one nobody would answer.

    Raises:
        UntrustedError: ``wrong_root``.
    """
    for token in tokens:
        if token.root_fingerprint not in {None, fingerprint}:
            raise UntrustedError(
                f"ca.pem is not the root that token {token.token_id} is for",
                reason="wrong_root",
                advice="take ca.pem and the tokens file from one installation",
            )


def enrol_mac(token: bytes, request: EnrolRequest) -> bytes:
    """HMAC-SHA-256 of everything in the request that a certificate would promise.

    ``request.mac`` itself is left out. Lengths are unambiguous: the fields travel as one msgpack array.
    """
    fields = (
        DOMAIN,
        request.token_id,
        request.host,
        request.names_host,
        [(agent.name, agent.role.value) for agent in request.agents],
        request.algorithm,
        request.public_key,
    )
    return hmac.new(token, bytes(msgpack.packb(fields)), hashlib.sha256).digest()


def mac_matches(token: bytes, request: EnrolRequest) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(enrol_mac(token, request), request.mac)
