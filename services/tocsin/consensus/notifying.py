"""Tell every participant how a decision ended, closed ones included, with proof of delivery.

The result goes out as emergencies do: through a router, on core and by stream ALERTS, confirmed by signed receipts,
retried, and accounted for agent by agent on ``event.router.delivery`` (docs/adr/0009). It is the announcement itself,
with the commit that proves it: agents hear no other. The instance that has announced sends it; the others stand by and
send it if none has been delivered by then, and an instance that starts does for announcements of the last minutes
that have none. So one can go out twice, and agents take the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple

from tocsin.agent.ends import Ends
from tocsin.agent.roles.memory import Memory
from tocsin.bus import Bus, Context, Sent
from tocsin.bus.reader import Stored
from tocsin.contracts.catalogue import ALERTS_OF_ALL, CONSENSUS_DECISION, DECISION_RESULT
from tocsin.contracts.decisions import DecisionAnnounced
from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority
from tocsin.telemetry import Metrics, get_logger

WITHIN_S = 300.0
"""For how long it is tried; the announcement stands, whatever becomes of this."""
RECALL_S = 300.0
"""How far an instance that starts looks back."""
MAX_KEPT = 4096
"""Results that are remembered as delivered, and results that wait to be sent: the announcement stands without them."""

log = get_logger(__name__)


class Patience(NamedTuple):
    """How a router is asked until one takes a result; pauses are half as long again at most: not all ask at once."""

    stand_by_s: float
    answer_s: float
    """For how long it is asked at a time."""
    pauses_s: tuple[float, ...]
    """The last one repeats."""


OWN = Patience(0.0, 5.0, (0.5, 2.0, 5.0))
"""Of the instance that has announced."""
OTHERS = Patience(3.0, 0.5, (5.0, 15.0, 30.0))
"""They step in for one that is dead; where there is no router, it is the announcer that waits for one."""


class Notifier:
    """Sends results of decisions, each once as far as this instance knows.

    Args:
        bus: the instance's.
        ends: proves what others announce and tell.
        metrics: the process's figures.
    """

    def __init__(self, bus: Bus, ends: Ends, metrics: Metrics) -> None:
        self._bus = bus
        self._ends = ends
        self._metrics = metrics
        self._delivered: Memory[bytes, None] = Memory(MAX_KEPT)
        self._sending: dict[bytes, asyncio.Event] = {}
        """By decision: set once somebody's result of it is delivered."""

    def heard(self, result: DecisionAnnounced, context: Context) -> None:
        """Hear a result that a router delivers: once it is proven, nobody else has to send it."""
        self._ends.once_proven(result, context, partial(self._is_delivered, result.decision))

    def _is_delivered(self, decision: bytes) -> None:
        self._delivered.keep(decision, None)
        if (waits := self._sending.get(decision)) is not None:
            waits.set()

    def notify(self, announced: DecisionAnnounced, *, own: bool) -> None:
        """Send the result of a decision that was announced and is proven, unless it is delivered meanwhile.

        Args:
            announced: what was announced.
            own: by this instance.
        """
        if announced.decision in self._delivered or announced.decision in self._sending:
            return
        if len(self._sending) >= MAX_KEPT:
            self._metrics.count("results_not_sent.too_many")
            return
        self._sending[announced.decision] = asyncio.Event()
        self._bus.spawn(self._send(announced, OWN if own else OTHERS), "result")

    async def recall(self) -> None:
        """Send the results of what was announced lately and never told."""
        since_ns = time.time_ns() - int(RECALL_S * 1e9)
        try:
            told = await self._bus.reader(ALERTS_OF_ALL, start_ns=since_ns).read()
            announced = await self._bus.reader(CONSENSUS_DECISION, start_ns=since_ns).read()
        except UnavailableError as error:
            self._metrics.count(f"results_not_recalled.{error.reason}")
            return
        for body in await self._proven(told):
            self._delivered.keep(body.decision, None)
        for body in await self._proven(announced):
            self.notify(body, own=False)

    async def _proven(self, stored: Iterable[Stored]) -> list[DecisionAnnounced]:
        ends = ((one.body, one.context) for one in stored)
        return [
            body
            for body, context in ends
            if isinstance(body, DecisionAnnounced) and await self._ends.holds(body, context)
        ]

    async def _send(self, announced: DecisionAnnounced, patience: Patience) -> None:
        delivered = self._sending[announced.decision]
        try:
            if await _within(patience.stand_by_s, delivered):
                self._metrics.count("results_of_others")
                return
            sent = await self._bus.make(DECISION_RESULT, announced, audience="all", priority=Priority.CRITICAL)
            async with asyncio.timeout(WITHIN_S):
                await self._until_taken(sent, delivered, patience)
        except (TocsinError, TimeoutError) as error:
            reason = getattr(error, "reason", "no_answer")
            self._metrics.count(f"results_not_sent.{reason}")
            log.warning("result_not_sent", decision=announced.decision.hex(), reason=reason)
        finally:
            del self._sending[announced.decision]

    async def _until_taken(self, sent: Sent, delivered: asyncio.Event, patience: Patience) -> None:
        for pause_s in chain(patience.pauses_s, repeat(patience.pauses_s[-1])):
            try:
                await self._bus.emergency(sent, self._bus.id, timeout_s=patience.answer_s, kind=DECISION_RESULT)
            except (UnavailableError, ExhaustedError) as error:
                self._metrics.count(f"results_not_taken.{error.reason}")
                if await _within(pause_s, delivered):
                    self._metrics.count("results_of_others")
                    return
            else:
                self._metrics.count("results_sent")
                return


async def _within(pause_s: float, event: asyncio.Event) -> bool:
    """Wait for an event, for as long as the pause or half as long again; tell whether it has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(pause_s * random.uniform(1.0, 1.5)):  # noqa: S311 - it need not be secret
            await event.wait()
    return event.is_set()
