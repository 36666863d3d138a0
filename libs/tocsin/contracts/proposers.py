"""Who may put what to the vote, by role: docs/adr/0019-who-may-propose-what.md.

To propose decides nothing; it takes every agent's time, and sets what all are asked. So what commands or changes who
decides is for admins, questions are for those who work on cases, and what concerns a mission its members may ask one
another. Routers, hosts, instances and whoever verifies a certificate apply the same table, to the options of every
round: no counter-proposal makes a hunter's question a command.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from tocsin.contracts.decisions import Option, Proposal
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import Role, SpiffeId


class Matter(StrEnum):
    """What a proposal is about, as far as that decides who may make it."""

    COMMAND = "command"
    """An option would have something done."""
    EPOCH = "epoch"
    """An option would make the next epoch."""
    MISSION = "mission"
    """Words only, for the members of a mission."""
    QUESTION = "question"
    """Words only, for all or for a role."""


_ASKERS = frozenset({Role.ADMIN, Role.ANALYST, Role.HUNTER})

PROPOSERS: Mapping[Matter, frozenset[Role]] = MappingProxyType(
    {
        Matter.COMMAND: frozenset({Role.ADMIN}),
        Matter.EPOCH: frozenset({Role.ADMIN}),
        Matter.QUESTION: _ASKERS,
        # And whoever is a member.
        Matter.MISSION: _ASKERS,
    }
)


def has_effect(option: Option) -> bool:
    """Tell whether more than words would follow from an option."""
    return option.command is not None or option.epoch is not None


def matter_of(proposal: Proposal) -> Matter:
    """Return what a proposal is about; of two matters the one that fewer may propose."""
    if proposal.change is not None or any(option.epoch is not None for option in proposal.options):
        return Matter.EPOCH
    if any(option.command is not None for option in proposal.options):
        return Matter.COMMAND
    return Matter.QUESTION if proposal.scope.mission is None else Matter.MISSION


def may_command(proposer: SpiffeId) -> bool:
    """Tell whether what this agent proposes may come to command anything, in a later round."""
    return proposer.role in PROPOSERS[Matter.COMMAND]


def check_proposer(proposer: SpiffeId, proposal: Proposal) -> None:
    """Check that an agent may propose this. That it has a seat is not looked at here.

    Raises:
        DeniedError: ``proposer_not_allowed``.
    """
    matter = matter_of(proposal)
    if proposer.role in PROPOSERS[matter]:
        return
    if matter is Matter.MISSION and proposer.role is not None and proposer.name in proposal.scope.members:
        return
    may = ", ".join(sorted(PROPOSERS[matter]))
    members = " and its members" if matter is Matter.MISSION else ""
    raise DeniedError(
        f"{proposer} may not propose a {matter}: {may}{members} may", reason="proposer_not_allowed"
    )
