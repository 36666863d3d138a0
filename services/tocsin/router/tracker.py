"""Account for emergencies: who was due, who confirmed, when and by which channel, and who is missing.

Pure: times come in, nothing is sent from here. ``at_s`` is monotonic seconds, for pauses and deadlines;
``*_ns`` is the wall clock, for what senders and hosts wrote.

* Only agents that are due count, and only their own host confirms them: *delivered* is a part of *due*.
* Each agent is confirmed once; the first receipt counts.
* An emergency ends once: complete, when nobody is missing, or at its deadline with the missing listed. A
  receipt that comes later changes nothing and is told apart (``late``).
* An emergency for nobody is not tracked, and is never complete.
* At most ``max_tracked`` run at once; one more is :class:`ExhaustedError`, and nothing is evicted. Of those
  that ended, the last :data:`MAX_ENDED` leaves are remembered to recognise late receipts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.policy import Audience, Reach
from tocsin.contracts.routing import Delivery, Receipt

MAX_ENDED = 4096
MAX_LISTED = 4096
"""Bound of ``Delivery.undelivered``; ``due - delivered`` counts beyond it."""
CLOCK_SKEW_NS = 30_000_000_000
"""How far a host's clock may differ from ours (envelope.md, class live)."""


def who_is_due(audience: Audience, roster: Iterable[AgentRecord]) -> dict[str, str]:
    """Return the host of each agent that the audience includes. Missions and groups have no roster yet."""
    return {
        record.name: record.host
        for record in roster
        if audience.reach is Reach.ALL
        or (audience.reach is Reach.AGENT and audience.name == record.name)
        or (audience.reach is Reach.ROLE and audience.name == record.role)
    }


@dataclass(frozen=True, slots=True)
class Schedule:
    """Pauses between retries, in seconds: ``first_s``, doubled up to ``longest_s``, until ``deadline_s``."""

    first_s: float
    longest_s: float
    deadline_s: float


@dataclass(slots=True)
class Emergency:
    """One emergency: what was sent, to whom, and what came back."""

    message: bytes
    leaf: bytes
    issued_at_ns: int
    subject: str
    data: bytes
    """The sender's own envelope: every retry sends these bytes."""
    due: Mapping[str, str]
    """Host by agent."""
    confirmed: dict[str, Receipt] = field(default_factory=dict)
    deadline_s: float = 0.0
    retry_s: float = 0.0
    pause_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether somebody was due and nobody is missing."""
        return bool(self.due) and len(self.confirmed) == len(self.due)

    def account(self) -> Delivery:
        """Return the account as it stands."""
        channels = Counter(receipt.channel for receipt in self.confirmed.values())
        delays_ms = [(receipt.taken_ns - self.issued_at_ns) / 1e6 for receipt in self.confirmed.values()]
        return Delivery(
            message=self.message,
            leaf=self.leaf,
            due=len(self.due),
            delivered=len(self.confirmed),
            by_core=channels["core"],
            by_stream=channels["stream"],
            undelivered=tuple(sorted(self.due.keys() - self.confirmed.keys())[:MAX_LISTED]),
            first_ms=min(delays_ms, default=None),
            last_ms=max(delays_ms, default=None),
            complete=self.complete,
        )


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What became of one receipt."""

    tracked: bool
    """False: this emergency is another router's, or nobody's."""
    late: bool = False
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
    """The emergencies that one router has forwarded."""

    def __init__(self, schedule: Schedule, *, max_tracked: int) -> None:
        self._schedule = schedule
        self._max = max_tracked
        self._running: dict[bytes, Emergency] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, emergency: Emergency, *, at_s: float) -> None:
        """Track an emergency that is about to be sent. O(1).

        Raises:
            InvalidInputError: ``nobody_due``.
            ExhaustedError: ``tracker_full``.
        """
        if not emergency.due:
            raise InvalidInputError("the audience includes nobody who is enrolled", reason="nobody_due")
        if len(self._running) >= self._max and emergency.leaf not in self._running:
            raise ExhaustedError(f"{self._max} emergencies are tracked already", reason="tracker_full")
        emergency.deadline_s = at_s + self._schedule.deadline_s
        emergency.pause_s = self._schedule.first_s
        emergency.retry_s = at_s + emergency.pause_s
        self._running[emergency.leaf] = emergency

    def is_running(self, leaf: bytes) -> bool:
        """Tell whether this emergency is still pursued."""
        return leaf in self._running

    def confirm(self, host: str, receipt: Receipt, *, now_ns: int) -> Confirmation:
        """Count what a host says it has taken for its agents. O(agents of the receipt)."""
        emergency = self._running.get(receipt.leaf)
        if emergency is None:
            return Confirmation(tracked=False, late=receipt.leaf in self._ended)
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
        ended = self._end(emergency) if emergency.complete else None
        return Confirmation(tracked=True, counted=counted, again=again, refused=refused, ended=ended)

    def advance(self, *, at_s: float) -> Turn:
        """End what is past its deadline, and name what is to be sent again. O(tracked)."""
        over = [e for e in self._running.values() if at_s >= e.deadline_s]
        ended = tuple(self._end(emergency) for emergency in over)
        resend = tuple(e for e in self._running.values() if at_s >= e.retry_s)
        for emergency in resend:
            emergency.pause_s = min(emergency.pause_s * 2, self._schedule.longest_s)
            emergency.retry_s = at_s + emergency.pause_s
        return Turn(resend, ended)

    def next_s(self) -> float | None:
        """Return when :meth:`advance` has something to do; None while nothing is tracked."""
        return min((min(e.retry_s, e.deadline_s) for e in self._running.values()), default=None)

    def close(self) -> tuple[Delivery, ...]:
        """End everything as it stands: the router stops."""
        return tuple(self._end(emergency) for emergency in list(self._running.values()))

    def _end(self, emergency: Emergency) -> Delivery:
        del self._running[emergency.leaf]
        self._ended[emergency.leaf] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        return emergency.account()
