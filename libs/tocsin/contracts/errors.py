"""The families of errors, cut by who is at fault and what the caller should do.

Every error carries a ``reason``: a short constant that is counted, audited and sent on the wire. Its
message is for the operator; :meth:`TocsinError.advice` says what to do about it, where there is something.

Foreign exceptions stop at the module that imports the foreign library and become one of these.
"""

from __future__ import annotations

from typing import ClassVar


class TocsinError(Exception):
    """The root of every error that Tocsin raises on purpose."""

    reason: str = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, reason: str | None = None, advice: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        self._advice = advice

    def advice(self) -> str | None:
        """Say in one line what the operator can do, or None."""
        return self._advice


class InvalidInputError(TocsinError):
    """Malformed or out of bounds. The message is terminated, never retried."""

    reason = "invalid_input"
    exit_code = 65


class UntrustedError(TocsinError):
    """Signature, certificate, replay or equivocation. Dropped, audited, and the peer is scored."""

    reason = "untrusted"
    exit_code = 76


class DeniedError(TocsinError):
    """Authenticated but not allowed."""

    reason = "denied"
    exit_code = 77


class UnavailableError(TocsinError):
    """A peer, the broker or a QPU is down. Retry with back-off inside a deadline."""

    reason = "unavailable"
    exit_code = 69


class ExhaustedError(TocsinError):
    """A quota, a queue or a budget is used up. Retry later."""

    reason = "exhausted"
    exit_code = 75


class ConflictError(TocsinError):
    """A stale version, or already decided. The caller reloads."""

    reason = "conflict"
    exit_code = 73


class InvariantBrokenError(TocsinError):
    """Our own bug: the task stops and somebody is told."""

    reason = "invariant_broken"
    exit_code = 70


FAMILIES: dict[str, type[TocsinError]] = {
    family.reason: family
    for family in (
        InvalidInputError,
        UntrustedError,
        DeniedError,
        UnavailableError,
        ExhaustedError,
        ConflictError,
        InvariantBrokenError,
    )
}
"""Family by its wire name: how an error in a reply becomes the same family at the caller."""


def family_of(error: TocsinError) -> str:
    """Return the wire name of the family that ``error`` belongs to."""
    for name, family in FAMILIES.items():
        if isinstance(error, family):
            return name
    return InvariantBrokenError.reason
