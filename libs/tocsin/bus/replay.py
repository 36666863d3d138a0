"""What a process has seen: the replay rules of the classes *live* and *stored*.

Both are bounded and both refuse rather than forget: an attacker who can fill a window gains a refusal of
one key's messages, never a second delivery.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from tocsin.contracts.errors import ConflictError, ExhaustedError, UntrustedError


class ReplayedError(UntrustedError):
    """A live message's id was seen before from this key, on other content."""

    reason = "replayed"


class DuplicateError(ConflictError):
    """The same message was taken before, or is being handled: a normal thing, counted and dropped."""

    reason = "duplicate"


class NotNeededError(ConflictError):
    """Nothing depends on the message any more: a normal thing, counted and dropped before it costs a verification."""

    reason = "not_needed"


class ClaimedError(DuplicateError):
    """A stored message is being handled now: whether its effect will stand is not known yet."""

    reason = "claimed"


@dataclass(slots=True)
class _Window:
    seen: dict[bytes, bytes] = field(default_factory=dict)
    """Leaf hash by id."""
    expiry: deque[tuple[int, bytes]] = field(default_factory=deque)


class ReplayWindow:
    """Ids of live messages by key, each kept until its message can no longer be accepted.

    When a key has filled its window, that key is refused; nothing is evicted (envelope.md, classes). The
    number of keys is bounded by the trust store, since only verified messages are recorded.
    """

    def __init__(self, max_ids_per_key: int = 500_000) -> None:
        self._max = max_ids_per_key
        self._windows: dict[bytes, _Window] = {}

    def record(self, key_id: bytes, message_id: bytes, leaf: bytes, *, until_ns: int, now_ns: int) -> None:
        """Record the id of a content, named by its leaf hash, that is good until ``until_ns``.

        Raises:
            DuplicateError: this very content was recorded before: a copy that the sender or the network made.
            ReplayedError: the id was recorded before, with another content.
            ExhaustedError: ``replay_window_full``.
        """
        window = self._windows.setdefault(key_id, _Window())
        while window.expiry and window.expiry[0][0] < now_ns:
            window.seen.pop(window.expiry.popleft()[1], None)
        seen = window.seen.get(message_id)
        if seen == leaf:
            raise DuplicateError(f"message {leaf.hex()[:16]} was taken before")
        if seen is not None:
            raise ReplayedError(f"message {message_id.hex()} was seen before from this key")
        if len(window.seen) >= self._max:
            raise ExhaustedError(f"more than {self._max} live messages of one key", reason="replay_window_full")
        window.seen[message_id] = leaf
        # Expiries are nearly in order; one that is late keeps those behind it a little longer, never shorter.
        window.expiry.append((until_ns, message_id))


class Ledger:
    """Ids of stored messages: *claimed* while a handler works on one, then *done*.

    This ledger lives in the process's memory and holds the last ``max_done`` ids: it makes the two channels
    of an emergency one delivery, and drops what the broker delivers again. What must hold across a restart is
    keyed by the operation itself (a work's digest, a decision's id) at the place where the effect is recorded.
    """

    def __init__(self, max_done: int = 200_000) -> None:
        self._max = max_done
        self._claimed: set[bytes] = set()
        self._done: OrderedDict[bytes, None] = OrderedDict()

    def claim(self, leaf: bytes) -> None:
        """Claim a message by its leaf hash.

        Raises:
            ClaimedError: it is claimed.
            DuplicateError: it is done.
        """
        if leaf in self._claimed:
            raise ClaimedError(f"message {leaf.hex()[:16]} is being handled")
        if leaf in self._done:
            raise DuplicateError(f"message {leaf.hex()[:16]} was taken before")
        self._claimed.add(leaf)

    def done(self, leaf: bytes) -> None:
        """Record that the claimed message's effect stands."""
        self._claimed.discard(leaf)
        self._done[leaf] = None
        if len(self._done) > self._max:
            self._done.popitem(last=False)

    def release(self, leaf: bytes) -> None:
        """Give a claimed message back: its handler failed, and it may run again."""
        self._claimed.discard(leaf)
