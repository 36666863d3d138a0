"""A budget by sender and second: who floods uses up its own and nobody else's."""

from __future__ import annotations


class Budget:
    """Grants each sender ``per_second`` in each second of the clock; at most twice that within one second.

    Only verified senders ask, so the table is bounded by the enrolled agents; it is emptied every second.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._used: dict[str, int] = {}

    def take(self, sender: str, *, at_s: float) -> bool:
        """Take one from the sender's budget; False when it is used up."""
        if int(at_s) != self._second:
            self._second = int(at_s)
            self._used.clear()
        used = self._used.get(sender, 0)
        if used >= self._per_second:
            return False
        self._used[sender] = used + 1
        return True
