"""The eight roles, made by name.

    agent = make(Role.DECEPTION, "deception-01", ports=3)

A role's module is imported when its first agent is made, so that a host loads only what it carries.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from tocsin.agent.agent import Agent
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Role

_CLASSES = {
    Role.SENTINEL: ("sentinel", "Sentinel"),
    Role.HUNTER: ("hunter", "Hunter"),
    Role.GUARDIAN: ("guardian", "Guardian"),
    Role.ANALYST: ("analyst", "Analyst"),
    Role.DECEPTION: ("deception", "Deception"),
    Role.ADMIN: ("admin", "Admin"),
    Role.CANARY: ("canary", "Canary"),
    Role.SPECIALIST: ("specialist", "Specialist"),
}


def make(role: Role, name: str, **options: object) -> Agent:
    """Make an agent of a role.

    Args:
        role: Which of the eight.
        name: A DNS label, unique in the trust domain.
        options: What that role's class takes beside its name, e.g. ``ports`` of a deception agent.

    Raises:
        InvalidInputError: ``bad_option`` if the role does not know an option.
    """
    module, name_of_class = _CLASSES[role]
    agent_class = cast("type[Agent]", getattr(import_module(f"{__name__}.{module}"), name_of_class))
    known = set(agent_class.__init__.__annotations__) - {"name", "return"}
    if unknown := sorted(set(options) - known):
        raise InvalidInputError(
            f"{role.value} has no option {', '.join(unknown)}; it has: {', '.join(sorted(known)) or 'none'}",
            reason="bad_option",
        )
    return agent_class(name, **options)
