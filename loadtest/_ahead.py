"""A host that signs what it will send before the traffic starts, so that its signatures take no time from it.

The envelopes are those that a host of many agents sends: each is signed by its agent's own key, alone (a batch of
one), and is issued at the moment when it is due. Only the signing is moved; everything after it stays where it was.

The clock rules of the class *live* (docs/reference/envelope.md) judge when an envelope arrives, not when it was
signed. So the start is planned before the signing, and one that must be moved is moved by less than they allow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from _host import HostPlan, HostPlane
from _worker import work

from tocsin.bus import Sent
from tocsin.contracts.catalogue import ROUTE
from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.identifiers import Priority
from tocsin.crypto import Algorithm, LocalKey, SignatureBackend, sign_batch

MAX_AHEAD = 300_000
"""Messages signed ahead for one run: some 4.5 kB each, held by the hosts."""
MAX_SIGNING_S = 300.0
MAX_SHIFT_S = 20.0
"""By how much a start may come later than planned: an envelope is good for its ttl and 30 s after it was issued."""
SPARE = 1.5
"""The signing is planned to take so many times what a trial leads to expect: hosts share the cores."""
PAUSE_S = 1.0
TRIAL = 32
"""Signatures made to learn what one costs."""
OTHERS_S = 0.0004
"""What an envelope costs besides its signature: its body, its content, the way to a thread and back."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How long the signing is planned to take."""

    planned_s: float

    def shifted(self, shift_s: float) -> None:
        """Check that a start that comes so much later is within the clock rules.

        Raises:
            ExhaustedError: ``signing_too_slow``.
        """
        if shift_s > MAX_SHIFT_S:
            raise ExhaustedError(
                f"signing took {shift_s:.0f} s longer than the {self.planned_s:.0f} s planned; what was signed "
                "would be too old: use fewer --seconds or a lower --rate",
                reason="signing_too_slow",
            )


def plan_ahead(messages: int, each_s: float, hands: int) -> Ahead:
    """Plan the signing of so many messages, by so many processes at a time.

    Raises:
        InvalidInputError: ``too_many_ahead``: it would take too long or too much memory.
    """
    planned_s = PAUSE_S + SPARE * messages * (each_s + OTHERS_S) / hands
    if messages > MAX_AHEAD or planned_s > MAX_SIGNING_S:
        raise InvalidInputError(
            f"signing {messages:,} messages ahead would take {planned_s:.0f} s; at most {MAX_AHEAD:,} messages and "
            f"{MAX_SIGNING_S:.0f} s: use fewer --seconds or a lower --rate",
            reason="too_many_ahead",
        )
    return Ahead(planned_s)


def signature_s(backend: SignatureBackend, algorithm: Algorithm) -> float:
    """Return what a signature costs here, in seconds: the median of a few."""
    signer = LocalKey.generate(backend, algorithm).signer
    took = []
    for number in range(TRIAL):
        begun = time.perf_counter()
        sign_batch(signer, [number.to_bytes(8, "big")])
        took.append(time.perf_counter() - begun)
    return sorted(took)[TRIAL // 2]


class AheadPlane(HostPlane):
    """Sends envelopes that were made before."""

    def __init__(self, plan: HostPlan) -> None:
        super().__init__(plan)
        self._made: dict[int, Sent] = {}

    async def sign_ahead(self, start_ns: int, messages: Iterator[tuple[int, str, str]]) -> None:
        """Make every message, issued when it is due; one at a time, so that each is signed alone."""
        wall_ns = time.time_ns() - time.monotonic_ns()
        for number, sender, recipient in messages:
            self._made[number] = await self._bus.make(
                self._kind,
                self._bodies.pop(number),
                audience=f"agent.{recipient}",
                sender=self._ids[sender],
                now_ns=wall_ns + start_ns + self._plan.schedule.due_ns(number),
            )

    async def send(self, number: int, sender: str, recipient: str) -> None:  # type: ignore[override]  # awaited: a plane may
        """Send one message through the router."""
        del recipient  # the envelope names it
        subject = ROUTE.at(type=self._kind.name, priority=Priority.NORMAL.token, agent=sender)
        await self._bus.send(subject, self._made.pop(number))


if __name__ == "__main__":
    work(HostPlan, AheadPlane)
