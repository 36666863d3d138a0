"""How long an instance waits for others."""

from __future__ import annotations

from dataclasses import dataclass

NS_PER_MS = 1_000_000
MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """Waiting times, in nanoseconds."""

    first_view_ns: int = 40 * NS_PER_MS
    """The first view's timer. A quiet machine takes 5 to 15 ms for a slot of four instances; a failover costs this,
    a tick and the next view's steps, and shall take less than 60 ms."""
    longest_view_ns: int = 5_000 * NS_PER_MS
    ask_after_ns: int = 100 * NS_PER_MS
    """So long what is lacking may still be on its way; the pause doubles with each ask."""
    step_in_ns: int = 1_000 * NS_PER_MS
    """How much later than the one before it an instance announces, or tells agents of a round."""

    want_ns: int = 1_000 * NS_PER_MS
    """How long no ballot at all must have come before agents are asked for those that are missing."""
    want_late_ns: int = 5_000 * NS_PER_MS
    """The same where ballots of other decisions go on coming, but none of this one."""

    settle_ns: int = 100 * NS_PER_MS
    """How long ballots that are under way are waited for, once no option can have a quorum, before refining."""

    def view_ns(self, view: int) -> int:
        """Return how long a view lasts at most."""
        return min(self.first_view_ns << min(view - 1, MAX_DOUBLINGS), self.longest_view_ns)
