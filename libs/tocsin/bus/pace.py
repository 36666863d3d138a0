"""When to wait for more: work that costs the same for one message as for many is done less often under load.

Pure: moments in monotonic seconds come in. A lone message is never kept waiting: a pause is counted from the last
beginning, and it is left only while messages come so fast that it gathers :data:`WORTH` of them.
"""

from __future__ import annotations

WORTH = 4
"""Messages that a pause must be expected to gather."""
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
        self._per_s = RunningMean()

    def pause_s(self, gather_s: float, *, now_s: float) -> float:
        """Return how long to wait, so that ``gather_s`` lie between two beginnings; 0 where little comes."""
        if self._per_s.value * gather_s < WORTH:
            return 0.0
        return max(0.0, self._began_s + gather_s - now_s)

    def began(self, messages: int, *, now_s: float) -> None:
        """Record that work on so many messages begins."""
        # What was gathered since the last beginning; after a silence that is nearly nothing.
        self._per_s.add(messages / max(now_s - self._began_s, 1e-6))
        self._began_s = now_s
