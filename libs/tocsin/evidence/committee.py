"""Who decides on one proposal: all participants of its epoch, or those that its scope names.

A committee is a subset of the epoch's seats that follows from the proposal alone, and counts by the numbers of its
own size. Its decisions are allowed and labelled, and can command nothing: where a third of 847 agents are hostile, a
role or a mission of theirs may well be hostile in its majority (consensus.md, "The certificate" and "Cost").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from tocsin.contracts.decisions import MIN_PARTICIPANTS, Participant, Proposal
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.epochs import InstalledEpoch, bound_seat
from tocsin.evidence.quorum import Quorum, weakness


@dataclass(frozen=True)
class Committee:
    """The seats that count in one decision."""

    label: str
    """``all``, ``role hunter`` or ``mission m-1``."""
    seats: Mapping[str, Participant]
    """By id, in the epoch's order."""

    @cached_property
    def quorum(self) -> Quorum:
        """The numbers f and q."""
        return Quorum.of(len(self.seats))

    @cached_property
    def why_not(self) -> str:
        """Why it is not Byzantine-tolerant; empty where it is."""
        return weakness(self.quorum, (seat.key_id for seat in self.seats.values()))

    def seat(self, sender: SpiffeId, key_id: bytes) -> Participant:
        """Return a participant's seat if this key speaks for it.

        Raises:
            UntrustedError: ``not_a_participant`` or ``wrong_key``.
        """
        return bound_seat(self.seats, sender, key_id, "not_a_participant")


def committee_of(proposal: Proposal, epoch: InstalledEpoch) -> Committee:
    """Return who decides on a proposal.

    Raises:
        InvalidInputError: ``bad_scope``; ``too_few_participants``; ``committee_cannot_command``.
        UntrustedError: ``unknown_member``: one that the scope names has no seat in the epoch.
    """
    scope = proposal.scope
    if scope.role is None and scope.mission is None and not scope.members:
        return Committee(scope.label, epoch.seats)
    if (scope.role is None) == (scope.mission is None) or (scope.mission is None) != (not scope.members):
        raise InvalidInputError("a scope is all, a role, or a mission with its members", reason="bad_scope")
    if list(scope.members) != sorted(set(scope.members)):
        raise InvalidInputError("a mission's members are not sorted, each once", reason="bad_scope")
    if any(option.command is not None for option in proposal.options):
        raise InvalidInputError(
            f"{scope.label} alone cannot decide on a command", reason="committee_cannot_command"
        )
    named = {SpiffeId.parse(who): seat for who, seat in epoch.seats.items()}
    if scope.role is not None:
        chosen = {str(who): seat for who, seat in named.items() if who.role is scope.role}
    else:
        chosen = {str(who): seat for who, seat in named.items() if who.name in set(scope.members)}
        if unknown := set(scope.members) - {who.name for who in named}:
            raise UntrustedError(
                f"{len(unknown)} members have no seat, {min(unknown)} is one", reason="unknown_member"
            )
    if len(chosen) < MIN_PARTICIPANTS:
        raise InvalidInputError(
            f"{scope.label} has {len(chosen)} participants, at least {MIN_PARTICIPANTS} are needed",
            reason="too_few_participants",
        )
    return Committee(scope.label, MappingProxyType(chosen))
