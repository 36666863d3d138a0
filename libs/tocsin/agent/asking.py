"""A question of an agent's own, as a proposal."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from tocsin.contracts.decisions import Option, Proposal, Scope
from tocsin.contracts.errors import InvalidInputError

ROUND_MS = 10_000


def question_of(
    epoch: bytes,
    subject: str,
    options: Mapping[str, str],
    *,
    evidence: Sequence[str] = (),
    scope: Scope | None = None,
    rounds: int = 1,
    deadline_ms: int = ROUND_MS,
) -> Proposal:
    """Return a question with options that are words.

    Args:
        epoch: digest of the epoch whose agents decide.
        subject: what is asked, in a line.
        options: text by name, two to eight of them.
        evidence: lines of grounds, at most 32.
        scope: whom to ask; by default all.
        rounds: most rounds, at most 10.
        deadline_ms: for how long each waits for ballots.

    Raises:
        InvalidInputError: ``bad_question``.
    """
    try:
        return Proposal(
            epoch=epoch,
            workflow=secrets.token_bytes(16),  # the same question can be asked again
            subject=subject,
            evidence=tuple(evidence),
            assessment=bytes(32),
            options=tuple(Option(name=name, command=None, text=text) for name, text in options.items()),
            deadline_ms=deadline_ms,
            rounds=rounds,
            scope=scope or Scope(),
        )
    except ValueError as error:
        raise InvalidInputError(
            "no question: two to eight options with names of lower case, digits and dashes, texts of 512 characters at "
            "most, 32 lines of evidence, 10 rounds of 10 minutes",
            reason="bad_question",
        ) from error
