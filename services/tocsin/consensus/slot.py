"""Commit one outcome of a round among the consensus instances: the rules of HotStuff-2 (eprint 2023/397) with the
locks of Tendermint (arXiv 1807.04938), in views with a leader each.

* PROPOSE(w, x, hqc) by the leader of view w: the first one counts. hqc is the highest QC1 that the leader knows.
* VOTE1 once per view, in none that this instance has timed out of, for a proposal that is *open to it*: it is not
  locked, or locked on x, or hqc certifies x in a view not below its lock's. An omitted hqc never skips the check.
  Unless hqc certifies x, x must be admissible on this instance's own knowledge too.
* Q VOTE1 for one value in one view are its QC1. In the current view it is this instance's lock, and VOTE2 follows.
* Q VOTE2 for one value in one view commit it, whichever view it is.
* TIMEOUT(w, highest QC1) ends this instance's voting in view w. g + 1 of them make it join, Q of them begin w + 1.
  A QC1 of a later view begins that view.

Where m = 3g + 1 instances and at most g are hostile, no two values are committed: Q VOTE2 in view w mean that
m - 2g honest ones or more are locked at w, and those vote for nothing else without a QC1 from w or above, which
needs one of them. A QC1 of a higher view is hence for the same value, by induction over views.

What this instance has cast is never cast again, and after a restart its own steps come back through
:meth:`Slot.receive` before anything else. The caller signs and persists a cast together with the QC1 that it rests
on, gives it back through :meth:`Slot.receive`, and only then sends it. Pure: time comes in as :meth:`Slot.expire`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tocsin.contracts.decisions import MAX_VIEW, Step
from tocsin.contracts.errors import UntrustedError
from tocsin.evidence.quorum import instance_faults, instance_quorum

FIRST_VIEW = 1
WINDOW = 8
"""Views below and above the current one whose steps are kept: who invents views fills no memory."""


@dataclass(frozen=True, slots=True)
class QuorumCert:
    """QC1: Q VOTE1 for one value in one view."""

    view: int
    value: bytes
    votes: Mapping[str, bytes] = field(repr=False)
    """The VOTE1 envelopes by instance."""


@dataclass(frozen=True, slots=True)
class Cast:
    """A step that this instance takes: sign it, persist it, send it."""

    step: Step
    view: int
    value: bytes | None
    """None for TIMEOUT."""
    high: QuorumCert | None = None
    """PROPOSE: the hqc. VOTE1: the highest QC1 for the value that the vote rests on, of the proposal or its own
    lock: it shows that no lock was broken. VOTE2: the lock. TIMEOUT: the highest QC1 known."""


@dataclass(frozen=True, slots=True)
class Received:
    """A step of an instance whose signature, key and certificate have been verified."""

    step: Step
    sender: str
    view: int
    value: bytes | None
    high: QuorumCert | None
    data: bytes = field(repr=False)
    """The envelope's own bytes."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Q VOTE2: the outcome, for good."""

    value: bytes
    view: int
    votes: Mapping[str, bytes] = field(repr=False)
    """The VOTE2 envelopes by instance."""


class Slot:
    """One instance's part in one slot."""

    def __init__(
        self, instances: Sequence[str], me: str, *, rotation: int, admissible: Callable[[bytes], bool]
    ) -> None:
        """Begin in the first view.

        Args:
            instances: ids of all m instances, in the epoch's order.
            me: this instance's.
            rotation: spreads the leadership of first views over decisions.
            admissible: whether this instance may vote for a value on its own knowledge.
        """
        self.view = FIRST_VIEW
        self.commit: Commit | None = None
        self.lock: QuorumCert | None = None
        """The highest QC1 that this instance has cast VOTE2 for."""
        self.high: QuorumCert | None = None
        """The highest QC1 that it knows from any message."""
        self._instances = tuple(instances)
        self._quorum = instance_quorum(len(self._instances))
        self._some_honest = instance_faults(len(self._instances)) + 1
        self._me = me
        self._rotation = rotation
        self._admissible = admissible
        self._left = 0
        """The highest view that this instance has timed out of."""
        self._cast: set[tuple[Step, int]] = set()
        self._votes: dict[tuple[Step, int], dict[str, tuple[bytes, bytes]]] = {}
        self._proposals: dict[int, tuple[bytes, QuorumCert | None]] = {}
        self._timeouts: dict[str, int] = {}
        """The highest view of which each instance has said that it timed out."""

    def leader(self, view: int) -> str:
        """Return who may propose in a view."""
        return self._instances[(self._rotation + view - FIRST_VIEW) % len(self._instances)]

    @property
    def to_propose(self) -> bool:
        """Whether it is this instance's turn to propose, and it has not."""
        mine = self.leader(self.view) == self._me and self.view > self._left
        return mine and (Step.PROPOSE, self.view) not in self._cast

    def propose(self, outcome: bytes | None) -> list[Cast]:
        """Propose and vote for it, if it is this instance's turn and it has not proposed yet.

        The highest QC1 known is proposed again; only without one is the leader free to propose ``outcome``. The
        two steps go together: what is admissible may be another value by the time the proposal is signed.
        """
        value = outcome if self.high is None else self.high.value
        if value is None or not self.to_propose or not self._open(value, self.high):
            return []
        proposed = self._once(Step.PROPOSE, value, self.high)
        return proposed and proposed + self._once(Step.VOTE1, value, self._basis(value, self.high))

    def expire(self) -> list[Cast]:
        """Time out of the current view: its timer ran out. Nothing once the slot has committed."""
        return [] if self.commit is not None else self._leave(self.view)

    def restore(self, own: Received) -> None:
        """Know a step that a former process of this instance took: it is never taken again.

        All of them come before anything else, and :meth:`advance` after them.
        """
        self._take(own)

    def has_left(self, view: int) -> bool:
        """Tell whether this instance has timed out of a view."""
        return view <= self._left

    @property
    def waiting(self) -> bytes | None:
        """The value that the current view's leader proposes and this instance may not vote for as yet."""
        value, high = self._proposals.get(self.view, (None, None))
        closed = self.commit is not None or self.view <= self._left or (Step.VOTE1, self.view) in self._cast
        return None if value is None or closed or self._open(value, high) else value

    def receive(self, message: Received) -> list[Cast]:
        """Take a step of an instance, this one's own included. The first of each instance, step and view counts.

        Raises:
            UntrustedError: ``not_the_leader``.
        """
        if message.step is Step.PROPOSE and message.sender != self.leader(message.view):
            raise UntrustedError(f"{message.sender} does not lead view {message.view}", reason="not_the_leader")
        self._take(message)
        return self.advance()

    def settle(self, commit: Commit) -> None:
        """Take a commit that another instance has shown, as a whole: its Q VOTE2 have been verified.

        One by one they might not count here, where a hostile instance's other vote came first.
        """
        if self.commit is None:
            self.commit = commit

    def advance(self) -> list[Cast]:
        """Return what follows from what is known: call it too when admissibility may have changed."""
        casts = self._change_view()
        proposed = self._proposals.get(self.view)
        if proposed is not None and self._open(*proposed):
            casts += self._once(Step.VOTE1, proposed[0], self._basis(*proposed))
        high = self.high
        if high is not None and high.view == self.view > self._left:
            self.lock = high
            casts += self._once(Step.VOTE2, high.value, high)
        return casts

    def _open(self, value: bytes, high: QuorumCert | None) -> bool:
        """Tell whether this instance may cast VOTE1 for a proposal of the current view."""
        if self.view <= self._left:
            return False
        certified = high is not None and high.value == value and high.view < self.view
        if self.lock is None:
            return certified or self._admissible(value)
        if self.lock.view >= self.view:
            return False  # there is a QC1 of this view: one more VOTE1 adds nothing
        # Its own lock is a QC1 for the value: as good as one that the proposal brings.
        return value == self.lock.value or (certified and high is not None and high.view >= self.lock.view)

    def _basis(self, value: bytes, high: QuorumCert | None) -> QuorumCert | None:
        """Return the highest QC1 for the value that a vote for it may name: the proposal's, or the own lock."""
        certs = [cert for cert in (high, self.lock) if cert is not None and cert.value == value]
        return max(certs, key=lambda cert: cert.view, default=None)

    def _certify(self, step: Step, view: int) -> None:
        """Make the QC1 or the commit that a new vote may complete."""
        votes = self._votes[step, view]
        for value in {value for value, _ in votes.values()}:
            same = {who: data for who, (v, data) in votes.items() if v == value}
            if len(same) < self._quorum:
                continue
            if step is Step.VOTE1:
                self._learn(QuorumCert(view, value, same))
            elif self.commit is None:
                self.commit = Commit(value, view, same)

    def _take(self, message: Received) -> None:
        step, view = message.step, message.view
        if message.sender == self._me:
            self._remember(message)
        self._learn(message.high)
        if step is Step.TIMEOUT:
            self._timeouts[message.sender] = max(view, self._timeouts.get(message.sender, 0))
        elif abs(view - self.view) <= WINDOW and message.value is not None:
            if step is Step.PROPOSE:
                self._proposals.setdefault(view, (message.value, message.high))
            else:
                votes = self._votes.setdefault((step, view), {})
                votes.setdefault(message.sender, (message.value, message.data))
                self._certify(step, view)

    def _learn(self, high: QuorumCert | None) -> None:
        if high is not None and (self.high is None or high.view > self.high.view):
            self.high = high
            # Q have voted in that view, g + 1 honest ones among them: it has begun.
            self._enter(high.view)

    def _remember(self, own: Received) -> None:
        """Know a step of this instance's, which may be of a former process: it is never taken again."""
        self._cast.add((own.step, own.view))
        self._enter(own.view)
        if own.step is Step.TIMEOUT:
            self._left = max(self._left, own.view)
        elif own.step is Step.VOTE2 and own.high is not None:
            self._learn(own.high)
            if self.lock is None or own.high.view > self.lock.view:
                self.lock = own.high

    def _change_view(self) -> list[Cast]:
        """Join those that time out, and begin the next view with a quorum of them."""
        views = sorted(self._timeouts.values(), reverse=True)
        casts: list[Cast] = []
        if len(views) >= self._some_honest and (joined := views[self._some_honest - 1]) >= self.view:
            casts += self._leave(joined)
        if len(views) >= self._quorum and (ended := views[self._quorum - 1]) >= self.view:
            # Only more than g hostile ones can bring anybody there. It is the last one: it never ends.
            self._enter(min(ended + 1, MAX_VIEW))
        return casts

    def _leave(self, view: int) -> list[Cast]:
        self._enter(view)
        if view <= self._left or self.commit is not None:
            return []
        self._left = view
        return self._once(Step.TIMEOUT, None, self.high)

    def _enter(self, view: int) -> None:
        if view <= self.view:
            return
        self.view = view
        for old in [key for key in self._votes if key[1] < view - WINDOW]:
            del self._votes[old]
        for past in [past for past in self._proposals if past < view - WINDOW]:
            del self._proposals[past]

    def _once(self, step: Step, value: bytes | None, high: QuorumCert | None) -> list[Cast]:
        if (step, self.view) in self._cast:
            return []
        self._cast.add((step, self.view))
        return [Cast(step, self.view, value, high)]
