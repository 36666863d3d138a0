"""One round of a decision at one instance: its ballots, its slot, and what the slot may commit.

1. q ballots for one option make a BallotCert. DECIDE of that option is then admissible here, and nothing else is.
2. Without one, and once the deadline has passed or no option can reach q:
   - before the last round NEXT(v_{r+1}), if this instance recomputes v_{r+1} from the very ballots that the leader
     counted (:mod:`tocsin.consensus.refinement`), all of which it must hold. It waits for n - f ballots or the
     deadline; a leader that counts fewer is only believed by who holds fewer, too.
   - in the last round CLOSE; or INSUFFICIENT, if the deadline has passed and fewer than q participants have a ballot
     here. CLOSE stays admissible then: another instance may have seen q.
3. A view's timer starts when there is something to propose: an admissible outcome, a QC1, or the steps of more
   than g others. It doubles from view to view up to a cap, and the own TIMEOUT is sent again in identical bytes
   while the view lasts. A single instance waits for nobody and has no timer.
4. Who lacks the ballots for what the leader proposes, or for what was committed, asks those that have spoken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tocsin.consensus.effects import Accuse, Ask, CastVote, Effect, SendAgain, Voted, vote_of
from tocsin.consensus.pace import Pace
from tocsin.consensus.refinement import Chosen, refine
from tocsin.consensus.slot import WINDOW, Cast, Commit, Slot
from tocsin.consensus.succession import Changes
from tocsin.consensus.tally import BallotCert, Received, Tally
from tocsin.consensus.watch import Watch
from tocsin.contracts.decisions import MAX_VALUES, Counted, Option, Outcome, Proposal, Scope, Step
from tocsin.contracts.proposers import may_command
from tocsin.evidence.committee import Committee
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence
from tocsin.evidence.rounds import Opening


@dataclass(slots=True)
class _Claim:
    """From which ballots a leader says that it has computed what it proposes."""

    value: bytes
    counted: Counted
    seats: int = 0
    """So many seats have been looked at: their ballots are held here."""
    chosen: list[Chosen] = field(default_factory=list)
    refused: bool = False


class Round:
    """A round that is open, or committed."""

    def __init__(
        self,
        me: str,
        epoch: InstalledEpoch,
        committee: Committee,
        proposal: Evidence[Proposal],
        opening: Opening,
        *,
        deadline_ns: int,
        pace: Pace,
        changes: Changes | None = None,
    ) -> None:
        self._changes = changes or Changes()
        self.opening = opening
        self.question = opening.question
        self.last = self.question.round >= proposal.body.rounds
        self.tally = Tally(epoch, committee, self.question)
        instances = tuple(epoch.instances)
        self.slot = Slot(
            instances,
            me,
            rotation=(int.from_bytes(self.question.decision[:4], "big") + self.question.round - 1)
            % len(instances),
            admissible=self.admissible,
        )
        self.late = False
        """The deadline has passed."""
        self.hasty = False
        """A leader's proposal came after this instance had timed out of its view: it was slow, not dead."""
        self.heard: set[str] = set()
        """Other instances that have taken a step."""
        self.wants_ballots = False
        """It is this instance's turn to announce, and it lacks the ballots for what was committed."""
        self.following: dict[bytes, tuple[Option, ...]] = {}
        """v_{r+1} by NEXT: recomputed here, certified, or committed."""
        self._me = me
        self._epoch = epoch
        self._committee = committee
        self._seats = tuple(committee.seats)
        self._proposal = proposal
        self._pace = pace
        self._deadline_ns = deadline_ns
        self._watch = Watch()
        self._claims: dict[int, _Claim] = {}
        """By view; those of views near the current one."""
        self._counted: dict[bytes, Counted] = {}
        """From which ballots this instance has computed what it proposes."""
        self._decides = {self.question.decide(index): index for index in range(len(self.question.options))}
        self._closes = {self.question.close, self.question.insufficient} if self.last else set()
        self._settled = False
        self._settled_ns: int | None = None
        self._others_wait = False
        """One of them has timed out."""
        self._view = 0
        self._view_ends_ns: int | None = None
        self._own_timeout: bytes | None = None
        self._ask_ns: int | None = None
        self._asked = 0

    # --- What may be voted for ----------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether the counting may end without a decision, for all that this instance knows."""
        return not self._free and (self.late or self._vain)

    @property
    def ready(self) -> bool:
        """Whether this instance would propose something."""
        return bool(self._free) or self.late or (self._vain and self._settled)

    @property
    def _free(self) -> list[BallotCert]:
        """The ballot certificates, but for one that makes an epoch which may not come beside another.

        See :mod:`tocsin.consensus.succession`.
        """
        where = self.question.decision, self._proposal.body, self._epoch
        return [one for one in self.tally.certificates.values() if not self._changes.bars(*where, one.option)]

    @property
    def _vain(self) -> bool:
        """Whether no option can have a quorum; and, where another round follows, there is enough to refine from."""
        return self.tally.impossible and (self.last or len(self.tally.single) >= self._enough)

    @property
    def outcome(self) -> bytes | None:
        """The value that this instance proposes on its own knowledge."""
        if free := self._free:
            return self.question.decide(free[0].option)
        if not self.ready:
            return None
        if self.last:
            return self.question.insufficient if self._too_few else self.question.close
        return self._refined()

    def admissible(self, value: bytes) -> bool:
        """Tell whether this instance may vote for a value on its own knowledge."""
        if free := self._free:
            return self._certificate_of(value) in free
        if not self.closing:
            return False
        if self.last:
            return value == self.question.close or (value == self.question.insufficient and self._too_few)
        return value in self.following or self._recomputes(value)

    def decided(self) -> BallotCert | None:
        """Return the ballots for what was committed, where that is an option and they are known."""
        return None if self.slot.commit is None else self._certificate_of(self.slot.commit.value)

    def ended(self) -> Outcome | None:
        """Return how the decision ends with this round; None where another follows, or nothing is committed."""
        value = None if self.slot.commit is None else self.slot.commit.value
        if value in self._decides:
            return Outcome.DECIDED
        if value not in self._closes:
            return None
        return Outcome.CLOSED if value == self.question.close else Outcome.INSUFFICIENT

    def next_options(self) -> tuple[Option, ...] | None:
        """Return v_{r+1}, where a next round is committed and its options are known."""
        return None if self.slot.commit is None else self.following.get(self.slot.commit.value)

    def learn(self, options: tuple[Option, ...]) -> None:
        """Take what another instance says v_{r+1} is, if that was committed or certified: the value has its digest."""
        certified = {cert.value for cert in (self.slot.commit, self.slot.high) if cert is not None}
        if (value := self.question.next(options)) in certified:
            self.following[value] = options

    @property
    def known_next(self) -> tuple[Option, ...]:
        """v_{r+1} of what was committed or certified, as far as it is known here: for who lacks it."""
        certs = (self.slot.commit, self.slot.high)
        known = (self.following.get(cert.value, ()) for cert in certs if cert is not None)
        return next(filter(None, known), ())

    @property
    def _too_few(self) -> bool:
        return self.late and self.tally.ballots < self._committee.quorum.needed

    @property
    def _enough(self) -> int:
        """N - f: so many ballots refine."""
        return self._committee.quorum.participants - self._committee.quorum.tolerated_faults

    def _certificate_of(self, value: bytes) -> BallotCert | None:
        option = self._decides.get(value)
        certificates = self.tally.certificates.values()
        return next((certificate for certificate in certificates if certificate.option == option), None)

    def _refined(self) -> bytes:
        """Compute NEXT from the ballots that are held here; those who have cast two are left out."""
        single = self.tally.single
        known = {who: received.ballot.value for who, received in single.items()}
        by_number: dict[bytes, int] = {}
        for value in known.values():
            by_number[value] = by_number.get(value, 0) + 1
        values = sorted(sorted(by_number, key=lambda value: (-by_number[value], value))[:MAX_VALUES])
        places = {value: place for place, value in enumerate(values, start=1)}
        seats = bytes(places.get(known.get(who, b""), 0) for who in self._seats)
        chosen = [_chosen(single[who]) for who, place in zip(self._seats, seats, strict=True) if place]
        options = self._refine(chosen)
        value = self.question.next(options)
        self.following[value] = options
        self._counted[value] = Counted(values=tuple(values), seats=seats)
        return value

    def _refine(self, chosen: Sequence[Chosen]) -> tuple[Option, ...]:
        commands = self._proposal.body.scope == Scope() and may_command(self._proposal.sender)
        return refine(self.question.options, chosen, self._committee.quorum, commands=commands)

    def _recomputes(self, value: bytes) -> bool:
        return any(claim.value == value and self._checks(claim) for claim in self._claims.values())

    def _checks(self, claim: _Claim) -> bool:
        """Recompute what a leader proposes from the ballots that it names, once all of them are held here."""
        counted = claim.counted
        if claim.refused or len(counted.seats) != len(self._seats):
            return False
        for who, place in islice(zip(self._seats, counted.seats, strict=True), claim.seats, None):
            if place:
                named = counted.values[place - 1] if place <= len(counted.values) else b""
                if (received := self.tally.find(who, named)) is None:
                    return False
                claim.chosen.append(_chosen(received))
            claim.seats += 1
        few = len(claim.chosen) < self._enough <= len(self.tally.single)
        options = self._refine(claim.chosen)
        claim.refused = few or self.question.next(options) != claim.value
        if not claim.refused:
            self.following[claim.value] = options
        return not claim.refused

    # --- In -----------------------------------------------------------------------------------

    def ballot(self, received: Received) -> list[Effect]:
        """Count a ballot; :meth:`advance` follows.

        Raises:
            TocsinError: see :meth:`Tally.add`.
        """
        proof = self.tally.add(received)
        return [] if proof is None else [Accuse(proof)]

    def step(self, voted: Voted) -> list[Effect]:
        """Take an instance's step of this round; :meth:`advance` follows.

        Raises:
            UntrustedError: ``not_the_leader``.
        """
        effects = self._see([voted, *voted.votes])
        sender, vote = str(voted.sender), voted.vote
        if sender != self._me:
            self.heard.add(sender)
            self._others_wait |= vote.step is Step.TIMEOUT
        elif vote.step is Step.TIMEOUT:
            self._own_timeout = voted.data
        if vote.step is Step.PROPOSE:
            self.hasty |= self.slot.has_left(vote.view)
            self._claimed(voted)
        return effects + self._votes(self.slot.receive(voted.received()))

    def settle(self, votes: Sequence[Voted]) -> list[Effect]:
        """Take a commit as a whole: Q VOTE2, verified, of distinct instances for one value in one view."""
        first = votes[0].vote
        if first.value is None:
            return []
        self.heard |= {str(voted.sender) for voted in votes} - {self._me}
        self.slot.settle(Commit(first.value, first.view, {str(v.sender): v.data for v in votes}))
        return self._see(votes)

    def tick(self, now_ns: int) -> list[Effect]:
        """Look at the clock; :meth:`advance` follows."""
        if now_ns >= self._deadline_ns:
            self.late = True
        effects: list[Effect] = []
        open_still = self.slot.commit is None
        if open_still and self._view_ends_ns is not None and now_ns >= self._view_ends_ns:
            casts = self.slot.expire()
            effects += self._votes(casts)
            self._view_ends_ns = now_ns + self._pace.view_ns(self.slot.view)
            if not casts and self._own_timeout is not None:
                effects.append(SendAgain(self.question.decision, self._own_timeout))
        return effects + self._asks(now_ns)

    def restore(self, ballots: Iterable[Received], own: Sequence[Voted]) -> list[Effect]:
        """Go on where a former process stopped: its steps, in the order in which it took them, are sent again."""
        # Who has cast a step had something to propose; who has none may wait for ballots once more.
        self.late = bool(own)
        for received in ballots:
            self.tally.add(received)
        for voted in own:
            if voted.vote.step is Step.PROPOSE:
                self._claimed(voted)
            self.slot.restore(voted.received())
            self._changes.voted(self.question.decision, self._proposal.body, voted.vote.value)
            if voted.vote.step is Step.TIMEOUT:
                self._own_timeout = voted.data
        return [SendAgain(self.question.decision, voted.data) for voted in own]

    def advance(self, now_ns: int) -> list[Effect]:
        """Return what follows from what is known."""
        self._settle(now_ns)
        casts = self.slot.advance()
        if self.slot.commit is None and self.slot.to_propose:
            casts += self.slot.propose(self.outcome if self.slot.high is None else None)
        self._watch_view(now_ns)
        return self._votes(casts)

    # --- Inside -------------------------------------------------------------------------------

    def _claimed(self, voted: Voted) -> None:
        vote = voted.vote
        leads = str(voted.sender) == self.slot.leader(vote.view)
        if vote.counted is None or vote.value is None or not leads or abs(vote.view - self.slot.view) > WINDOW:
            return
        for past in [view for view in self._claims if view < self.slot.view - WINDOW]:
            del self._claims[past]
        self._claims.setdefault(vote.view, _Claim(vote.value, vote.counted))

    def _see(self, votes: Sequence[Voted]) -> list[Effect]:
        proofs = (self._watch.see(str(one.sender), one.vote, one.data) for one in votes)
        return [Accuse(proof) for proof in proofs if proof is not None and proof.accused != self._me]

    def _settle(self, now_ns: int) -> None:
        """Give ballots that are under way a moment before the options are refined: the more count, the better."""
        if not self._vain:
            return
        if self._settled_ns is None:
            self._settled_ns = now_ns + self._pace.settle_ns
        everyone = self.tally.ballots == self._committee.quorum.participants
        self._settled |= self.last or everyone or now_ns >= self._settled_ns

    def _watch_view(self, now_ns: int) -> None:
        """Start the view's timer when there is something to propose."""
        if self._view != self.slot.view:
            self._view, self._view_ends_ns = self.slot.view, None
        if self._view_ends_ns is None and len(self._epoch.instances) > 1 and self._something():
            self._view_ends_ns = now_ns + self._pace.view_ns(self._view)

    def _something(self) -> bool:
        return self.ready or self.slot.high is not None or len(self.heard) > self._epoch.instance_faults

    def _asks(self, now_ns: int) -> list[Effect]:
        if not self._lacks():
            self._ask_ns, self._asked = None, 0
        elif self._ask_ns is None:
            self._ask_ns = now_ns + self._pace.ask_after_ns
        elif now_ns >= self._ask_ns and self.heard:
            whom = sorted(self.heard)[self._asked % len(self.heard)]
            self._asked += 1
            self._ask_ns = now_ns + (self._pace.ask_after_ns << min(self._asked, 6))
            return [Ask(self.question.decision, whom, proposal=False)]
        return []

    def _lacks(self) -> bool:
        """Tell whether this instance lacks ballots that others may have, or the options that were committed."""
        if (commit := self.slot.commit) is not None:
            if self.ended() is Outcome.DECIDED:
                return self.wants_ballots and self.decided() is None
            return self.ended() is None and commit.value not in self.following
        if (value := self.slot.waiting) is not None:
            return value not in self._closes
        # Also once the view is over: the next leader may have counted the same ballots.
        if self.closing and any(not c.refused and c.value not in self.following for c in self._claims.values()):
            return True
        few = self.closing and not self.last and len(self.tally.single) < self._enough
        return self._others_wait and (few or not self.ready)

    def _votes(self, casts: Iterable[Cast]) -> list[Effect]:
        ballots = tuple(r for certificate in self.tally.certificates.values() for r in certificate.ballots)
        effects: list[Effect] = []
        for cast in casts:
            self._changes.voted(self.question.decision, self._proposal.body, cast.value)
            counted = (
                self._counted.get(cast.value or b"") if cast.step is Step.PROPOSE and not cast.high else None
            )
            following = self.following.get(cast.value or b"", ())
            vote = vote_of(cast, self._epoch.digest, self.question, counted)
            effects.append(
                CastVote(vote, self._epoch, self._proposal, self.opening, ballots, cast.high, following)
            )
        return effects


def _chosen(received: Received) -> Chosen:
    ballot = received.ballot
    return ballot.option if ballot.counter is None else ballot.counter
