"""How many reporters of each class there are, from the figures that every process publishes. Pure.

Figures are signed, so nobody can pretend to be more reporters than it has certificates.
"""

from __future__ import annotations

from collections import Counter

from tocsin.fleet.misconduct import Reporter

THERE_NS = 60_000_000_000
"""A reporter counts for so long after its last figures, in nanoseconds."""
COUNTED_NS = 1_000_000_000
"""How long a count is good for."""
MAX_REPORTERS = 8_192


class Population:
    """The reporters that are there. Bounded by :data:`MAX_REPORTERS`; those beyond do not count."""

    def __init__(self) -> None:
        self._seen_ns: dict[Reporter, int] = {}
        self._counted: tuple[int, dict[str, int]] = (-COUNTED_NS, {})

    def seen(self, reporter: Reporter, *, at_ns: int) -> None:
        """Take note of one."""
        if reporter in self._seen_ns or len(self._seen_ns) < MAX_REPORTERS:
            self._seen_ns[reporter] = at_ns

    def sizes(self, *, now_ns: int) -> dict[str, int]:
        """Return how many there are of each class; forgets those that have left. O(reporters), once a second."""
        if 0 <= now_ns - self._counted[0] < COUNTED_NS:
            return self._counted[1]
        for reporter in [one for one, at_ns in self._seen_ns.items() if now_ns - at_ns > THERE_NS]:
            del self._seen_ns[reporter]
        self._counted = (now_ns, dict(Counter(one.group for one in self._seen_ns)))
        return self._counted[1]
