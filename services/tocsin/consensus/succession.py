"""At most one next epoch is decided in any epoch. Pure.

Decisions are independent of one another, and two proposals could each change the same epoch. So an instance votes,
on its own knowledge, for making one change of an epoch only: the one that it opened first; for another one only
once that one has closed; and for none once it goes by a later epoch.

Two changes of one epoch are then never both decided, with at most g hostile instances: the first QC1 for either has Q
VOTE1 that rest on no other, so at least g + 1 of them are of honest instances that vote on their own knowledge; of the
2g + 1 honest ones one is in both sets. It had opened one of the two first, and voted for the other only after a
commit closed the first one; but a decision has one outcome.

What stands in the vote log survives a restart. A change that was opened and not voted on is forgotten there, and
another one may then come first: rightly, for nothing was said.
"""

from __future__ import annotations

from tocsin.contracts.decisions import Proposal
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import INSTALL

MAX_EPOCHS = 8
"""As many as the protocol knows; a decision of an earlier one is not open any more."""


class Changes:
    """The proposals of next epochs that are open here, in the order in which they were opened."""

    def __init__(self) -> None:
        self._open: dict[bytes, list[bytes]] = {}
        self._number = -1

    def installed(self, epoch: InstalledEpoch) -> None:
        """Know that this instance goes by an epoch now."""
        self._number = max(self._number, epoch.epoch.number)

    def opened(self, decision: bytes, proposal: Proposal) -> None:
        """Note that a proposal was opened; one that changes no epoch is no change."""
        if proposal.change is None:
            return
        going = self._open.setdefault(proposal.epoch, [])
        if decision not in going:
            going.append(decision)
        while len(self._open) > MAX_EPOCHS:
            del self._open[next(iter(self._open))]

    def closed(self, decision: bytes) -> None:
        """Note that a decision ended, and made no epoch."""
        for going in self._open.values():
            if decision in going:
                going.remove(decision)

    def bars(self, decision: bytes, proposal: Proposal, epoch: InstalledEpoch, option: int) -> bool:
        """Tell whether this instance may not decide on an option by its own knowledge."""
        if proposal.change is None or option != INSTALL:
            return False
        going = self._open.get(proposal.epoch, [])
        return self._number > epoch.epoch.number or not going or going[0] != decision
