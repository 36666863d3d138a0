"""An allowance by sender, applied before anything costly is done for a message.

Pure: moments in monotonic seconds come in. A sender may send ``per_s`` messages a second in the long run and
``burst`` at once (a token bucket, kept as one number: the generic cell rate algorithm of ITU-T I.371 annex A).
Emergencies have an allowance of their own, so that a sender's flood cannot silence its own alarm.

The sender is whoever the subject names, which is not proven yet. So an agent's allowance can be used up by
whoever can publish on its subject, and nobody else's. Names that are neither known nor proven share one
allowance: made-up names gain nothing, and what is remembered is bounded by those that are known.

It is one router's: a sender has as many allowances as there are routers that share its messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tocsin.contracts.errors import ExhaustedError

MAX_PROVEN = 16_384
"""Senders remembered as proven; those beyond go by who is known alone."""
SLACK = 0.001
"""Of a message: the sums of floats must not decide about the last one of a burst."""
OWN = 0.9
"""Share of an allowance that a sender's own messages have used before it is said to exceed it."""
STRANGERS = ""
"""The name that all unknown ones share; no agent has it."""


class RateLimits:
    """The senders' allowances at one router.

    Args:
        per_s: messages that a sender may send each second, in the long run.
        burst: messages that it may send at once.
        known: tells whether that name is an enrolled agent's, or another sender's that is certified.
    """

    def __init__(self, *, per_s: float, burst: int, known: Callable[[str], bool]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._known = known
        self._proven: set[str] = set()
        self._untold: set[str] = set()
        self._spent_until_s: dict[bool, dict[str, float]] = {False: {}, True: {}}

    def take(self, sender: str, *, urgent: bool, at_s: float) -> None:
        """Take one message from the sender's allowance. O(1).

        Raises:
            ExhaustedError: ``rate_limited``; nothing was taken.
        """
        spent = self._spent_until_s[urgent]
        who = sender if sender in self._proven or self._known(sender) else STRANGERS
        until_s = max(spent.get(who, at_s), at_s)
        if (until_s - at_s) * self._per_s > self._burst - 1 + SLACK:
            if who and who not in self._proven:
                self._untold.add(who)
            raise self.refusal(sender)
        spent[who] = until_s + 1 / self._per_s

    def refusal(self, sender: str) -> ExhaustedError:
        """Return the error that says what the allowance is."""
        allowed = f"more than {self._per_s:g} messages a second ({self._burst} at once)"
        return ExhaustedError(f"{allowed} by {sender[:64]}", reason="rate_limited")

    def proved(self, sender: str) -> bool:
        """Record that a message of this sender was verified; tell whether it was held back before that.

        Only a sender that is proven is told, or anybody could have others told whatever they like.
        """
        if sender in self._proven or len(self._proven) >= MAX_PROVEN:
            return False
        self._proven.add(sender)
        was_held_back = sender in self._untold
        self._untold.discard(sender)
        return was_held_back

    def is_proven(self, sender: str) -> bool:
        """Tell whether a message of this sender was verified here."""
        return sender in self._proven


class Excess:
    """Which senders exceed their allowance by messages of their own, second by second.

    That messages on a sender's subject were held back does not say whose they were: none was read. But what others
    publish there takes from the same allowance. So where nearly all of an allowance (:data:`OWN`) went to messages that
    were verified, and as many again were held back, the sender itself sends too much, or at least all that it may.

    Args:
        per_s: messages that a sender may send each second.
    """

    def __init__(self, *, per_s: float) -> None:
        self._per_s = per_s
        self._second = 0
        self._verified: Counter[str] = Counter()
        self._held_back: Counter[str] = Counter()

    def held_back(self, sender: str) -> None:
        """Take note of a message that was not admitted; of senders that are known, so the memory is bounded."""
        self._held_back[sender] += 1

    def verified(self, sender: str, *, at_s: float) -> list[str]:
        """Take note of a message that was verified; return who has exceeded in the second that is over, if one is."""
        exceeded: list[str] = []
        if int(at_s) != self._second:
            exceeded = [
                name
                for name, count in self._held_back.items()
                if count >= self._per_s and self._verified[name] >= OWN * self._per_s
            ]
            self._second = int(at_s)
            self._verified.clear()
            self._held_back.clear()
        self._verified[sender] += 1
        return exceeded
