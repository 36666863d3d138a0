"""What came before its proposal, and waits for it: some ballots of each agent, some steps of each instance.

When a bound is reached the newcomer is refused; nothing is evicted, so nobody can push out what others have sent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tocsin.contracts.errors import ExhaustedError

T = TypeVar("T")


@dataclass(slots=True)
class _Waiting(Generic[T]):
    since_ns: int
    by_sender: dict[str, dict[Hashable, T]] = field(default_factory=dict)


class Held(Generic[T]):
    """Messages by decision and sender."""

    def __init__(
        self, *, decisions_each: int, messages_each: int, kept_ns: int, key: Callable[[T], Hashable]
    ) -> None:
        """Hold messages for a while.

        Args:
            decisions_each: for so many decisions one sender's are held.
            messages_each: so many of one sender for one decision; further ones are dropped.
            kept_ns: how long.
            key: of two messages of a sender with one key the first is kept.
        """
        self._decisions_each = decisions_each
        self._messages_each = messages_each
        self._kept_ns = kept_ns
        self._key = key
        self._held: dict[bytes, _Waiting[T]] = {}

    def add(self, decision: bytes, sender: str, message: T, now_ns: int) -> None:
        """Hold a message.

        Raises:
            ExhaustedError: ``too_many_held``.
        """
        waiting = self._held.get(decision)
        mine = None if waiting is None else waiting.by_sender.get(sender)
        if mine is None:
            count = sum(sender in other.by_sender for other in self._held.values())
            if count >= self._decisions_each:
                raise ExhaustedError(
                    f"messages of {sender} wait for {count} proposals already", reason="too_many_held"
                )
            if waiting is None:
                waiting = self._held[decision] = _Waiting(now_ns)
            mine = waiting.by_sender.setdefault(sender, {})
        if len(mine) < self._messages_each:
            mine.setdefault(self._key(message), message)

    def pop(self, decision: bytes) -> list[T]:
        """Return what was held for a decision, and hold it no more."""
        waiting = self._held.pop(decision, None)
        return [] if waiting is None else [m for mine in waiting.by_sender.values() for m in mine.values()]

    def forget(self, now_ns: int) -> None:
        """Drop what has waited too long."""
        for decision in [d for d, waiting in self._held.items() if waiting.since_ns + self._kept_ns < now_ns]:
            del self._held[decision]

    def waiting(self) -> list[tuple[bytes, int, list[str]]]:
        """Return each decision, since when something waits for it, and of whom."""
        return [(d, waiting.since_ns, sorted(waiting.by_sender)) for d, waiting in self._held.items()]
