"""One decision at one instance, from its opening to its announcement: round after round.

Rules (consensus.md, "A round"; of a single round in :mod:`tocsin.consensus.round`):

1. Each round's slot commits one thing. On NEXT this instance goes on to round r + 1, with a tally and a slot of its own
   and the options that were committed. It never goes on without a commit, and never back.
2. It keeps that the round has begun before anything of it leaves. The leader of the committed view tells the agents;
   the others tell them again, each a while after the one before it and then ever more rarely, while the round is
   open and ballots are missing.
3. Ballots and steps of the round to come are held, a few of each sender. Those of a round that is over have no
   effect; an instance that is still in one is shown how this round began. One that hears more than g others in a later
   round asks. Whoever brings the commit of any later round's predecessor brings it there at once.
4. What ends the decision is announced by the leader of the committed view. The others look, each a while after the one
   before it, whether that has happened, and step in if not. While a view does not end they look, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tocsin.consensus.effects import Ask, Effect, End, LookUp, Opened, SendAgain, Show, Voted, Want
from tocsin.consensus.pace import NS_PER_MS, Pace
from tocsin.consensus.round import Round
from tocsin.consensus.slot import Slot
from tocsin.consensus.succession import Changes
from tocsin.consensus.tally import Received, Tally
from tocsin.consensus.wanting import Wanting
from tocsin.contracts.decisions import Option, Outcome, Proposal, Step
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.evidence.choices import Question
from tocsin.evidence.committee import committee_of
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence
from tocsin.evidence.rounds import Opening

HELD_BALLOTS = 2
"""Of one participant for the round to come: two are the proof of an equivocation."""
HELD_STEPS = 8
"""Of one instance for the round to come."""
MAX_DOUBLINGS = 6


class Deciding:
    """A decision that is open, or committed and not yet known to be announced."""

    def __init__(
        self,
        me: str,
        epoch: InstalledEpoch,
        proposal: Evidence[Proposal],
        *,
        deadline_ns: int,
        pace: Pace,
        changes: Changes | None = None,
    ) -> None:
        self._changes = changes or Changes()
        self.epoch = epoch
        self.committee = committee_of(proposal.body, epoch)
        self.proposal = proposal
        self.decision = proposal.leaf
        self._was_hasty = False
        self._me = me
        self._pace = pace
        self._instances = tuple(epoch.instances)
        self.round = self._make_round(Opening(Question.first(self.decision, proposal.body)), deadline_ns)
        self._early_ballots: dict[str, list[Received]] = {}
        self._early_steps: dict[str, list[Voted]] = {}
        """Of the round to come, by sender."""
        self._ahead: dict[str, int] = {}
        """The highest round after this one that each other instance was heard in."""
        self._ask_ns: int | None = None
        self._asked = 0
        self._tell_ns = 0
        self._told = 0
        self._announce_ns: int | None = None
        self._looking = False
        self._looks_for_end = False
        """Whether the last look-up began once the decision was over."""
        self._wanting = Wanting(pace)

    @property
    def slot(self) -> Slot:
        """The current round's slot."""
        return self.round.slot

    @property
    def tally(self) -> Tally:
        """The current round's ballots."""
        return self.round.tally

    @property
    def hasty(self) -> bool:
        """Whether in some round a leader was slow and taken for dead."""
        return self._was_hasty or self.round.hasty

    @property
    def over(self) -> bool:
        """Whether what ends the decision is committed."""
        return self.round.ended() is not None

    # --- In -----------------------------------------------------------------------------------

    def ballot(self, received: Received, now_ns: int) -> list[Effect]:
        """Count a ballot; hold one of the round to come; let one of a round that is over be.

        Raises:
            TocsinError: ``wrong_round``: of a round that is further ahead; or see :meth:`Tally.add`.
        """
        number, sender = received.ballot.round, str(received.sender)
        current = self.round.question.round
        if number == current:
            self._wanting.came(now_ns)
            return self.round.ballot(received) + self.advance(now_ns)
        if number < current:
            return []
        if number > current + 1 or self.round.last:
            raise InvalidInputError(f"a ballot of round {number} in round {current}", reason="wrong_round")
        self.committee.seat(received.sender, received.key_id)
        held = self._early_ballots.setdefault(sender, [])
        if len(held) < HELD_BALLOTS and all(one.ballot.value != received.ballot.value for one in held):
            held.append(received)
        return []

    def step(self, voted: Voted, now_ns: int) -> list[Effect]:
        """Take an instance's step; show one that is in a round before this one what it lacks.

        Raises:
            InvalidInputError: ``wrong_round``: the proposal allows no such round.
            UntrustedError: ``not_the_leader``.
        """
        number, sender = voted.vote.round, str(voted.sender)
        current = self.round.question.round
        if number > self.proposal.body.rounds:
            raise InvalidInputError(f"a step of round {number}", reason="wrong_round")
        if number == current:
            behind = voted.vote.step is Step.TIMEOUT and self.slot.commit is not None and sender != self._me
            effects: list[Effect] = [self.show(sender, ballots=False)] if behind else []
            return effects + self.round.step(voted) + self.advance(now_ns)
        if number < current:
            return [] if sender == self._me else [self.show(sender, ballots=False)]
        self._ahead[sender] = max(number, self._ahead.get(sender, 0))
        if number == current + 1:
            held = self._early_steps.setdefault(sender, [])
            if len(held) < HELD_STEPS:
                held.append(voted)
        return []

    def settle(self, votes: Sequence[Voted], now_ns: int) -> list[Effect]:
        """Take the commit of this round as a whole: Q VOTE2, verified, of distinct instances on one value and view."""
        if votes[0].vote.round != self.round.question.round:
            return []
        return self.round.settle(votes) + self.advance(now_ns)

    def opened(self, opening: Opening, now_ns: int) -> list[Effect]:
        """Go on to a later round: the commit that began it was verified."""
        if opening.question.round <= self.round.question.round:
            return []
        return self._begin(opening, now_ns, rank=len(self._instances)) + self.advance(now_ns)

    def learn(self, options: tuple[Option, ...], now_ns: int) -> list[Effect]:
        """Take what another instance says the next round's options are; the commit's value says whether it is so."""
        self.round.learn(options)
        return self.advance(now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        """Look at the clock."""
        effects = self.round.tick(now_ns)
        if not self._looking and any(isinstance(effect, SendAgain) for effect in effects):
            # Nobody goes on with it: it may be over, and those that knew its commit have restarted since.
            effects.append(self._look_up())
        return effects + self._ask_ahead(now_ns) + self._tell_again(now_ns) + self.advance(now_ns)

    def wants(self, now_ns: int, *, quiet: bool) -> Want | None:
        """Ask for ballots, if the round waits for them and has had none for a while; see :class:`Wanting`."""
        if self.slot.commit is not None or self.round.ready or not self._wanting.due(now_ns, quiet=quiet):
            return None
        missing, number = frozenset(self.tally.missing), self.round.question.round
        return Want(self.decision, self.epoch, self.proposal, number, missing) if missing else None

    def restore(
        self,
        opening: Opening | None,
        following: Iterable[tuple[int, tuple[Option, ...]]],
        ballots: Iterable[Received],
        own: Sequence[Voted],
        now_ns: int,
    ) -> list[Effect]:
        """Go on where a former process stopped, in the last round that it had begun.

        Args:
            opening: of that round, if it is not the first.
            following: rounds, and the options that it has voted there to go on with.
            ballots: those that it kept, of any round.
            own: its steps, in the order in which it took them, of any round.
            now_ns: the time.
        """
        if opening is not None:
            self.round = self._make_round(opening, now_ns + self._deadline_ns)
            self._tell_ns = now_ns + len(self._instances) * self._pace.step_in_ns
        number = self.round.question.round
        for where, options in following:
            if where == number:
                self.round.following[self.round.question.next(options)] = options
        again = self.round.restore(
            [one for one in ballots if one.ballot.round == number],
            [one for one in own if one.vote.round == number],
        )
        return [self._look_up(), *again, *self.advance(now_ns)]

    def step_in(self, now_ns: int) -> list[Effect]:
        """Announce: nobody has. Without the ballots for what was committed, ask for them and look again later.

        What was looked up before the decision was over says nothing of its announcement: each waits for its turn.
        """
        self._looking = False
        if not self.over:
            return []
        if not self._looks_for_end:
            return self._conclude(now_ns)
        end = self._end()
        if end is None:
            self.round.wants_ballots = True
            self._announce_ns = now_ns + self._pace.step_in_ns
            return []
        return [end]

    def advance(self, now_ns: int) -> list[Effect]:
        """Return what follows from what is known."""
        effects = self.round.advance(now_ns)
        while (commit := self.slot.commit) is not None and (options := self.round.next_options()) is not None:
            question = Question(self.decision, self.round.question.round + 1, options)
            before = tuple(data for _, data in sorted(commit.votes.items()))
            rank = self._rank(self.slot.leader(commit.view))
            effects += self._begin(Opening(question, before), now_ns, rank=rank)
            effects += self.round.advance(now_ns)
        return effects + self._conclude(now_ns)

    # --- Rounds -------------------------------------------------------------------------------

    @property
    def _deadline_ns(self) -> int:
        return self.proposal.body.deadline_ms * NS_PER_MS

    def _make_round(self, opening: Opening, deadline_ns: int) -> Round:
        return Round(
            self._me,
            self.epoch,
            self.committee,
            self.proposal,
            opening,
            deadline_ns=deadline_ns,
            pace=self._pace,
            changes=self._changes,
        )

    def _begin(self, opening: Opening, now_ns: int, *, rank: int) -> list[Effect]:
        """Begin a round, and take what was held for it."""
        passed, number = self.round, opening.question.round
        self._was_hasty |= passed.hasty
        self.round = self._make_round(opening, now_ns + self._deadline_ns)
        ballots = [one for held in self._early_ballots.values() for one in held if one.ballot.round == number]
        steps = [one for held in self._early_steps.values() for one in held if one.vote.round == number]
        self._early_ballots, self._early_steps = {}, {}
        self._ahead = {who: ahead for who, ahead in self._ahead.items() if ahead > number}
        self._ask_ns, self._asked = None, 0
        self._told = 0
        self._wanting = Wanting(self._pace)
        self._tell_ns = now_ns + (rank or len(self._instances)) * self._pace.step_in_ns
        effects: list[Effect] = [Opened(self.epoch, self.proposal, opening, tell=rank == 0, begins=True)]
        for received in ballots:
            try:
                effects += self.round.ballot(received)
            except TocsinError:
                continue  # no choice of this round: not known when it was held
        for voted in steps:
            try:
                effects += self.round.step(voted)
            except TocsinError:
                continue
        return effects

    def _rank(self, leader: str) -> int:
        """Return how many instances act before this one, of which the first is a leader."""
        return (self._instances.index(self._me) - self._instances.index(leader)) % len(self._instances)

    def _tell_again(self, now_ns: int) -> list[Effect]:
        """Tell agents of the round once more: what is sent to them may be lost."""
        everyone = self.tally.ballots == self.committee.quorum.participants
        settled = self.round.ready or everyone or self.slot.commit is not None
        if self.round.question.round == 1 or settled or now_ns < self._tell_ns:
            return []
        self._tell_ns = now_ns + (
            len(self._instances) * self._pace.step_in_ns << min(self._told, MAX_DOUBLINGS)
        )
        self._told += 1
        return [Opened(self.epoch, self.proposal, self.round.opening, tell=True, begins=False)]

    def _ask_ahead(self, now_ns: int) -> list[Effect]:
        """Ask, if an honest instance must be in a later round."""
        if len(self._ahead) <= self.epoch.instance_faults:
            return []
        if self._ask_ns is None:
            self._ask_ns = now_ns + self._pace.ask_after_ns
        if now_ns < self._ask_ns:
            return []
        whom = sorted(self._ahead)[self._asked % len(self._ahead)]
        self._asked += 1
        self._ask_ns = now_ns + (self._pace.ask_after_ns << min(self._asked, MAX_DOUBLINGS))
        return [Ask(self.decision, whom, proposal=False)]

    def show(self, instance: str, *, ballots: bool) -> Show:
        """Return what another instance is to be shown; the ballots, if it has asked."""
        return Show(
            self.decision,
            instance,
            self.epoch,
            self.proposal,
            self.round.opening,
            self.tally.to_show() if ballots else (),
            self.slot.commit,
            self.round.known_next,
        )

    # --- The end ------------------------------------------------------------------------------

    def _conclude(self, now_ns: int) -> list[Effect]:
        """Once it is over: announce at once as the leader of that view, else look later whether it is announced."""
        commit = self.slot.commit
        if commit is None or not self.over:
            return []
        rank = self._rank(self.slot.leader(commit.view))
        if self._announce_ns is None:
            self._announce_ns = now_ns + max(rank, 1) * self._pace.step_in_ns
        if self._looking:
            return []
        if rank == 0:
            if (end := self._end()) is not None:
                return [end]
            self.round.wants_ballots = True
        if now_ns < self._announce_ns:
            return []
        return [self._look_up()]

    def _look_up(self) -> LookUp:
        """Ask whether the decision is announced."""
        self._looking, self._looks_for_end = True, self.over
        return LookUp(self.decision)

    def _end(self) -> End | None:
        commit, outcome, certificate = self.slot.commit, self.round.ended(), self.round.decided()
        if commit is None or outcome is None or (outcome is Outcome.DECIDED and certificate is None):
            return None
        return End(
            decision=self.decision,
            epoch=self.epoch,
            committee=self.committee,
            proposal=self.proposal,
            opening=self.round.opening,
            outcome=outcome,
            why=self._why(outcome),
            ballots=certificate,
            commit=commit,
            ballots_for=self.tally.leading,
            ballots_received=self.tally.ballots,
            missing=self.tally.missing,
        )

    def _why(self, outcome: Outcome) -> str:
        tally, quorum, number = self.tally, self.committee.quorum, self.round.question.round
        where = "" if self.proposal.body.rounds == 1 else f" in round {number} of {self.proposal.body.rounds}"
        if outcome is Outcome.DECIDED:
            return f"{quorum.needed} of {quorum.participants} ballots for one option{where}"
        if outcome is Outcome.INSUFFICIENT:
            return f"{tally.ballots} of the {quorum.needed} participants needed had balloted before the deadline{where}"
        so_far = (
            f"{tally.leading} of the {quorum.needed} ballots needed, from {tally.ballots} participants{where}"
        )
        if tally.impossible:
            return f"no option can reach its quorum any more: {so_far}"
        return f"no option reached its quorum before the deadline: {so_far}"
