"""Tell every participant how a decision ended, closed ones included, with proof of delivery.

The result goes out as emergencies do: through a router, on core and by stream ALERTS, confirmed by signed receipts,
retried, and accounted for agent by agent on ``event.router.delivery`` (docs/adr/0009). The instance that has announced
sends it; another does where none was heard when it looks whether the announcement stands, and an instance that starts
does for announcements of the last minutes that have none. So one can go out twice, and agents take the first.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from itertools import chain, repeat
from typing import cast

from tocsin.bus import Bus, Sent
from tocsin.contracts.catalogue import ALERTS_OF_ALL, CONSENSUS_DECISION, DECISION_RESULT
from tocsin.contracts.decisions import DecisionAnnounced
from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import Priority
from tocsin.telemetry import Metrics, get_logger

ANSWER_S = 5.0
"""For how long a router is asked at a time."""
PAUSES_S = (0.5, 2.0, 5.0)
WITHIN_S = 300.0
"""For how long it is tried; the announcement stands, whatever becomes of this."""
RECALL_S = 300.0
"""How far an instance that starts looks back."""
MAX_TOLD = 4096

log = get_logger(__name__)


class Notifier:
    """Sends results of decisions, each once as far as this instance knows."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._metrics = metrics
        self._told: OrderedDict[bytes, None] = OrderedDict()

    def heard(self, result: DecisionAnnounced) -> None:
        """Know that a decision's result is on its way."""
        self._told[result.decision] = None
        self._told.move_to_end(result.decision)
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    def notify(self, announced: DecisionAnnounced) -> None:
        """Send the result of a decision that was announced, unless one was heard."""
        if announced.decision in self._told:
            return
        self.heard(announced)
        self._bus.spawn(self._send(announced), "result")

    async def recall(self) -> None:
        """Send the results of what was announced lately and never told."""
        since_ns = time.time_ns() - int(RECALL_S * 1e9)
        try:
            told = await self._bus.reader(ALERTS_OF_ALL, start_ns=since_ns).read()
            announced = await self._bus.reader(CONSENSUS_DECISION, start_ns=since_ns).read()
        except UnavailableError as error:
            self._metrics.count(f"results_not_recalled.{error.reason}")
            return
        for stored in told:
            if isinstance(stored.body, DecisionAnnounced):
                self.heard(stored.body)
        for stored in announced:
            self.notify(cast("DecisionAnnounced", stored.body))

    async def _send(self, announced: DecisionAnnounced) -> None:
        # Who wants to check the commit has it in the announcement.
        result = announced.model_copy(update={"commit": ()})
        try:
            sent = await self._bus.make(DECISION_RESULT, result, audience="all", priority=Priority.CRITICAL)
            async with asyncio.timeout(WITHIN_S):
                await self._until_taken(sent)
        except (TocsinError, TimeoutError) as error:
            reason = getattr(error, "reason", "no_answer")
            self._metrics.count(f"results_not_sent.{reason}")
            log.warning("result_not_sent", decision=announced.decision.hex(), reason=reason)
        else:
            self._metrics.count("results_sent")

    async def _until_taken(self, sent: Sent) -> None:
        for pause_s in chain(PAUSES_S, repeat(PAUSES_S[-1])):
            try:
                await self._bus.emergency(sent, self._bus.id, timeout_s=ANSWER_S, kind=DECISION_RESULT)
            except (UnavailableError, ExhaustedError) as error:
                self._metrics.count(f"results_not_taken.{error.reason}")
                await asyncio.sleep(pause_s)
            else:
                return
