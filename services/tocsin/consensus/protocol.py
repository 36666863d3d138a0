"""The protocol of one consensus instance: proposals, ballots, votes and the time in, effects out.

Sans I/O: no clock, no broker, no disk, no randomness. The same inputs in the same order give the same effects.
Rules, in the order in which a decision passes them:

1. A proposal opens its decision if it names the current epoch, its sender is an admin with a seat and its key
   there, and it is of now. A decision opens once; there are bounds on how many are open.
2. Ballots that come before their proposal are held, a few per participant, and counted when it opens.
3. q ballots for one option make a BallotCert; the slot may then commit DECIDE of that option, and nothing else
   may decide. Without one, the slot may commit CLOSE once the deadline has passed or no option can reach q.
4. What the slot commits ends the decision, once and for good.

There is one round so far: where a later version refines the question and asks again, this one closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tocsin.consensus.slot import Cast, Commit, Slot
from tocsin.consensus.tally import BallotCert, Received, Tally
from tocsin.contracts.decisions import Equivocation, Outcome, Proposal, Step, Vote
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.choices import close_value, decide_value
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence
from tocsin.evidence.verification import check_proposal

ROUND = 1
NS_PER_MS = 1_000_000
SKEW_NS = 30_000_000_000
"""How far a proposer's clock may differ (envelope.md, class live), and how long an early ballot is held."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others can make an instance hold."""

    open_decisions: int = 256
    open_per_proposer: int = 64
    held_per_agent: int = 4


@dataclass(frozen=True, slots=True)
class CastVote:
    """Effect: sign this step, give it back by :meth:`Protocol.signed`, persist it, send it."""

    vote: Vote
    proposal: Evidence[Proposal]
    ballots: BallotCert | None
    """What the vote rests on: to be kept with it, so that a restart can go on."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """Effect: publish the proof that a participant cast two ballots."""

    proof: Equivocation


@dataclass(frozen=True, slots=True)
class End:
    """Effect: the decision is over; make its certificate, if it decided anything, and announce it."""

    decision: bytes
    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    outcome: Outcome
    why: str
    ballots: BallotCert | None
    """Those for what was decided; None where it closed."""
    commit: Commit
    ballots_for: int
    ballots_received: int
    missing: tuple[str, ...]


Effect = CastVote | Accuse | End


@dataclass(slots=True)
class _Open:
    """A decision that is open."""

    epoch: InstalledEpoch
    proposal: Evidence[Proposal]
    deadline_ns: int
    tally: Tally
    slot: Slot = field(init=False)
    late: bool = False
    """The deadline has passed."""

    @property
    def decision(self) -> bytes:
        return self.proposal.leaf

    @property
    def outcome(self) -> bytes | None:
        """The one value that this instance may vote for on its own knowledge."""
        if (certificate := self.tally.certificate) is not None:
            return decide_value(self.decision, ROUND, certificate.choice)
        if self.late or self.tally.impossible:
            return close_value(self.decision, ROUND)
        return None

    def admissible(self, value: bytes) -> bool:
        return value == self.outcome


class Protocol:
    """One instance's state."""

    def __init__(self, me: str, limits: Limits | None = None) -> None:
        self.epoch: InstalledEpoch | None = None
        self._me = me
        self._limits = limits or Limits()
        self._open: dict[bytes, _Open] = {}
        self._ended: dict[bytes, int] = {}
        self._held: dict[bytes, tuple[int, dict[str, list[Received]]]] = {}
        self._floor = -1

    @property
    def open_decisions(self) -> int:
        """Decisions that are open."""
        return len(self._open)

    def epoch_of(self, decision: bytes) -> InstalledEpoch | None:
        """Return the epoch that a decision is open in, or the current one."""
        opened = self._open.get(decision)
        return self.epoch if opened is None else opened.epoch

    def install(self, epoch: InstalledEpoch) -> bool:
        """Take a new epoch for the proposals to come; return False if it is the current one already.

        Decisions that are open go on in their own epoch.

        Raises:
            ConflictError: ``stale_epoch``: a lower number, or the same with other content.
            InvalidInputError: ``not_an_instance``, or ``too_many_instances`` (one, in this version).
        """
        current = self.epoch
        if current is not None and epoch.digest == current.digest:
            return False
        if epoch.epoch.number <= self._floor:
            raise ConflictError(f"epoch {epoch.epoch.number} is not after {self._floor}", reason="stale_epoch")
        if self._me not in epoch.instances:
            raise InvalidInputError(f"{self._me} is no instance of this epoch", reason="not_an_instance")
        if len(epoch.instances) > 1:
            raise InvalidInputError(
                f"{len(epoch.instances)} instances; this version commits with one", reason="too_many_instances"
            )
        self.epoch = epoch
        self._floor = epoch.epoch.number
        return True

    def abstain_until_after(self, number: int) -> None:
        """Take no part in epochs up to this number: they were installed, and what was voted there is lost."""
        self._floor = max(self._floor, number)

    def open(self, proposal: Evidence[Proposal], now_ns: int) -> list[Effect]:
        """Open the decision that a proposal asks for; one that was opened before is no change.

        Raises:
            TocsinError: ``no_epoch``, ``wrong_epoch``, ``not_a_participant``, ``not_an_admin``, ``wrong_key``,
                ``issued_in_future``, ``deadline_passed`` or ``too_many_decisions``.
        """
        if proposal.leaf in self._open or proposal.leaf in self._ended:
            return []
        if self.epoch is None:
            raise InvalidInputError("no epoch is installed", reason="no_epoch")
        check_proposal(proposal, self.epoch)
        self._check_time(proposal, now_ns)
        self._check_room(proposal.sender)
        deadline_ns = now_ns + proposal.body.deadline_ms * NS_PER_MS
        opened = self._begin(self.epoch, proposal, deadline_ns)
        _, held = self._held.pop(proposal.leaf, (0, {}))
        effects: list[Effect] = []
        for received in (ballot for ballots in held.values() for ballot in ballots):
            try:
                effects += self._count(opened, received)
            except (InvalidInputError, UntrustedError):
                continue  # no option of this proposal, or of an epoch before: not known when it was held
        return effects + self._advance(opened)

    def ballot(self, received: Received, now_ns: int) -> list[Effect]:
        """Count a ballot, or hold it until its proposal comes. After the decision it has no effect.

        Raises:
            TocsinError: ``no_epoch``, ``wrong_epoch``, ``wrong_round``, ``bad_choice``, ``not_a_participant``,
                ``wrong_key`` or ``too_many_held``.
        """
        decision = received.ballot.decision
        if decision in self._ended:
            return []
        opened = self._open.get(decision)
        if opened is None:
            self._hold(received, now_ns)
            return []
        return self._count(opened, received) + self._advance(opened)

    def signed(self, vote: Vote, sender: SpiffeId, key_id: bytes, data: bytes) -> list[Effect]:
        """Take an instance's signed step, this one's own included.

        Raises:
            UntrustedError: ``not_an_instance``, ``wrong_key`` or ``not_the_leader``.
        """
        opened = self._open.get(vote.decision)
        if opened is None or vote.epoch != opened.epoch.digest or vote.round != ROUND:
            return []
        opened.epoch.instance(sender, key_id)
        casts = opened.slot.receive(vote.step, str(sender), vote.view, vote.value, data)
        return _votes(opened, casts) + self._advance(opened)

    def tick(self, now_ns: int) -> list[Effect]:
        """Look at the deadlines, and forget what can no longer matter."""
        for decision in [d for d, until_ns in self._ended.items() if until_ns < now_ns]:
            del self._ended[decision]
        for decision in [d for d, (until_ns, _) in self._held.items() if until_ns < now_ns]:
            del self._held[decision]
        effects: list[Effect] = []
        for opened in list(self._open.values()):
            if not opened.late and now_ns >= opened.deadline_ns:
                opened.late = True
                effects += self._advance(opened)
        return effects

    def restore(
        self,
        epoch: InstalledEpoch,
        proposal: Evidence[Proposal],
        ballots: Iterable[Received],
        votes: Iterable[Evidence[Vote]],
    ) -> list[Effect]:
        """Go on with a decision that this instance had begun to vote on before a restart.

        Its own votes are known before anything follows from them: the last step first, so that none is cast
        anew.
        """
        opened = self._begin(epoch, proposal, deadline_ns=0)
        opened.late = True
        for received in ballots:
            opened.tally.add(received)
        effects: list[Effect] = []
        for vote in sorted(votes, key=lambda v: list(Step).index(v.body.step), reverse=True):
            body = vote.body
            casts = opened.slot.receive(body.step, str(vote.sender), body.view, body.value, vote.data)
            effects += _votes(opened, casts)
        return effects + self._advance(opened)

    def remember_ended(self, decision: bytes, until_ns: int) -> None:
        """Know that a decision is over, as long as its proposal could come again."""
        self._ended[decision] = until_ns

    # --- Inside -------------------------------------------------------------------------------

    def _begin(self, epoch: InstalledEpoch, proposal: Evidence[Proposal], deadline_ns: int) -> _Open:
        tally = Tally(epoch, proposal.leaf, ROUND, len(proposal.body.options))
        opened = _Open(epoch, proposal, deadline_ns, tally)
        instances = tuple(epoch.instances)
        rotation = int.from_bytes(proposal.leaf[:4], "big") % len(instances)
        opened.slot = Slot(instances, self._me, rotation=rotation, admissible=opened.admissible)
        self._open[proposal.leaf] = opened
        return opened

    def _count(self, opened: _Open, received: Received) -> list[Effect]:
        proof = opened.tally.add(received)
        return [] if proof is None else [Accuse(proof)]

    def _advance(self, opened: _Open) -> list[Effect]:
        """Return what follows: a proposal to the slot, votes, the end."""
        casts = opened.slot.advance()
        if (outcome := opened.outcome) is not None:
            casts += opened.slot.propose(outcome)
        return _votes(opened, casts) + self._end(opened)

    def _end(self, opened: _Open) -> list[Effect]:
        commit = opened.slot.commit
        if commit is None or opened.decision not in self._open:
            return []
        certificate = opened.tally.certificate
        closed = commit.value == close_value(opened.decision, ROUND)
        if not closed and (certificate is None or commit.value != opened.outcome):
            return []  # others have committed what this instance has no ballots for yet
        del self._open[opened.decision]
        self.remember_ended(opened.decision, good_until_ns(opened.proposal))
        return [
            End(
                decision=opened.decision,
                epoch=opened.epoch,
                proposal=opened.proposal,
                outcome=Outcome.CLOSED if closed else Outcome.DECIDED,
                why=_why(opened, closed=closed),
                ballots=None if closed else certificate,
                commit=commit,
                ballots_for=opened.tally.leading,
                ballots_received=opened.tally.ballots,
                missing=opened.tally.missing,
            )
        ]

    def _hold(self, received: Received, now_ns: int) -> None:
        if self.epoch is None:
            raise InvalidInputError("no epoch is installed", reason="no_epoch")
        if received.ballot.epoch != self.epoch.digest:
            raise InvalidInputError("a ballot of another epoch", reason="wrong_epoch")
        self.epoch.seat(received.sender, received.key_id)
        sender, decision = str(received.sender), received.ballot.decision
        if (held := self._held.get(decision, (0, {}))[1].get(sender)) is not None:
            if len(held) == 1 and held[0].ballot.value != received.ballot.value:
                held.append(received)  # two are the proof of an equivocation; more prove no more
            return
        mine = sum(sender in ballots for _, ballots in self._held.values())
        if mine >= self._limits.held_per_agent:
            raise ExhaustedError(
                f"{mine} ballots of {sender} wait for their proposals already", reason="too_many_held"
            )
        self._held.setdefault(decision, (now_ns + SKEW_NS, {}))[1][sender] = [received]

    def _check_time(self, proposal: Evidence[Proposal], now_ns: int) -> None:
        if proposal.envelope.content.issued_at > now_ns + SKEW_NS:
            raise InvalidInputError("the proposal is issued in the future", reason="issued_in_future")
        if good_until_ns(proposal) < now_ns:
            raise InvalidInputError("the proposal's deadline has passed", reason="deadline_passed")

    def _check_room(self, proposer: SpiffeId) -> None:
        theirs = sum(opened.proposal.sender == proposer for opened in self._open.values())
        if len(self._open) >= self._limits.open_decisions or theirs >= self._limits.open_per_proposer:
            raise ExhaustedError(
                f"{len(self._open)} decisions are open, {theirs} of {proposer}", reason="too_many_decisions"
            )


def good_until_ns(proposal: Evidence[Proposal]) -> int:
    """Return until when a proposal may open its decision."""
    return proposal.envelope.content.issued_at + proposal.body.deadline_ms * NS_PER_MS + SKEW_NS


def _votes(opened: _Open, casts: Iterable[Cast]) -> list[Effect]:
    return [
        CastVote(
            Vote(
                step=cast.step,
                epoch=opened.epoch.digest,
                decision=opened.decision,
                round=ROUND,
                view=cast.view,
                value=cast.value,
            ),
            opened.proposal,
            opened.tally.certificate,
        )
        for cast in casts
    ]


def _why(opened: _Open, *, closed: bool) -> str:
    tally, quorum = opened.tally, opened.epoch.quorum
    if not closed:
        return f"{quorum.needed} of {quorum.participants} ballots for one option"
    so_far = f"{tally.leading} of the {quorum.needed} ballots needed, from {tally.ballots} participants"
    if tally.impossible:
        return f"no option can reach its quorum any more: {so_far}"
    return f"no option reached its quorum before the deadline: {so_far}"
