"""Commit one outcome of a round among the consensus instances: the rules of HotStuff-2, one view of them.

* PROPOSE by the view's leader: the first one counts.
* VOTE1 once per view, for a proposal that is admissible to this instance and does not contradict its lock.
* Q VOTE1 for one value lock it; VOTE2 once per view, for it.
* Q VOTE2 for one value in one view commit it.

What this instance has cast is never cast again: :class:`Cast` is emitted once per view and step, and after a
restart its own votes come back through :meth:`Slot.receive` before anything else. The caller signs and
persists a cast, gives it back through :meth:`Slot.receive`, and only then sends it.

There is one view so far: TIMEOUT and the change of the leader need instances that talk to one another, and
follow with them. Safety does not depend on that, liveness with a faulty leader does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tocsin.contracts.decisions import Step
from tocsin.contracts.errors import UntrustedError
from tocsin.evidence.quorum import instance_quorum

FIRST_VIEW = 1


@dataclass(frozen=True, slots=True)
class Cast:
    """A step that this instance takes: sign it, persist it, send it."""

    step: Step
    view: int
    value: bytes


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
        """Begin.

        Args:
            instances: ids of all instances, in the epoch's order.
            me: this instance's.
            rotation: spreads the leadership of first views over decisions.
            admissible: whether this instance may vote for a value on its own knowledge.
        """
        self.commit: Commit | None = None
        self.lock: tuple[int, bytes] | None = None
        """View and value of the highest Q VOTE1 that this instance has seen."""
        self._instances = tuple(instances)
        self._me = me
        self._rotation = rotation
        self._admissible = admissible
        self._view = FIRST_VIEW
        self._cast: dict[tuple[Step, int], bytes] = {}
        self._seen: dict[tuple[Step, int], dict[str, tuple[bytes, bytes]]] = {}

    def leader(self, view: int) -> str:
        """Return who may propose in a view."""
        return self._instances[(self._rotation + view - FIRST_VIEW) % len(self._instances)]

    def propose(self, value: bytes) -> list[Cast]:
        """Propose a value and vote for it, if it is this instance's turn and it has not proposed yet.

        The two go together: what is admissible may be another value by the time the proposal is signed.
        """
        if self.leader(self._view) != self._me or not self._may_vote1(value):
            return []
        proposed = self._once(Step.PROPOSE, value)
        return proposed and proposed + self._once(Step.VOTE1, value)

    def receive(self, step: Step, sender: str, view: int, value: bytes, data: bytes) -> list[Cast]:
        """Take a step of an instance, this one's own included; its signature and key have been checked.

        The first of each instance, step and view counts.

        Raises:
            UntrustedError: ``not_the_leader``.
        """
        if step is Step.PROPOSE and sender != self.leader(view):
            raise UntrustedError(f"{sender} does not lead view {view}", reason="not_the_leader")
        if view != self._view:
            return []
        if sender == self._me:
            self._cast.setdefault((step, view), value)
        self._seen.setdefault((step, view), {}).setdefault(sender, (value, data))
        return self.advance()

    def advance(self) -> list[Cast]:
        """Return what follows from what is known: call it too when admissibility may have changed."""
        proposed = self._seen.get((Step.PROPOSE, self._view), {}).get(self.leader(self._view))
        casts: list[Cast] = []
        if proposed is not None and self._may_vote1(proposed[0]):
            casts += self._once(Step.VOTE1, proposed[0])
        if (certified := self._quorum(Step.VOTE1)) is not None:
            self.lock = (self._view, certified)
            casts += self._once(Step.VOTE2, certified)
        if self.commit is None and (value := self._quorum(Step.VOTE2)) is not None:
            votes = {who: data for who, (v, data) in self._seen[Step.VOTE2, self._view].items() if v == value}
            self.commit = Commit(value, self._view, votes)
        return casts

    def _may_vote1(self, value: bytes) -> bool:
        return self._admissible(value) and (self.lock is None or self.lock[1] == value)

    def _once(self, step: Step, value: bytes) -> list[Cast]:
        if (step, self._view) in self._cast:
            return []
        self._cast[step, self._view] = value
        return [Cast(step, self._view, value)]

    def _quorum(self, step: Step) -> bytes | None:
        """Return the value that Q instances took this step for, in this view."""
        values = [value for value, _ in self._seen.get((step, self._view), {}).values()]
        needed = instance_quorum(len(self._instances))
        return next((value for value in values if values.count(value) >= needed), None)
