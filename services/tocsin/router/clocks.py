"""Tell a sender that its clock is wrong, and by how much.

A message that is refused by its time was not verified: anybody can have made it. So only here, beside the lines that
forward, and for a few such messages a second, the rest is verified as if it had arrived at the moment that it
names. Only a message that holds in all other respects is answered, with reason ``clock``.

Does not tell a slow clock from a message that somebody has recorded and sends again later: what it says is true of
both. A sender whose clock is behind has to read the answer with a clock that is right.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from tocsin.bus import Bus
from tocsin.bus.envelope import Content, decode_envelope
from tocsin.contracts.catalogue import ROUTE
from tocsin.contracts.errors import TocsinError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import BatchVerifier, TrustStore
from tocsin.router.announcer import Announcer
from tocsin.router.budget import Budget
from tocsin.telemetry import get_logger

CLOCK_REASONS = frozenset({"issued_in_future", "expired", "certificate_expired"})
"""Refusals that a wrong clock can cause: the last where a certificate is younger than the clock is slow."""
ROUTED = ROUTE.pattern().partition("*")[0]
MAX_WAITING = 64
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Refused:
    data: bytes
    subject: str
    at_ns: int


class ClockTeller:
    """Verifies what was refused by its time, and has the announcer tell its sender.

    Args:
        bus: whose refusals are looked at.
        announcer: tells them.
        per_s: full verifications each second, of all senders together.
    """

    def __init__(self, bus: Bus, announcer: Announcer, *, per_s: int) -> None:
        self._bus = bus
        self._announcer = announcer
        self._budget = Budget(per_s)
        self._waiting: asyncio.Queue[_Refused] = asyncio.Queue(MAX_WAITING)

    def start(self) -> None:
        """Begin to look at refusals."""
        self._bus.on_reject(self._rejected)
        self._bus.spawn(self._run(), "clocks")

    def _rejected(self, error: TocsinError, subject: str, data: bytes) -> None:
        if error.reason not in CLOCK_REASONS or not subject.startswith(ROUTED):
            return
        # One budget for all: whom it names is a claim so far.
        if self._waiting.full() or not self._budget.take("", at_s=time.monotonic()):
            self._bus.metrics.count("clocks_untold")
            return
        self._waiting.put_nowait(_Refused(data, subject, time.time_ns()))

    async def _run(self) -> None:
        while True:
            refused = await self._waiting.get()
            try:
                content = await asyncio.to_thread(_verify, refused, self._bus.trust)
            except TocsinError as error:
                self._bus.metrics.count(f"clocks_untold.{error.reason}")
                continue
            offset_s = (content.issued_at - refused.at_ns) / NS_PER_S
            self._bus.metrics.count("clocks_told")
            log.warning("clock_off", sender=content.sender, offset_s=round(offset_s, 1))
            self._announcer.tell(content.id, SpiffeId.parse(content.sender).name, clock_error(offset_s))


def _verify(refused: _Refused, trust: TrustStore) -> Content:
    """Verify all of a message that its sender needs to be believed, but its time.

    Raises:
        TocsinError: it does not hold, or its key speaks for nobody now.
    """
    envelope = decode_envelope(refused.data, max_bytes=ROUTE.max_bytes)
    content = envelope.content
    identity = trust.identity(envelope.key_id)
    if identity is None or not identity.valid_at(refused.at_ns):
        raise UntrustedError("its key speaks for nobody now", reason="certificate_expired")
    if not identity.names(content.sender):
        raise UntrustedError("the certificate does not name this sender", reason="wrong_sender")
    if ROUTE.parse(refused.subject)["agent"] != SpiffeId.parse(content.sender).name:
        raise UntrustedError("the subject names another sender", reason="wrong_subject")
    BatchVerifier(1).verify(identity.verifier, envelope.leaf, envelope.proof)
    return content


def clock_error(offset_s: float) -> UntrustedError:
    """Return the refusal that tells an offset in seconds: positive where the sender's clock is ahead."""
    side = "ahead of" if offset_s > 0 else "behind"
    return UntrustedError(
        f"issued {abs(offset_s):.1f} s {side} this router's clock: is the sender's clock right?", reason="clock"
    )
