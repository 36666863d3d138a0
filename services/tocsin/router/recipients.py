"""Need-to-know of what cannot be read here: a sealed body names the keys that open it, and that is enough.

Pure: the message's type, what stands in for its body and a look-up of the keys' owners come in. What the policy
says about bodies is for those who open them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import COORDINATION, INTELLIGENCE
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import Role
from tocsin.contracts.policy import Audience, Reach
from tocsin.contracts.routing import SealedBody
from tocsin.contracts.subjects import MessageType

SENSITIVE = frozenset({COORDINATION.name, INTELLIGENCE.name})
"""What a quarantined agent is not told."""

RolesOf: TypeAlias = Callable[[bytes], frozenset[Role]]
"""The roles of the agents that hold a sealing key, by its id; empty for one that nobody has."""


def check_standing(
    kind: MessageType[Message],
    to: Audience,
    body: Message,
    is_quarantined: Callable[[str], bool],
    opened_there: Callable[[bytes], bool],
) -> None:
    """Check that nothing sensitive goes to a quarantined agent, by name or by a key that it can use.

    Args:
        kind: the message's type.
        to: whom it is for.
        body: it, or what stands for a sealed one.
        is_quarantined: tells whether an agent is, by its name.
        opened_there: tells whether a quarantined agent can open what is sealed to a key, by its id.

    Raises:
        DeniedError: ``recipient_quarantined``.
    """
    sensitive = kind.name in SENSITIVE
    if sensitive and to.reach is Reach.AGENT and is_quarantined(to.name):
        raise DeniedError(f"agent {to.name} is quarantined", reason="recipient_quarantined")
    if isinstance(body, SealedBody) and any(map(opened_there, body.recipients)):
        raise DeniedError("sealed to a key that a quarantined agent can use", reason="recipient_quarantined")


def check_recipients(kind: MessageType[Message], body: Message, roles_of: RolesOf) -> None:
    """Check that a type that is for some roles is sealed to keys of theirs alone. O(recipients), at most 64.

    A host may carry agents of several roles under one key: it is cleared if one of them is.

    Raises:
        DeniedError: ``recipient_not_cleared``.
    """
    if not kind.cleared or not isinstance(body, SealedBody):
        return
    if any(roles_of(key).isdisjoint(kind.cleared) for key in body.recipients):
        raise DeniedError("sealed to a key of nobody who has a need to know", reason="recipient_not_cleared")
