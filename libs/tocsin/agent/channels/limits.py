"""How many offers are answered: a token bucket for each peer, and one for all of them.

Pure: the present time is passed in. The number of buckets is bounded; the one that was used least recently goes, and
its peer begins again with a full one, so many identities gain no more than the bucket of all allows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tocsin.contracts.errors import ExhaustedError

PER_PEER_PER_S = 4.0
PER_PEER_BURST = 32.0
"""A peer that restarts again and again, or whose channel's limits are small, stays far below."""
ALL_PER_S = 1000.0
ALL_BURST = 2000.0
"""An answer costs some 0.15 ms on the event loop: so at most a seventh of a core goes into answers."""
MAX_BUCKETS = 4096


@dataclass(slots=True)
class Bucket:
    """A token bucket."""

    per_s: float
    burst: float
    tokens: float
    at_s: float

    def take(self, now_s: float) -> bool:
        """Take a token, if there is one."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Allowance:
    """Counts by peer and altogether. O(1)."""

    def __init__(self, per_s: float = PER_PEER_PER_S, burst: float = PER_PEER_BURST) -> None:
        self._per_s, self._burst = per_s, burst
        self._peers: OrderedDict[str, Bucket] = OrderedDict()
        self._all = Bucket(ALL_PER_S, ALL_BURST, ALL_BURST, 0.0)

    def require(self, peer: str, now_s: float) -> None:
        """Count one of ``peer``.

        Raises:
            ExhaustedError: ``handshake_flood``.
        """
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = self._peers[peer] = Bucket(self._per_s, self._burst, self._burst, now_s)
            if len(self._peers) > MAX_BUCKETS:
                self._peers.popitem(last=False)
        self._peers.move_to_end(peer)
        if not bucket.take(now_s):
            raise ExhaustedError(f"{peer} offers too many channels", reason="handshake_flood")
        if not self._all.take(now_s):
            raise ExhaustedError("too many channels are offered", reason="handshake_flood")
