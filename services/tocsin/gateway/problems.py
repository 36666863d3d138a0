"""Errors as RFC 9457 problem details: who is at fault decides the status.

``type`` stays ``about:blank``, so ``title`` is the status's own phrase (RFC 9457 section 4.2.1). Beside the
members of the RFC a problem has ``family`` and ``reason``, the constants that logs and counters use too, and
``advice`` where there is something that the reader can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType

from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    UntrustedError,
    family_of,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""What a client is told to wait when something is down or used up: a process restarts in about that time."""

STATUS: Mapping[str, HTTPStatus] = MappingProxyType(
    {
        InvalidInputError.reason: HTTPStatus.BAD_REQUEST,
        # What another process said could not be trusted: not the client's fault, and not this process's.
        UntrustedError.reason: HTTPStatus.BAD_GATEWAY,
        DeniedError.reason: HTTPStatus.FORBIDDEN,
        UnavailableError.reason: HTTPStatus.SERVICE_UNAVAILABLE,
        ExhaustedError.reason: HTTPStatus.TOO_MANY_REQUESTS,
        ConflictError.reason: HTTPStatus.CONFLICT,
        InvariantBrokenError.reason: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
"""Status by family."""

_STATUS_BY_REASON: Mapping[str, HTTPStatus] = MappingProxyType(
    {
        "unauthenticated": HTTPStatus.UNAUTHORIZED,
        "not_found": HTTPStatus.NOT_FOUND,
        "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
        "length_required": HTTPStatus.LENGTH_REQUIRED,
        "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    }
)
"""Where HTTP has a status of its own for what this process refuses itself."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What the client gets instead of an answer."""

    status: HTTPStatus
    body: dict[str, str | int]
    headers: dict[str, str] = field(default_factory=dict)


def problem_of(error: TocsinError, instance: str) -> Problem:
    """Describe ``error``, which came up at the path ``instance``."""
    family = family_of(error)
    status = _STATUS_BY_REASON.get(error.reason, STATUS[family])
    body: dict[str, str | int] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "detail": _detail(error),
        "instance": instance,
        "family": family,
        "reason": error.reason,
    }
    if advice := error.advice():
        body["advice"] = advice
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="tocsin"'
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return Problem(status, body, headers)


def _detail(error: TocsinError) -> str:
    """Say what was wrong; a bug of ours shows nothing of itself."""
    return "an internal error, see the log" if isinstance(error, InvariantBrokenError) else str(error)
