"""Name what arrives below ``route`` and is heard by no line.

There is a line for each priority, so a subject with another word in its place, or with too few or too many
tokens, would vanish. A subscription of its own hears everything; this says in a look what is none of its business.
"""

from __future__ import annotations

from tocsin.contracts.catalogue import ROUTE
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Priority

_TOKENS = ROUTE.pattern().split(".")
_PLACE = ROUTE.pattern(priority="here").split(".").index("here")
_PRIORITIES = frozenset(priority.token for priority in Priority)


def why_unheard(subject: str) -> InvalidInputError | None:
    """Return why no line hears a subject below ``route``: ``bad_subject``, ``bad_priority``; None if one does."""
    tokens = subject.split(".")
    if len(tokens) != len(_TOKENS):
        return InvalidInputError(f"{subject[:120]!r} is no subject of {ROUTE.name}", reason="bad_subject")
    if tokens[_PLACE] not in _PRIORITIES:
        return InvalidInputError(f"{tokens[_PLACE][:64]!r} is no priority", reason="bad_priority")
    return None
