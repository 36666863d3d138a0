"""How many offers are answered: a token bucket for each pair of agents, for each peer of a host, and for all of them.

Pure: the present time is passed in. The number of buckets is bounded; the one that was used least recently goes, and
who had it begins again with a full one, so many identities gain no more than the bucket of all allows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from tocsin.contracts.errors import ExhaustedError


class Rate(NamedTuple):
    """Tokens a second in the long run, and at once."""

    per_s: float
    burst: float


PAIR = Rate(4.0, 32.0)
"""A peer that restarts again and again, or whose channel's limits are small, stays far below."""
PEER = Rate(64.0, 1024.0)
"""With every agent of a host: as many as a host has, at once, when a network is established."""
ALL = Rate(1000.0, 4096.0)
"""An answer costs some 0.15 ms on the event loop: so in the long run at most a seventh of a core goes into answers."""
NOTICE = Rate(2.0, 8.0)
"""Words to a peer that its channel is not known: one is enough."""
MAX_BUCKETS = 16_384


@dataclass(slots=True)
class Bucket:
    """A token bucket."""

    rate: Rate
    tokens: float
    at_s: float

    def take(self, now_s: float) -> bool:
        """Take a token, if there is one."""
        self.tokens = min(self.rate.burst, self.tokens + max(0.0, now_s - self.at_s) * self.rate.per_s)
        self.at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Buckets:
    """Buckets of one rate, by name. O(1)."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._held: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, name: str, now_s: float) -> bool:
        """Take a token of ``name``'s, if there is one."""
        bucket = self._held.get(name)
        if bucket is None:
            bucket = self._held[name] = Bucket(self._rate, self._rate.burst, now_s)
            if len(self._held) > MAX_BUCKETS:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(name)
        return bucket.take(now_s)


class Allowance:
    """What a host answers of offers."""

    def __init__(self) -> None:
        self._pairs = Buckets(PAIR)
        self._peers = Buckets(PEER)
        self._all = Bucket(ALL, ALL.burst, 0.0)

    def require(self, peer: str, agent: str, now_s: float) -> None:
        """Count one offer of ``peer`` to one of the host's agents.

        Raises:
            ExhaustedError: ``handshake_flood``.
        """
        allowed = self._pairs.take(f"{peer} {agent}", now_s)
        allowed = allowed and self._peers.take(peer, now_s) and self._all.take(now_s)
        if not allowed:
            raise ExhaustedError(f"{peer} offers too many channels", reason="handshake_flood")
