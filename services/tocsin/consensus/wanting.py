"""When an instance asks the agents for ballots that have not come: what is sent to it may be lost, or refused.

An agent sends its ballot once. A line that is full refuses it, a broker that restarts loses it, and a host that was
away has never heard of the question. Whoever counts knows who is missing, so it asks those, and sends the
proposal along. It asks when its own line is quiet, so what is asked for again finds room; and less and less often,
since most who are missing are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tocsin.consensus.pace import Pace

MAX_DOUBLINGS = 5


class Wanting:
    """The clock of one round."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last_ns: int | None = None
        """When a ballot of this round came, or the round began."""
        self._next_ns = 0
        self._times = 0

    def came(self, now_ns: int) -> None:
        """A ballot of this round was counted."""
        self._last_ns = now_ns

    def due(self, now_ns: int, *, quiet: bool) -> bool:
        """Tell whether to ask now; asking is taken for done then.

        Args:
            now_ns: the time.
            quiet: no ballot of any decision has come lately, so none is waiting in the line.
        """
        if self._last_ns is None:
            self._last_ns = now_ns
        silent_ns = now_ns - self._last_ns
        if now_ns < self._next_ns or silent_ns < (self._pace.want_ns if quiet else self._pace.want_late_ns):
            return False
        self._next_ns = now_ns + (self._pace.want_ns << min(self._times + 1, MAX_DOUBLINGS))
        self._times += 1
        return True


def bitmap(everyone: Iterable[str], wanted: Collection[str]) -> bytes:
    """Return which of the seats are wanted: bit i of byte i // 8 is seat i, the lowest bit first."""
    seats = list(everyone)
    bits = bytearray((len(seats) + 7) // 8)
    for index, who in enumerate(seats):
        if who in wanted:
            bits[index // 8] |= 1 << index % 8
    return bytes(bits)
