"""What the protocol asks of its shell: to sign, keep, send, show, accuse, announce."""

from __future__ import annotations

from dataclasses import dataclass, field

from tocsin.consensus import slot
from tocsin.consensus.tally import BallotCert, Received
from tocsin.contracts.decisions import Counted, Equivocation, Option, Outcome, Proposal, Step, Vote
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.choices import Question
from tocsin.evidence.committee import Committee
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence
from tocsin.evidence.rounds import Opening


@dataclass(frozen=True, slots=True)
class Voted:
    """A step whose signature and certificate have been verified."""

    vote: Vote
    sender: SpiffeId
    key_id: bytes
    data: bytes = field(repr=False)
    """The envelope's own bytes."""
    votes: tuple[Voted, ...] = field(default=(), repr=False)
    """The VOTE1 that the certificate which it brings, or its lock, is made of."""

    @property
    def high(self) -> slot.QuorumCert | None:
        """The QC1 that it brings."""
        if not self.votes or (value := self.votes[0].vote.value) is None:
            return None
        return slot.QuorumCert(
            self.votes[0].vote.view, value, {str(one.sender): one.data for one in self.votes}
        )

    def received(self) -> slot.Received:
        """Return it as the slot takes it."""
        vote = self.vote
        return slot.Received(vote.step, str(self.sender), vote.view, vote.value, self.high, self.data)


@dataclass(frozen=True, slots=True)
class CastVote:
    """Sign this step, persist it with what it rests on, give it back by ``Protocol.signed``, send it."""

    vote: Vote
    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    opening: Opening
    """How its round began."""
    ballots: tuple[Received, ...]
    """Those of the ballot certificates that this instance holds."""
    high: slot.QuorumCert | None
    """The QC1 that it rests on."""
    following: tuple[Option, ...]
    """v_{r+1}, where it is for NEXT of options that are known here."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A round after the first has begun here: persist that; and, if ``tell``, tell everyone."""

    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    opening: Opening
    tell: bool
    begins: bool
    """False where it is told once more."""


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Send an own step again, in its own bytes."""

    decision: bytes
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask an instance for a decision's ballots, or for its proposal and all that belongs to it."""

    decision: bytes
    instance: str
    proposal: bool


@dataclass(frozen=True, slots=True)
class Want:
    """Ask agents to send the ballots of a round again that have not come."""

    decision: bytes
    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    round: int
    missing: frozenset[str]
    """Ids of the participants."""


@dataclass(frozen=True, slots=True)
class Show:
    """Show an instance what it lacks."""

    decision: bytes
    instance: str
    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    opening: Opening
    """Of the round that is shown."""
    ballots: tuple[Received, ...]
    commit: slot.Commit | None
    following: tuple[Option, ...] = ()
    """v_{r+1}, of what was committed or certified."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """Publish the proof that a participant broke its word."""

    proof: Equivocation


@dataclass(frozen=True, slots=True)
class LookUp:
    """See whether the decision is announced: tell ``Protocol.announced``, or ``Protocol.step_in`` if it is not."""

    decision: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """The decision is over and announced: keep that, until its proposal could not come again."""

    decision: bytes
    until_ns: int


@dataclass(frozen=True, slots=True)
class End:
    """The decision is over: make its certificate, if it decided anything, and announce it."""

    decision: bytes
    epoch: InstalledEpoch
    committee: Committee
    proposal: Evidence[Proposal]
    opening: Opening
    """Of the round in which it ended."""
    outcome: Outcome
    why: str
    ballots: BallotCert | None
    """Those for what was decided; None where it closed."""
    commit: slot.Commit
    ballots_for: int
    ballots_received: int
    missing: tuple[str, ...]


Effect = CastVote | Opened | SendAgain | Ask | Want | Show | Accuse | LookUp | Forget | End


def vote_of(cast: slot.Cast, epoch: bytes, question: Question, counted: Counted | None = None) -> Vote:
    """Return the body of a step: PROPOSE and TIMEOUT bring the QC1 itself, VOTE1 names it, VOTE2 is it."""
    high = None if cast.step is Step.VOTE2 else cast.high
    brings = high is not None and cast.step in {Step.PROPOSE, Step.TIMEOUT}
    return Vote(
        step=cast.step,
        epoch=epoch,
        decision=question.decision,
        round=question.round,
        view=cast.view,
        value=cast.value,
        high_view=None if high is None else high.view,
        high_value=None if high is None else high.value,
        certificate=tuple(data for _, data in sorted(high.votes.items())) if brings and high else (),
        counted=counted,
    )
