"""Count the ballots of one round: for each option those who have cast one for it, and proof against who casts two.

A participant that casts two is counted for both: what makes a certificate is q ballots for one choice, so instances
that see the two in another order still come to the same. While at most f are hostile there is one certificate at
most, since two quorums share more than f participants. A counter-proposal counts as a ballot, and for no option.

No signature is verified here: the bus has done that. What is checked is everything else that makes a ballot
count, the cheap things first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tocsin.bus.envelope import Envelope
from tocsin.contracts.decisions import Ballot, Choice, Equivocation, Option
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.choices import Question, check_ballot
from tocsin.evidence.committee import Committee
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence

MAX_COUNTERS = 2
"""Counter-proposals kept of one participant in a round: two are the proof that it equivocates."""


@dataclass(frozen=True, slots=True)
class Received:
    """A ballot whose envelope's signature was verified."""

    ballot: Ballot
    sender: SpiffeId
    key_id: bytes
    data: bytes = field(repr=False)
    """The envelope's own bytes."""
    envelope: Envelope | None = field(default=None, repr=False)
    """What they were decoded to, where that is known."""

    @property
    def evidence(self) -> Evidence[Ballot] | None:
        """Return it as the certificate's verification reads it, which has not to be done again then."""
        if self.envelope is None:
            return None
        return Evidence(self.ballot, self.sender, self.envelope, self.data)


@dataclass(frozen=True, slots=True)
class BallotCert:
    """A quorum of ballots for one option: whoever holds it may vote to decide that."""

    option: int
    choice: bytes
    """H(choice)."""
    ballots: tuple[Received, ...]


class Tally:
    """The ballots of one round of one decision."""

    def __init__(self, epoch: InstalledEpoch, committee: Committee, question: Question) -> None:
        self.certificates: dict[bytes, BallotCert] = {}
        """By H(choice). At most one for ever, unless more than f participants are hostile."""
        self._epoch = epoch
        self._committee = committee
        self._question = question
        self._cast: dict[str, dict[bytes, Received]] = {}
        """By participant, its ballots by H(choice): of counter-proposals :data:`MAX_COUNTERS` at most."""
        self._counts: Counter[int] = Counter()
        self._accused: set[str] = set()

    def add(self, received: Received) -> Equivocation | None:
        """Count a ballot; return the proof if this participant cast another one before. The same again is no change.

        Raises:
            UntrustedError: ``not_a_participant`` or ``wrong_key``.
            InvalidInputError: ``wrong_epoch``, ``wrong_decision``, ``wrong_round`` or ``bad_choice``.
        """
        ballot, sender = received.ballot, str(received.sender)
        self._committee.seat(received.sender, received.key_id)
        self._check_place(ballot)
        option = check_ballot(ballot, self._question)
        cast = self._cast.setdefault(sender, {})
        if ballot.value in cast or (isinstance(option, Option) and _counters(cast) >= MAX_COUNTERS):
            return None
        first = next(iter(cast.values()), None)
        cast[ballot.value] = received
        if isinstance(option, int):
            self._counts[option] += 1
            if self._counts[option] == self._committee.quorum.needed:
                self.certificates[ballot.value] = self._certify(option, ballot.value)
        return None if first is None else self._accuse(sender, first, received)

    @property
    def certificate(self) -> BallotCert | None:
        """The first quorum that was reached."""
        return next(iter(self.certificates.values()), None)

    def find(self, sender: str, value: bytes) -> Received | None:
        """Return a participant's ballot for a choice."""
        return self._cast.get(sender, {}).get(value)

    @property
    def single(self) -> dict[str, Received]:
        """The ballots of those that have cast one only, by participant."""
        return {who: next(iter(cast.values())) for who, cast in self._cast.items() if len(cast) == 1}

    @property
    def ballots(self) -> int:
        """Participants that have cast a ballot."""
        return len(self._cast)

    @property
    def leading(self) -> int:
        """Ballots for the option that has most."""
        return max(self._counts.values(), default=0)

    @property
    def impossible(self) -> bool:
        """Whether no option can reach the quorum any more, whatever the silent ones say."""
        silent = self._committee.quorum.participants - len(self._cast)
        return self.leading + silent < self._committee.quorum.needed

    @property
    def missing(self) -> tuple[str, ...]:
        """Ids of the participants without a ballot, in order."""
        return tuple(sender for sender in self._committee.seats if sender not in self._cast)

    def to_show(self) -> tuple[Received, ...]:
        """Return what another instance needs to know: the certificates' ballots, or without one all ballots."""
        if self.certificates:
            return tuple(r for certificate in self.certificates.values() for r in certificate.ballots)
        return tuple(received for cast in self._cast.values() for received in cast.values())

    def _certify(self, option: int, choice: bytes) -> BallotCert:
        chosen = (cast[choice] for _, cast in sorted(self._cast.items()) if choice in cast)
        return BallotCert(option, choice, tuple(chosen))

    def _accuse(self, sender: str, first: Received, second: Received) -> Equivocation | None:
        if sender in self._accused:
            return None
        self._accused.add(sender)
        return Equivocation(
            epoch=self._epoch.digest,
            decision=self._question.decision,
            round=self._question.round,
            accused=sender,
            first=first.data,
            second=second.data,
        )

    def _check_place(self, ballot: Ballot) -> None:
        if ballot.epoch != self._epoch.digest:
            raise InvalidInputError("a ballot of another epoch", reason="wrong_epoch")
        if ballot.decision != self._question.decision:
            raise InvalidInputError("a ballot of another decision", reason="wrong_decision")
        if ballot.round != self._question.round:
            raise InvalidInputError(f"a ballot of round {ballot.round}", reason="wrong_round")


def _counters(cast: dict[bytes, Received]) -> int:
    return sum(received.ballot.choice is Choice.COUNTER for received in cast.values())
