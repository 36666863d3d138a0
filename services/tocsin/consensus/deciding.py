"""One decision at one instance, from its opening to its announcement.

Rules, in the order in which a decision passes them (consensus.md, "A round" and "A slot"):

1. q ballots for one option make a BallotCert. DECIDE of that option is then admissible here, and nothing else is.
   Without one, CLOSE is admissible once the deadline has passed or no option can reach q.
2. The slot commits. A view's timer starts when there is something to propose: an admissible outcome, a QC1, or the
   steps of more than g others. It doubles from view to view up to a cap, and the own TIMEOUT is sent again in
   identical bytes while the view lasts; each time it looks whether the decision is announced, too. A single instance
   waits for nobody and has no timer.
3. Who lacks the ballots for what the leader proposes, or for what was committed, asks those that have spoken.
4. The leader of the committed view announces. The others look, each a while after the one before it, whether that has
   happened, and step in if not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tocsin.consensus.effects import (
    Accuse,
    Ask,
    CastVote,
    Effect,
    End,
    LookUp,
    SendAgain,
    Show,
    Voted,
    vote_of,
)
from tocsin.consensus.slot import Cast, Commit, Slot
from tocsin.consensus.tally import BallotCert, Received, Tally
from tocsin.consensus.watch import Watch
from tocsin.contracts.decisions import Outcome, Proposal, Step
from tocsin.evidence.choices import Question, close_value, decide_value
from tocsin.evidence.committee import committee_of
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence

ROUND = 1
NS_PER_MS = 1_000_000
MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an instance waits for others, in nanoseconds."""

    first_view_ns: int = 40 * NS_PER_MS
    """The first view's timer. A quiet machine takes 5 to 15 ms for a slot of four instances; a failover costs this,
    a tick and the next view's steps, and shall take less than 60 ms."""
    longest_view_ns: int = 5_000 * NS_PER_MS
    ask_after_ns: int = 100 * NS_PER_MS
    """So long what is lacking may still be on its way; the pause doubles with each ask."""
    step_in_ns: int = 1_000 * NS_PER_MS
    """How much later than the one before it an instance announces."""

    def view_ns(self, view: int) -> int:
        """Return how long a view lasts at most."""
        return min(self.first_view_ns << min(view - 1, MAX_DOUBLINGS), self.longest_view_ns)


class Deciding:
    """A decision that is open, or committed and not yet known to be announced."""

    def __init__(
        self, me: str, epoch: InstalledEpoch, proposal: Evidence[Proposal], *, deadline_ns: int, pace: Pace
    ) -> None:
        self.epoch = epoch
        self.committee = committee_of(proposal.body, epoch)
        self.proposal = proposal
        self.decision = proposal.leaf
        self.tally = Tally(epoch, self.committee, Question.first(self.decision, proposal.body))
        instances = tuple(epoch.instances)
        self._instances = instances
        self.slot = Slot(
            instances,
            me,
            rotation=int.from_bytes(self.decision[:4], "big") % len(instances),
            admissible=self.admissible,
        )
        self.late = False
        """The deadline has passed."""
        self._me = me
        self._pace = pace
        self._deadline_ns = deadline_ns
        self._watch = Watch()
        self._heard: set[str] = set()
        """Other instances that have taken a step."""
        self._others_wait = False
        """One of them has timed out."""
        self._view = 0
        self._view_ends_ns: int | None = None
        self._own_timeout: bytes | None = None
        self._ask_ns: int | None = None
        self._asked = 0
        self._announce_ns: int | None = None
        self._looking = False
        self.hasty = False
        """A leader's proposal came after this instance had timed out of its view: it was slow, not dead."""
        self._wants_ballots = False
        """It is this instance's turn to announce, and it lacks the ballots for what was committed."""

    # --- What may be voted for ----------------------------------------------------------------

    @property
    def outcome(self) -> bytes | None:
        """The value that this instance proposes on its own knowledge."""
        if (certificate := self.tally.certificate) is not None:
            return decide_value(self.decision, ROUND, certificate.choice)
        return close_value(self.decision, ROUND) if self.late or self.tally.impossible else None

    def admissible(self, value: bytes) -> bool:
        """Tell whether this instance may vote for a value on its own knowledge."""
        if self.tally.certificates:
            return self._certificate_of(value) is not None
        return value == self.outcome

    def _certificate_of(self, value: bytes) -> BallotCert | None:
        for certificate in self.tally.certificates.values():
            if decide_value(self.decision, ROUND, certificate.choice) == value:
                return certificate
        return None

    # --- In -----------------------------------------------------------------------------------

    def ballot(self, received: Received, now_ns: int) -> list[Effect]:
        """Count a ballot.

        Raises:
            TocsinError: see :meth:`Tally.add`.
        """
        proof = self.tally.add(received)
        return ([] if proof is None else [Accuse(proof)]) + self.advance(now_ns)

    def step(self, voted: Voted, now_ns: int) -> list[Effect]:
        """Take an instance's step.

        Raises:
            UntrustedError: ``not_the_leader``.
        """
        effects = self._see([voted, *voted.votes])
        sender, timed_out = str(voted.sender), voted.vote.step is Step.TIMEOUT
        if sender != self._me:
            self._heard.add(sender)
            self._others_wait |= timed_out
            if timed_out and self.slot.commit is not None:
                effects.append(Show(self.decision, sender, self.proposal, (), self.slot.commit))
        elif timed_out:
            self._own_timeout = voted.data
        if voted.vote.step is Step.PROPOSE and self.slot.has_left(voted.vote.view):
            self.hasty = True
        casts = self.slot.receive(voted.received())
        return effects + self._votes(casts) + self.advance(now_ns)

    def settle(self, votes: Sequence[Voted], now_ns: int) -> list[Effect]:
        """Take a commit as a whole: Q VOTE2, verified, of distinct instances for one value in one view."""
        first = votes[0].vote
        if first.value is None:
            return []
        effects = self._see(votes)
        self._heard |= {str(voted.sender) for voted in votes} - {self._me}
        self.slot.settle(Commit(first.value, first.view, {str(v.sender): v.data for v in votes}))
        return effects + self.advance(now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        """Look at the clock."""
        if now_ns >= self._deadline_ns:
            self.late = True
        effects: list[Effect] = []
        open_still = self.slot.commit is None
        if open_still and self._view_ends_ns is not None and now_ns >= self._view_ends_ns:
            casts = self.slot.expire()
            effects += self._votes(casts)
            self._view_ends_ns = now_ns + self._pace.view_ns(self.slot.view)
            if not casts and self._own_timeout is not None:
                effects.append(SendAgain(self.decision, self._own_timeout))
                if not self._looking:
                    # Nobody goes on with it: it may be over, and those that knew its commit have restarted since.
                    self._looking = True
                    effects.append(LookUp(self.decision))
        return effects + self._asks(now_ns) + self.advance(now_ns)

    def restore(self, ballots: Iterable[Received], own: Sequence[Voted], now_ns: int) -> list[Effect]:
        """Go on where a former process stopped: its steps, in the order in which it took them, are sent again."""
        self.late = True
        for received in ballots:
            self.tally.add(received)
        for voted in own:
            self.slot.restore(voted.received())
            if voted.vote.step is Step.TIMEOUT:
                self._own_timeout = voted.data
        self._looking = True
        again = [SendAgain(self.decision, voted.data) for voted in own]
        return [LookUp(self.decision), *again, *self.advance(now_ns)]

    def step_in(self, now_ns: int) -> list[Effect]:
        """Announce: nobody has. Without the ballots for what was committed, ask for them and look again later."""
        self._looking = False
        if self.slot.commit is None:
            return []
        end = self._end()
        if end is None:
            self._wants_ballots = True
            self._announce_ns = now_ns + self._pace.step_in_ns
            return []
        return [end]

    def show(self, instance: str) -> Show:
        """Return what another instance that asks is to be shown."""
        return Show(self.decision, instance, self.proposal, self.tally.to_show(), self.slot.commit)

    def advance(self, now_ns: int) -> list[Effect]:
        """Return what follows from what is known."""
        casts = self.slot.advance()
        if self.slot.commit is None:
            casts += self.slot.propose(self.outcome)
        self._watch_view(now_ns)
        return self._votes(casts) + self._conclude(now_ns)

    # --- Inside -------------------------------------------------------------------------------

    def _see(self, votes: Sequence[Voted]) -> list[Effect]:
        proofs = (self._watch.see(str(one.sender), one.vote, one.data) for one in votes)
        return [Accuse(proof) for proof in proofs if proof is not None and proof.accused != self._me]

    def _watch_view(self, now_ns: int) -> None:
        """Start the view's timer when there is something to propose."""
        if self._view != self.slot.view:
            self._view, self._view_ends_ns = self.slot.view, None
        if self._view_ends_ns is None and len(self._instances) > 1 and self._something():
            self._view_ends_ns = now_ns + self._pace.view_ns(self._view)

    def _something(self) -> bool:
        known = self.outcome is not None or self.slot.high is not None
        return known or len(self._heard) > self.epoch.instance_faults

    def _asks(self, now_ns: int) -> list[Effect]:
        if not self._lacks_ballots():
            self._ask_ns, self._asked = None, 0
        elif self._ask_ns is None:
            self._ask_ns = now_ns + self._pace.ask_after_ns
        elif now_ns >= self._ask_ns and self._heard:
            whom = sorted(self._heard)[self._asked % len(self._heard)]
            self._asked += 1
            self._ask_ns = now_ns + (self._pace.ask_after_ns << min(self._asked, 6))
            return [Ask(self.decision, whom, proposal=False)]
        return []

    def _lacks_ballots(self) -> bool:
        closes = close_value(self.decision, ROUND)
        if (commit := self.slot.commit) is not None:
            return self._wants_ballots and commit.value != closes and self._certificate_of(commit.value) is None
        if (value := self.slot.waiting) is not None:
            return value != closes
        return self._others_wait and self.outcome is None

    def _conclude(self, now_ns: int) -> list[Effect]:
        """Once committed: announce at once as the leader of that view, else look later whether it is announced."""
        commit = self.slot.commit
        if commit is None or self._looking:
            return []
        leader = self._instances.index(self.slot.leader(commit.view))
        rank = (self._instances.index(self._me) - leader) % len(self._instances)
        if rank == 0:
            if (end := self._end()) is not None:
                return [end]
            self._wants_ballots = True
        if self._announce_ns is None:
            self._announce_ns = now_ns + max(rank, 1) * self._pace.step_in_ns
        if now_ns < self._announce_ns:
            return []
        self._looking = True
        return [LookUp(self.decision)]

    def _end(self) -> End | None:
        commit = self.slot.commit
        if commit is None:
            return None
        closed = commit.value == close_value(self.decision, ROUND)
        certificate = None if closed else self._certificate_of(commit.value)
        if not closed and certificate is None:
            return None
        return End(
            decision=self.decision,
            epoch=self.epoch,
            committee=self.committee,
            proposal=self.proposal,
            outcome=Outcome.CLOSED if closed else Outcome.DECIDED,
            why=self._why(closed=closed),
            ballots=certificate,
            commit=commit,
            ballots_for=self.tally.leading,
            ballots_received=self.tally.ballots,
            missing=self.tally.missing,
        )

    def _why(self, *, closed: bool) -> str:
        tally, quorum = self.tally, self.committee.quorum
        if not closed:
            return f"{quorum.needed} of {quorum.participants} ballots for one option"
        so_far = f"{tally.leading} of the {quorum.needed} ballots needed, from {tally.ballots} participants"
        if tally.impossible:
            return f"no option can reach its quorum any more: {so_far}"
        return f"no option reached its quorum before the deadline: {so_far}"

    def _votes(self, casts: Iterable[Cast]) -> list[Effect]:
        ballots = tuple(r for certificate in self.tally.certificates.values() for r in certificate.ballots)
        return [
            CastVote(vote_of(cast, self.epoch.digest, self.decision, ROUND), self.proposal, ballots, cast.high)
            for cast in casts
        ]
