"""The protocol of one consensus instance: proposals, ballots, steps and the time in, effects out.

Sans I/O: no clock, no broker, no disk, no randomness. The same inputs in the same order give the same effects.
This module opens decisions, and hands each message to the one that it belongs to:

* A proposal opens its decision if it names the current epoch, or for a moment the one before; its sender is an admin
  with a seat and its key there; and it is of now. A decision opens once; there are bounds on how many are open. One
  that another instance has shown because it was asked opens in any epoch that was installed here.
* Ballots and steps that come before their proposal are held, a few per sender, and counted when it opens. If steps
  wait for long, one of their senders is asked for the proposal.
* What is decided and announced is remembered while its proposal could come again, with the commit: who is late and
  times out is shown it.

How a decision goes on is in :mod:`tocsin.consensus.deciding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tocsin.consensus.deciding import Deciding
from tocsin.consensus.effects import Ask, Effect, End, Forget, Show, Voted
from tocsin.consensus.held import Held
from tocsin.consensus.pace import NS_PER_MS, Pace
from tocsin.consensus.succession import Changes
from tocsin.consensus.tally import Received
from tocsin.contracts.decisions import Option, Proposal
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.proposers import may_command
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import Evidence
from tocsin.evidence.rounds import Opening
from tocsin.evidence.succession import still_decides
from tocsin.evidence.verification import check_proposal

SKEW_NS = 30_000_000_000
"""How far a proposer's clock may differ (envelope.md, class live), and how long an early ballot is held."""
MAX_KNOWN_EPOCHS = 8
MAX_SHOWN = 1024
"""Announced decisions whose commit is kept, for those that are late."""
SHOW_AGAIN_NS = 200 * NS_PER_MS
WANTED_AT_ONCE = 8192
"""Ballots that are asked for before those of further decisions are: half of the line that they come by."""
MAX_STRETCH = 8
"""How many times longer than set the first view may become on a busy machine: 320 ms with 40. A hostile leader that is
slow on purpose costs no more than that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what others can make an instance hold."""

    open_decisions: int = 256
    open_per_proposer: int = 64
    """Of one that may command: an admin."""
    open_per_asker: int = 4
    """Of any other; together they have a half of all, so that there is always room for a command."""
    held_per_agent: int = 4
    held_per_instance: int = 64
    """Decisions for which steps of one instance may wait; 8 steps for each."""


@dataclass(slots=True)
class _Past:
    """A decision that is over and announced, or whose announcement is on its way."""

    until_ns: int
    show: Show | None = None
    """What those that are late are shown: the proposal, how the last round began, and the commit."""


class Protocol:
    """One instance's state."""

    def __init__(self, me: str, limits: Limits | None = None, pace: Pace | None = None) -> None:
        self.epoch: InstalledEpoch | None = None
        self._me = me
        self._limits = limits or Limits()
        self._pace = pace or Pace()
        self._known: dict[bytes, InstalledEpoch] = {}
        self._deciding: dict[bytes, Deciding] = {}
        self._past: dict[bytes, _Past] = {}
        self._ballots: Held[Received] = Held(
            decisions_each=self._limits.held_per_agent,
            messages_each=2,  # two are the proof of an equivocation; more prove no more
            kept_ns=SKEW_NS,
            key=lambda received: received.ballot.value,
        )
        self._steps: Held[Voted] = Held(
            decisions_each=self._limits.held_per_instance,
            messages_each=8,
            kept_ns=SKEW_NS,
            key=lambda voted: (voted.vote.round, voted.vote.step, voted.vote.view, voted.vote.value),
        )
        self._asked: dict[bytes, tuple[int, int]] = {}
        """Decisions whose proposals were asked for: how often, and when again."""
        self._shown: dict[tuple[bytes, str], int] = {}
        self._floor = -1
        self.changes = Changes()
        self._stretch = 1.0
        self._ballot_ns = 0
        """When the last ballot came, of any decision."""
        self._wanted_ns = 0
        """When agents were last asked for ballots, of any decision."""

    @property
    def open_decisions(self) -> int:
        """Decisions that are not committed yet."""
        return sum(not deciding.over for deciding in self._deciding.values())

    @property
    def busy(self) -> bool:
        """Whether timers run that a coarse clock would be late for."""
        return bool(self._deciding)

    def epoch_of(self, decision: bytes) -> InstalledEpoch | None:
        """Return the epoch that a decision is open in, or the current one."""
        deciding = self._deciding.get(decision)
        return self.epoch if deciding is None else deciding.epoch

    def known_epoch(self, digest: bytes) -> InstalledEpoch | None:
        """Return an epoch that was installed here."""
        return self._known.get(digest)

    def needs_ballots(self, decision: bytes) -> bool:
        """Tell whether another ballot can matter: not once a quorum is held, or the decision is over."""
        deciding = self._deciding.get(decision)
        return decision not in self._past if deciding is None else not deciding.tally.certificates

    def awaits(self, decision: bytes) -> bool:
        """Tell whether what another instance shows of a decision may be of use."""
        return decision in self._deciding or decision in self._asked

    def install(self, epoch: InstalledEpoch) -> bool:
        """Take a new epoch for the proposals to come; return False if it is the current one already.

        Decisions that are open go on in their own epoch.

        Raises:
            ConflictError: ``stale_epoch``: a lower number, or the same with other content.
            InvalidInputError: ``not_an_instance``.
        """
        current = self.epoch
        if current is not None and epoch.digest == current.digest:
            return False
        if epoch.epoch.number <= self._floor and not self._overrules(epoch):
            raise ConflictError(f"epoch {epoch.epoch.number} is not after {self._floor}", reason="stale_epoch")
        if self._me not in epoch.instances:
            raise InvalidInputError(f"{self._me} is no instance of this epoch", reason="not_an_instance")
        self.epoch = epoch
        self._floor = max(self._floor, epoch.epoch.number)
        self.changes.installed(epoch)
        self._known[epoch.digest] = epoch
        while len(self._known) > MAX_KNOWN_EPOCHS:
            del self._known[next(iter(self._known))]
        return True

    def _overrules(self, epoch: InstalledEpoch) -> bool:
        """Tell whether the root's own record comes in place of one of its number that was decided meanwhile."""
        current = self.epoch
        if current is None or current.is_checkpoint or not epoch.is_checkpoint:
            return False
        return epoch.epoch.number == current.epoch.number == self._floor

    def abstain_until_after(self, number: int) -> None:
        """Take no part in epochs up to this number: they were installed, and what was voted there is lost."""
        self._floor = max(self._floor, number)

    # --- In -----------------------------------------------------------------------------------

    def open(self, proposal: Evidence[Proposal], now_ns: int, *, shown: bool = False) -> list[Effect]:
        """Open the decision that a proposal asks for; one that was opened before is no change.

        Args:
            proposal: its signature was verified.
            now_ns: the time.
            shown: by an instance that was asked for it; it may then be of an epoch that was installed earlier.

        Raises:
            TocsinError: ``no_epoch``, ``wrong_epoch``, ``proposer_not_allowed``, ``not_a_participant``, ``wrong_key``,
                ``issued_in_future``, ``deadline_passed`` or ``too_many_decisions``.
        """
        decision = proposal.leaf
        if decision in self._deciding or decision in self._past:
            return []
        epoch = self._opens_in(proposal.body.epoch, now_ns, shown=shown)
        check_proposal(proposal, epoch)
        self._check_time(proposal, now_ns)
        self._check_room(proposal.sender)
        deadline_ns = now_ns + proposal.body.deadline_ms * NS_PER_MS
        deciding = self._begin(epoch, proposal, deadline_ns)
        effects: list[Effect] = []
        for received in self._ballots.pop(decision):
            try:
                effects += deciding.ballot(received, now_ns)
            except (InvalidInputError, UntrustedError):
                continue  # no option of this proposal, or of an epoch before: not known when it was held
        for voted in self._steps.pop(decision):
            try:
                effects += self._step(deciding, voted, now_ns)
            except (InvalidInputError, UntrustedError):
                continue
        return self._after(deciding, effects + deciding.advance(now_ns))

    def ballot(self, received: Received, now_ns: int) -> list[Effect]:
        """Count a ballot, or hold it until its proposal comes. After the decision it has no effect.

        Raises:
            TocsinError: ``no_epoch``, ``wrong_epoch``, ``wrong_round``, ``bad_choice``, ``not_a_participant``,
                ``wrong_key`` or ``too_many_held``.
        """
        decision = received.ballot.decision
        self._ballot_ns = now_ns
        if decision in self._past:
            return []
        deciding = self._deciding.get(decision)
        if deciding is not None:
            return self._after(deciding, deciding.ballot(received, now_ns))
        epoch = self._opens_in(received.ballot.epoch, now_ns)
        if received.ballot.epoch != epoch.digest:
            raise InvalidInputError("a message of another epoch", reason="wrong_epoch")
        epoch.seat(received.sender, received.key_id)
        self._ballots.add(decision, str(received.sender), received, now_ns)
        return []

    def signed(self, voted: Voted, now_ns: int) -> list[Effect]:
        """Take an instance's signed step, this one's own included.

        Raises:
            InvalidInputError: ``no_epoch``, ``wrong_epoch`` or ``wrong_round``.
            UntrustedError: ``not_an_instance``, ``wrong_key`` or ``not_the_leader``.
            ExhaustedError: ``too_many_held``.
        """
        decision = voted.vote.decision
        deciding = self._deciding.get(decision)
        if deciding is not None:
            effects = self._step(deciding, voted, now_ns)
            effects = [e for e in effects if not isinstance(e, Show) or self._may_show(e, now_ns)]
            return self._after(deciding, effects)
        if (past := self._past.get(decision)) is not None:
            if past.show is None or str(voted.sender) == self._me:
                return []
            show = replace(past.show, instance=str(voted.sender))
            return [show] if self._may_show(show, now_ns) else []
        epoch = self._known.get(voted.vote.epoch) or self._current(voted.vote.epoch)
        epoch.instance(voted.sender, voted.key_id)
        self._steps.add(decision, str(voted.sender), voted, now_ns)
        return []

    def settle(self, votes: Sequence[Voted], now_ns: int) -> list[Effect]:
        """Take a commit that another instance has shown; its Q VOTE2 have been verified."""
        deciding = self._deciding.get(votes[0].vote.decision)
        return [] if deciding is None else self._after(deciding, deciding.settle(votes, now_ns))

    def lacks_round(self, decision: bytes, round_number: int) -> bool:
        """Tell whether the commit that began this round would bring this instance on."""
        deciding = self._deciding.get(decision)
        return deciding is not None and deciding.round.question.round < round_number

    def proposal_of(self, decision: bytes) -> Evidence[Proposal] | None:
        """Return what an open decision is about."""
        deciding = self._deciding.get(decision)
        return None if deciding is None else deciding.proposal

    def opened(self, opening: Opening, now_ns: int) -> list[Effect]:
        """Take what another instance has shown of how a later round began; its Q VOTE2 have been verified."""
        deciding = self._deciding.get(opening.question.decision)
        return [] if deciding is None else self._after(deciding, deciding.opened(opening, now_ns))

    def learn(self, decision: bytes, options: tuple[Option, ...], now_ns: int) -> list[Effect]:
        """Take what another instance says the next round's options are."""
        deciding = self._deciding.get(decision)
        return [] if deciding is None else self._after(deciding, deciding.learn(options, now_ns))

    def asked(self, decision: bytes, instance: str, now_ns: int) -> list[Effect]:
        """Show an instance that asks what it lacks, if it is known here."""
        show: Show | None = None
        if (deciding := self._deciding.get(decision)) is not None:
            show = deciding.show(instance, ballots=True)
        elif (past := self._past.get(decision)) is not None and past.show is not None:
            show = replace(past.show, instance=instance)
        return [show] if show is not None and self._may_show(show, now_ns) else []

    def announced(self, decision: bytes) -> list[Effect]:
        """Know that an announcement of a committed decision stands, and holds."""
        deciding = self._deciding.pop(decision, None)
        if deciding is None:
            return []
        self._remember(deciding)
        return [Forget(decision, good_until_ns(deciding.proposal))]

    def step_in(self, decision: bytes, now_ns: int) -> list[Effect]:
        """Announce a committed decision, as nobody else has."""
        deciding = self._deciding.get(decision)
        return [] if deciding is None else self._after(deciding, deciding.step_in(now_ns))

    def tick(self, now_ns: int) -> list[Effect]:
        """Look at deadlines and timers, ask for what is lacking, and forget what can no longer matter."""
        for decision in [d for d, past in self._past.items() if past.until_ns < now_ns]:
            del self._past[decision]
        for key in [key for key, shown_ns in self._shown.items() if shown_ns + SHOW_AGAIN_NS < now_ns]:
            del self._shown[key]
        self._ballots.forget(now_ns)
        self._steps.forget(now_ns)
        effects = self._ask_proposals(now_ns)
        for deciding in list(self._deciding.values()):
            effects += self._after(deciding, deciding.tick(now_ns))
        return effects + self._wants(now_ns)

    def _wants(self, now_ns: int) -> list[Effect]:
        """Ask for ballots, those of the oldest decisions first, and for no more at once than the line has room for."""
        asked_ns = now_ns - self._wanted_ns
        quiet = min(asked_ns, now_ns - self._ballot_ns) >= self._pace.want_ns
        effects: list[Effect] = []
        if not quiet and asked_ns < self._pace.want_late_ns:
            return effects
        room = WANTED_AT_ONCE
        for deciding in self._deciding.values():
            if room > 0 and (want := deciding.wants(now_ns, quiet=quiet)) is not None:
                effects.append(want)
                room -= len(want.missing)
                self._wanted_ns = now_ns
        return effects

    def restore(
        self,
        epoch: InstalledEpoch,
        proposal: Evidence[Proposal],
        ballots: Iterable[Received],
        own: Sequence[Voted],
        now_ns: int,
        *,
        opening: Opening | None = None,
        following: Iterable[tuple[int, tuple[Option, ...]]] = (),
    ) -> list[Effect]:
        """Go on with a decision that this instance had begun to vote on before a restart; see `Deciding.restore`."""
        deciding = self._begin(epoch, proposal, deadline_ns=0)
        return self._after(deciding, deciding.restore(opening, following, ballots, own, now_ns))

    def remember_ended(self, decision: bytes, until_ns: int) -> None:
        """Know that a decision is over, as long as its proposal could come again."""
        self._past[decision] = _Past(until_ns)

    # --- Inside -------------------------------------------------------------------------------

    def _current(self, digest: bytes) -> InstalledEpoch:
        if self.epoch is None:
            raise InvalidInputError("no epoch is installed", reason="no_epoch")
        if digest != self.epoch.digest:
            raise InvalidInputError("a message of another epoch", reason="wrong_epoch")
        return self.epoch

    def _opens_in(self, digest: bytes, now_ns: int, *, shown: bool = False) -> InstalledEpoch:
        """Return the epoch that is named, if decisions may be opened in it; else the current one."""
        current = self.epoch
        if current is None:
            raise InvalidInputError("no epoch is installed", reason="no_epoch")
        if shown or still_decides(digest, current, now_ns):
            return self._known.get(digest, current)
        return current

    def _begin(self, epoch: InstalledEpoch, proposal: Evidence[Proposal], deadline_ns: int) -> Deciding:
        pace = replace(self._pace, first_view_ns=int(self._pace.first_view_ns * self._stretch))
        deciding = Deciding(self._me, epoch, proposal, deadline_ns=deadline_ns, pace=pace, changes=self.changes)
        self._deciding[proposal.leaf] = deciding
        self._asked.pop(proposal.leaf, None)
        return deciding

    def _step(self, deciding: Deciding, voted: Voted, now_ns: int) -> list[Effect]:
        if voted.vote.epoch != deciding.epoch.digest:
            raise InvalidInputError("a step of another epoch", reason="wrong_epoch")
        deciding.epoch.instance(voted.sender, voted.key_id)
        return deciding.step(voted, now_ns)

    def _after(self, deciding: Deciding, effects: list[Effect]) -> list[Effect]:
        """Take a decision that ends out of those that go on; only its first end counts."""
        ends = [effect for effect in effects if isinstance(effect, End)]
        if not ends:
            return effects
        if self._deciding.pop(deciding.decision, None) is not None:
            self._remember(deciding)
        return [effect for effect in effects if not isinstance(effect, End)] + ends[:1]

    def _remember(self, deciding: Deciding) -> None:
        # Timers that are too short cost views and never safety: they follow what leaders take on this machine.
        self._stretch = min(self._stretch * 2, MAX_STRETCH) if deciding.hasty else max(1.0, self._stretch * 0.9)
        until_ns = good_until_ns(deciding.proposal)
        show = deciding.show("", ballots=False) if deciding.over else None
        self._past[deciding.decision] = _Past(until_ns, show)
        shown = [past for past in self._past.values() if past.show is not None]
        for past in shown[:-MAX_SHOWN]:
            past.show = None

    def _ask_proposals(self, now_ns: int) -> list[Effect]:
        """Ask for the proposals that steps wait for; each time another of those that have taken one."""
        waiting = self._steps.waiting()
        for decision in self._asked.keys() - {decision for decision, _, _ in waiting}:
            del self._asked[decision]
        asks: list[Effect] = []
        for decision, since_ns, senders in waiting:
            times, next_ns = self._asked.get(decision, (0, since_ns + self._pace.ask_after_ns))
            if now_ns >= next_ns:
                pause_ns = self._pace.ask_after_ns << min(times + 1, 6)
                self._asked[decision] = (times + 1, now_ns + pause_ns)
                asks.append(Ask(decision, senders[times % len(senders)], proposal=True))
        return asks

    def _may_show(self, show: Show, now_ns: int) -> bool:
        """Tell whether this one was not shown the same just now: who asks again and again costs little."""
        key = (show.decision, show.instance)
        if now_ns - self._shown.get(key, -SHOW_AGAIN_NS) < SHOW_AGAIN_NS:
            return False
        self._shown[key] = now_ns
        return True

    def _check_time(self, proposal: Evidence[Proposal], now_ns: int) -> None:
        if proposal.envelope.content.issued_at > now_ns + SKEW_NS:
            raise InvalidInputError("the proposal is issued in the future", reason="issued_in_future")
        if good_until_ns(proposal) < now_ns:
            raise InvalidInputError("the proposal's deadline has passed", reason="deadline_passed")

    def _check_room(self, proposer: SpiffeId) -> None:
        going = [deciding.proposal.sender for deciding in self._deciding.values() if not deciding.over]
        most, most_of_one = self._limits.open_decisions, self._limits.open_per_proposer
        if not may_command(proposer):
            # Admins find room whatever those that only ask have open.
            if sum(not may_command(one) for one in going) >= most // 2:
                raise ExhaustedError(f"{most // 2} questions are open", reason="too_many_decisions")
            most_of_one = self._limits.open_per_asker
        theirs = going.count(proposer)
        if len(going) >= most or theirs >= most_of_one:
            raise ExhaustedError(
                f"{len(going)} decisions are open, {theirs} of {proposer}", reason="too_many_decisions"
            )


def good_until_ns(proposal: Evidence[Proposal]) -> int:
    """Return until when a proposal may open its decision: an instance can be late by as many rounds as there are."""
    all_rounds_ms = proposal.body.deadline_ms * proposal.body.rounds
    return proposal.envelope.content.issued_at + all_rounds_ms * NS_PER_MS + SKEW_NS
