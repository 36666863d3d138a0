"""Track emergencies: who was due, who confirmed, what is to be sent again, and when an account is closed.

Pure: times come in, nothing is sent from here. ``at_s`` is monotonic seconds, for pauses and deadlines;
``*_ns`` is the wall clock, for what senders and hosts wrote.

* Every router tracks every emergency. Who forwarded one *pursues* it; the others *stand by*: each of their
  moments is later by a grace, and they act only if no account was seen until then. A router that starts takes
  up in the same way what the streams say is open.
* Only agents that are due count, and only their own host confirms them: *delivered* is a part of *due*.
* Each agent is confirmed once; the first receipt counts. Receipts that come before their emergency are kept for it.
* An emergency ends once: complete, when nobody is missing; at its deadline, with the missing listed; or with
  another router's account. A receipt that comes later changes nothing and is told apart (``late``).
* An emergency for nobody is not tracked, and is never complete.
* At most ``max_tracked`` run at once; one more is :class:`ExhaustedError`, and nothing is evicted. Of those
  that ended, the last :data:`MAX_ENDED` leaves are remembered.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.policy import Audience
from tocsin.contracts.routing import Delivery, Receipt
from tocsin.router.accounts import account, is_due
from tocsin.router.early import EarlyReceipts

MAX_ENDED = 16_384
CLOCK_SKEW_NS = 30_000_000_000
"""How far a host's clock may differ from ours (envelope.md, class live)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an emergency is sent again and closed, in seconds since it was stored."""

    first_s: float
    """First pause; it doubles up to ``longest_s``."""
    longest_s: float
    deadline_s: float
    """For alerts that name none."""
    grace_s: float
    """By so much is a router later that stands by."""


@dataclass(slots=True)
class Emergency:
    """One emergency: what was sent, to whom, and what came back."""

    message: bytes
    leaf: bytes
    issued_at_ns: int
    subject: str
    data: bytes
    """The sender's own envelope: every retry sends these bytes."""
    audience: Audience
    due: dict[str, str]
    """Host by agent."""
    deadline_s: float | None = None
    """The alert's own deadline."""
    confirmed: dict[str, Receipt] = field(default_factory=dict)
    pursued: bool = False
    begun_s: float = 0.0
    retry_s: float = 0.0
    over_s: float = 0.0
    pause_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether somebody was due and nobody is missing."""
        return bool(self.due) and len(self.confirmed) == len(self.due)

    def account(self) -> Delivery:
        """Return the account as it stands."""
        return account(self.message, self.leaf, self.issued_at_ns, self.due, self.confirmed)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What became of one receipt."""

    tracked: bool
    """False: it has ended, or is not known here (yet)."""
    late: bool = False
    early: bool = False
    """It is kept for an emergency that is not known yet."""
    counted: int = 0
    again: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    """Agents by the reason why their confirmation was refused."""
    ended: Delivery | None = None
    """The account, if this receipt was the last that was missing."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done now."""

    resend: tuple[Emergency, ...]
    ended: tuple[Delivery, ...]


class Tracker:
    """The emergencies that one router knows of."""

    def __init__(self, schedule: Schedule, *, max_tracked: int) -> None:
        self._schedule = schedule
        self._max = max_tracked
        self._running: dict[bytes, Emergency] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._early = EarlyReceipts()

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, emergency: Emergency, *, at_s: float, pursue: bool, age_s: float = 0.0) -> Delivery | None:
        """Track an emergency that is not known yet. O(agents that have confirmed it before).

        Args:
            emergency: one that is about to be sent, or that a stream holds.
            at_s: now.
            pursue: whether this router forwards it.
            age_s: for how long it has been in its stream.

        Returns:
            Its account, if nobody is missing any more.

        Raises:
            InvalidInputError: ``nobody_due``.
            ExhaustedError: ``tracker_full``.
        """
        if not emergency.due:
            raise InvalidInputError("the audience includes nobody who is enrolled", reason="nobody_due")
        if len(self._running) >= self._max:
            raise ExhaustedError(f"{self._max} emergencies are tracked already", reason="tracker_full")
        emergency.begun_s = at_s - age_s
        emergency.pursued = pursue
        self._schedule_at(emergency)
        self._running[emergency.leaf] = emergency
        ended = None
        for (host, receipt), now_ns in self._early.take(emergency.leaf):
            ended = self.confirm(host, receipt, at_s=at_s, now_ns=now_ns).ended or ended
        return ended

    def is_running(self, leaf: bytes) -> bool:
        """Tell whether this emergency is tracked."""
        return leaf in self._running

    def has_ended(self, leaf: bytes) -> bool:
        """Tell whether this emergency was accounted for."""
        return leaf in self._ended

    def pursue(self, leaf: bytes) -> None:
        """Pursue an emergency that this router stood by: its sender has handed it in here, too."""
        emergency = self._running[leaf]
        if not emergency.pursued and not emergency.complete:
            emergency.pursued = True
            self._schedule_at(emergency)

    def learn(self, record: AgentRecord) -> None:
        """Let an agent be due where its record came after the emergency. O(tracked)."""
        for emergency in self._running.values():
            if record.name not in emergency.due and is_due(record, emergency.audience, emergency.issued_at_ns):
                was_complete = emergency.complete
                emergency.due[record.name] = record.host
                if was_complete:
                    self._schedule_at(emergency)

    def accounted(self, leaf: bytes) -> None:
        """End an emergency by an account that was seen."""
        self._running.pop(leaf, None)
        self._early.take(leaf)
        self._remember(leaf)

    def confirm(self, host: str, receipt: Receipt, *, at_s: float, now_ns: int) -> Confirmation:
        """Count what a host says it has accepted for its agents. O(agents of the receipt)."""
        emergency = self._running.get(receipt.leaf)
        if emergency is None:
            late = receipt.leaf in self._ended
            early = not late and self._early.keep(host, receipt, at_s=at_s, now_ns=now_ns)
            return Confirmation(tracked=False, late=late, early=early)
        if not emergency.issued_at_ns - CLOCK_SKEW_NS <= receipt.taken_ns <= now_ns + CLOCK_SKEW_NS:
            return Confirmation(tracked=True, refused={"bad_time": len(receipt.agents)})
        counted = again = 0
        refused: Counter[str] = Counter()
        for agent in receipt.agents:
            if agent not in emergency.due:
                refused["not_due"] += 1
            elif emergency.due[agent] != host:
                refused["not_its_agent"] += 1
            elif agent in emergency.confirmed:
                again += 1
            else:
                emergency.confirmed[agent] = receipt
                counted += 1
        ended = self._complete(emergency, at_s) if counted and emergency.complete else None
        return Confirmation(tracked=True, counted=counted, again=again, refused=refused, ended=ended)

    def advance(self, *, at_s: float, close: bool = True) -> Turn:
        """End what is past its deadline, and name what is to be sent again. O(tracked).

        Args:
            at_s: now.
            close: whether everything that the streams hold has been read: else nothing is closed.
        """
        over = [e for e in self._running.values() if at_s >= e.over_s]
        ended = tuple(self._end(emergency) for emergency in over) if close else ()
        resend = tuple(e for e in self._running.values() if at_s >= e.retry_s and not e.complete)
        for emergency in resend:
            emergency.pause_s = min(emergency.pause_s * 2, self._schedule.longest_s)
            emergency.retry_s = at_s + emergency.pause_s
        return Turn(resend, ended)

    def next_s(self) -> float | None:
        """Return when :meth:`advance` has something to do; None while nothing is tracked."""
        return min((min(e.retry_s, e.over_s) for e in self._running.values()), default=None)

    def _schedule_at(self, emergency: Emergency) -> None:
        late_s = 0.0 if emergency.pursued else self._schedule.grace_s
        deadline_s = emergency.deadline_s or self._schedule.deadline_s
        emergency.pause_s = self._schedule.first_s
        emergency.retry_s = emergency.begun_s + emergency.pause_s + late_s
        emergency.over_s = emergency.begun_s + deadline_s + late_s

    def _complete(self, emergency: Emergency, at_s: float) -> Delivery | None:
        if emergency.pursued:
            return self._end(emergency)
        # Its account is on its way from who pursues it.
        emergency.retry_s = math.inf
        emergency.over_s = min(emergency.over_s, at_s + self._schedule.grace_s)
        return None

    def _end(self, emergency: Emergency) -> Delivery:
        del self._running[emergency.leaf]
        self._remember(emergency.leaf)
        return emergency.account()

    def _remember(self, leaf: bytes) -> None:
        self._ended[leaf] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
