"""What a worker has done: how fast it is, and the results that it may be asked for again.

No I/O, no clock.
"""

from __future__ import annotations

from collections import OrderedDict

from tocsin.contracts.analysis import WorkDone

RECENT = 64
"""Operations that a status names, and results kept; at 0.5 s between statuses this is 128 tasks a second."""

MEMORY = 0.9
"""What the past weighs against one more task: the speed follows the last ten or so."""


class WorkLedger:
    """Counts what was done. The speed begins at 1, as if one second of work had taken one second."""

    def __init__(self) -> None:
        self.done = 0
        self._expected_s = 1.0
        self._taken_s = 1.0
        self._results: OrderedDict[bytes, WorkDone] = OrderedDict()

    def ended(self, result: WorkDone) -> None:
        """Record that an operation has ended, well or not."""
        self.done += 1
        self._results[result.operation] = result
        if len(self._results) > RECENT:
            self._results.popitem(last=False)

    def timed(self, *, expected_s: float, taken_s: float) -> None:
        """Record how long a task took that was expected to take ``expected_s`` on a reference core."""
        self._expected_s = MEMORY * self._expected_s + expected_s
        self._taken_s = MEMORY * self._taken_s + taken_s

    def result(self, operation: bytes) -> WorkDone | None:
        """Return the result of an operation that comes again because its acknowledgement was lost."""
        return self._results.get(operation)

    @property
    def recent(self) -> tuple[bytes, ...]:
        """The operations that ended last, oldest first."""
        return tuple(self._results)

    @property
    def speed(self) -> float:
        """Expected over taken seconds, within the bounds of a status."""
        return min(1e6, max(1e-6, self._expected_s / max(self._taken_s, 1e-9)))
