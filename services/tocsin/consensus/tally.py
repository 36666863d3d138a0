"""Count the ballots of one round: the first valid one of each participant, and proof against who casts two.

No signature is verified here: the bus has done that. What is checked is everything else that makes a ballot
count, the cheap things first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tocsin.contracts.decisions import Ballot, Equivocation
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.choices import check_ballot
from tocsin.evidence.epochs import InstalledEpoch


@dataclass(frozen=True, slots=True)
class Received:
    """A ballot whose envelope's signature was verified."""

    ballot: Ballot
    sender: SpiffeId
    key_id: bytes
    data: bytes = field(repr=False)
    """The envelope's own bytes."""


@dataclass(frozen=True, slots=True)
class BallotCert:
    """A quorum of ballots for one option: whoever holds it may vote to decide that."""

    option: int
    choice: bytes
    """H(choice)."""
    ballots: tuple[Received, ...]


class Tally:
    """The ballots of one round of one decision."""

    def __init__(self, epoch: InstalledEpoch, decision: bytes, round_number: int, options: int) -> None:
        self.certificate: BallotCert | None = None
        """At most one for ever: two quorums share an honest participant, who casts one ballot."""
        self._epoch = epoch
        self._decision = decision
        self._round = round_number
        self._options = options
        self._first: dict[str, Received] = {}
        self._counts: Counter[int] = Counter()
        self._accused: set[str] = set()

    def add(self, received: Received) -> Equivocation | None:
        """Count a ballot; return the proof if this participant cast another one before.

        The first one counts all the same: it is what the participant may have shown to others. The same choice
        again is no change.

        Raises:
            UntrustedError: ``not_a_participant`` or ``wrong_key``.
            InvalidInputError: ``wrong_epoch``, ``wrong_decision``, ``wrong_round`` or ``bad_choice``.
        """
        ballot, sender = received.ballot, str(received.sender)
        self._epoch.seat(received.sender, received.key_id)
        self._check_place(ballot)
        option = check_ballot(ballot, self._options)
        first = self._first.get(sender)
        if first is not None:
            return self._accuse(sender, first, received)
        self._first[sender] = received
        if option is not None:
            self._counts[option] += 1
            if self._counts[option] == self._epoch.quorum.needed and self.certificate is None:
                self.certificate = self._certify(option, ballot.value)
        return None

    @property
    def ballots(self) -> int:
        """Participants that have cast a ballot."""
        return len(self._first)

    @property
    def leading(self) -> int:
        """Ballots for the option that has most."""
        return max(self._counts.values(), default=0)

    @property
    def impossible(self) -> bool:
        """Whether no option can reach the quorum any more, whatever the silent ones say."""
        silent = self._epoch.quorum.participants - len(self._first)
        return self.leading + silent < self._epoch.quorum.needed

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the participants without a ballot, in order."""
        return tuple(sender for sender in self._epoch.seats if sender not in self._first)

    def _certify(self, option: int, choice: bytes) -> BallotCert:
        chosen = (r for _, r in sorted(self._first.items()) if r.ballot.option == option)
        return BallotCert(option, choice, tuple(chosen))

    def _accuse(self, sender: str, first: Received, second: Received) -> Equivocation | None:
        if first.ballot.value == second.ballot.value or sender in self._accused:
            return None
        self._accused.add(sender)
        return Equivocation(
            epoch=self._epoch.digest,
            decision=self._decision,
            round=self._round,
            accused=sender,
            first=first.data,
            second=second.data,
        )

    def _check_place(self, ballot: Ballot) -> None:
        if ballot.epoch != self._epoch.digest:
            raise InvalidInputError("a ballot of another epoch", reason="wrong_epoch")
        if ballot.decision != self._decision:
            raise InvalidInputError("a ballot of another decision", reason="wrong_decision")
        if ballot.round != self._round:
            raise InvalidInputError(f"a ballot of round {ballot.round}", reason="wrong_round")
