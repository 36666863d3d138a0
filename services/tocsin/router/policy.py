"""Turn what the policy allows into subjects: where a message goes, in one publication, and what keeps a copy.

The rules themselves are :mod:`tocsin.contracts.policy`, which every recipient applies again.

Example::

    route("threat_alert", sender, "all", Priority.CRITICAL, body, role_of).subject == DELIVER_ALL.at()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    DELIVER_AGENT,
    DELIVER_ALL,
    DELIVER_GROUP,
    DELIVER_MISSION,
    DELIVER_ROLE,
    DISCOVERY,
    DISCOVERY_BACKUP,
)
from tocsin.contracts.identifiers import Priority, SpiffeId
from tocsin.contracts.policy import Audience, Reach, RoleOf, check
from tocsin.contracts.subjects import Subject

KEPT_ROUTES = 8192
"""Routes kept: nearly all messages go where others went."""

_SUBJECTS: Mapping[Reach, Subject] = MappingProxyType(
    {
        Reach.ALL: DELIVER_ALL,
        Reach.AGENT: DELIVER_AGENT,
        Reach.ROLE: DELIVER_ROLE,
        Reach.MISSION: DELIVER_MISSION,
        Reach.GROUP: DELIVER_GROUP,
    }
)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes."""

    subject: str
    """Core subject, one publication."""
    backup: str | None
    """Subject in stream ALERTS for an emergency, which is also tracked; None below CRITICAL."""
    audience: Audience
    copy: str | None = None
    """Subject in stream DISCOVERIES, for those who miss the first copy."""


def route(
    type_name: str, sender: SpiffeId, audience: str, priority: Priority, body: Message, role_of: RoleOf
) -> Route:
    """Return where the message goes.

    Raises:
        InvalidInputError: see :func:`tocsin.contracts.policy.check`.
        DeniedError: likewise.
    """
    return _way(check(type_name, sender, audience, priority, body, role_of), type_name, priority)


@lru_cache(maxsize=KEPT_ROUTES)
def _way(to: Audience, type_name: str, priority: Priority) -> Route:
    return Route(
        subject=_SUBJECTS[to.reach].at(**({to.reach.value: to.name} if to.name else {})),
        backup=ALERT_BACKUP.at(severity=priority.token) if priority is Priority.CRITICAL else None,
        audience=to,
        copy=DISCOVERY_BACKUP.at(reach=to.reach.value, name=to.name) if type_name == DISCOVERY.name else None,
    )
