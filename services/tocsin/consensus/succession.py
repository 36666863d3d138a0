"""At most one next epoch is decided in any epoch. Pure.

Decisions are independent of one another, and two proposals could each change the same epoch. So an instance that has
voted for making one change of an epoch votes, on its own knowledge, for making another one only once the first has
closed; and for none once it goes by a later epoch. Instead it may close what it may not make.

Two changes of one epoch are then never both decided, with at most g hostile instances: the first QC1 for either has Q
VOTE1 that rest on no other, so at least g + 1 of them are of honest instances that vote on their own knowledge; of the
2g + 1 honest ones one is in both sets. It had voted for one of the two first, and for the other only after a commit
closed the first; but a decision has one outcome.

What an instance has voted for stands in its log, and is taken up again with the decision. A proposal without a quorum
of ballots is in nobody's way.
"""

from __future__ import annotations

from tocsin.contracts.decisions import Proposal
from tocsin.evidence.choices import choice_digest, decide_value
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import INSTALL

MAX_EPOCHS = 8
"""As many as the protocol knows; nothing is voted for in an earlier one any more."""
ROUND = 1
"""A change is decided on as it is: there is nothing to refine in it."""


class Changes:
    """For which change of each epoch this instance has voted."""

    def __init__(self) -> None:
        self._voted: dict[bytes, bytes] = {}
        self._number = -1

    def installed(self, epoch: InstalledEpoch) -> None:
        """Know that this instance goes by an epoch now."""
        self._number = max(self._number, epoch.epoch.number)

    def voted(self, decision: bytes, proposal: Proposal, value: bytes | None) -> None:
        """Note what this instance votes for; what makes no epoch is nothing to it."""
        if proposal.change is not None and value == install_value(decision):
            self._voted.setdefault(proposal.epoch, decision)
            while len(self._voted) > MAX_EPOCHS:
                del self._voted[next(iter(self._voted))]

    def closed(self, decision: bytes) -> None:
        """Note that a decision has ended, and made no epoch."""
        self._voted = {epoch: held for epoch, held in self._voted.items() if held != decision}

    def bars(self, decision: bytes, proposal: Proposal, epoch: InstalledEpoch, option: int) -> bool:
        """Tell whether this instance may not vote for an option on its own knowledge."""
        if proposal.change is None or option != INSTALL:
            return False
        held = self._voted.get(proposal.epoch, decision)
        return self._number > epoch.epoch.number or held != decision


def install_value(decision: bytes) -> bytes:
    """Return what instances vote for to make a decision's epoch."""
    return decide_value(decision, ROUND, choice_digest(decision, ROUND, INSTALL))
