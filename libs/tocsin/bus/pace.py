"""When to wait for more: work that costs the same for one message as for many is done less often under load.

Pure: moments in monotonic seconds come in. A lone message is never kept waiting: a pause is counted from the last
beginning, and it is left only while messages come so fast that it gathers :data:`WORTH` of them. How fast they come is
a matter of time and not of the last few: a handful of messages, each of which waits for an answer to the one before it,
as the steps of a decision do, would else be taken for load and be kept apart by pauses that gather nothing.
"""

from __future__ import annotations

from math import exp

WORTH = 4
"""Messages that a pause must be expected to gather."""
WINDOW_S = 0.1
"""What came so long ago counts 1/e of what comes now."""
BURST = 2 * WORTH
"""Most messages that one beginning counts for: many at once are no load, if nothing follows."""
SMOOTHING = 0.2
"""Weight of the newest sample in a running mean."""


class RunningMean:
    """An exponentially weighted mean; the first sample counts in full."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, sample: float) -> None:
        """Take a sample."""
        self.value += (SMOOTHING if self.value else 1.0) * (sample - self.value)


class Pace:
    """Tells how long to gather before the next beginning."""

    def __init__(self) -> None:
        self._began_s = float("-inf")
        self._per_s = 0.0
        """Messages a second, in a window that fades: at the last beginning."""

    def pause_s(self, gather_s: float, *, now_s: float) -> float:
        """Return how long to wait, so that ``gather_s`` lie between two beginnings; 0 where little comes."""
        if self._rate(now_s) * gather_s < WORTH:
            return 0.0
        return max(0.0, self._began_s + gather_s - now_s)

    def began(self, messages: int, *, now_s: float) -> None:
        """Record that work on so many messages begins."""
        self._per_s = self._rate(now_s) + min(messages, BURST) / WINDOW_S
        self._began_s = now_s

    def _rate(self, now_s: float) -> float:
        return self._per_s * exp((self._began_s - now_s) / WINDOW_S)
