"""The numbers of a vote: faults tolerated and quorums, in integers.

Over n participants, f = (n - 1) // 3 may be hostile, and a choice needs q = max(2n // 3 + 1, ceil(0.67 n))
ballots: 0.67 as a float errs at n = 1500. Any two quorums share more than f participants, hence an honest
one, so no two choices of a round reach q. Liveness tolerates n - q silent ones. Over m consensus instances
Q = 2m // 3 + 1, with (m - 1) // 3 hostile.

Example:
    >>> Quorum.of(847)
    Quorum(participants=847, tolerated_faults=282, needed=568)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Quorum:
    """The numbers for n participants."""

    participants: int
    tolerated_faults: int
    """f: so many may be hostile."""
    needed: int
    """q: so many ballots decide."""

    @classmethod
    def of(cls, participants: int) -> Self:
        """Compute them for ``participants`` agents."""
        n = participants
        return cls(n, (n - 1) // 3, max(2 * n // 3 + 1, (67 * n + 99) // 100))

    @property
    def tolerated_silent(self) -> int:
        """So many may be silent, and a decision is still reached."""
        return self.participants - self.needed


def instance_quorum(instances: int) -> int:
    """Return Q for m consensus instances."""
    return 2 * instances // 3 + 1


def instance_faults(instances: int) -> int:
    """Return g: so many consensus instances may be hostile."""
    return (instances - 1) // 3


def weakness(quorum: Quorum, keys: Iterable[bytes]) -> str:
    """Say why a participant set is not Byzantine-tolerant; the empty string where it is.

    Args:
        quorum: its numbers.
        keys: the key id of each seat. Who holds a key speaks for all of its seats.
    """
    f = quorum.tolerated_faults
    if f == 0:
        return f"with {quorum.participants} participants not one hostile participant is tolerated (f = 0)"
    most = max(Counter(keys).values(), default=0)
    if most > f:
        return f"one key holds {most} of {quorum.participants} seats, more than f = {f}"
    return ""
