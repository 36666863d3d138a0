"""Tell the outside what became of messages, beside the lines that forward them.

Refusals are told within bounds and never twice: beyond a sender's budget or a full line they are counted
(``refusals_untold``) and audited only. Accounts of emergencies are kept until stream EVENTS has them.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import EVENT_DELIVERY, EVENT_REFUSAL
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.routing import Delivery, Refusal
from tocsin.router.budget import Budget
from tocsin.router.settings import RouterSettings
from tocsin.telemetry import get_logger

RETRY_PAUSE_S = 0.5

log = get_logger(__name__)


class Announcer:
    """Publishes ``event.router.refusal`` and ``event.router.delivery``."""

    def __init__(self, bus: Bus, settings: RouterSettings) -> None:
        self._bus = bus
        self._budget = Budget(settings.refusals_per_sender_per_s)
        self._refusals: asyncio.Queue[Refusal] = asyncio.Queue(settings.max_refusals_waiting)
        self._accounts: asyncio.Queue[Delivery] = asyncio.Queue(settings.max_emergencies)

    def start(self) -> None:
        """Begin to publish."""
        self._bus.spawn(self._publish_refusals(), "refusals")
        self._bus.spawn(self._publish_accounts(), "accounts")

    def refused(self, context: Context, error: TocsinError) -> None:
        """Tell a sender why its message was not forwarded."""
        self.tell(context.id, context.sender.name, error)

    def limited(self, agent: str, error: TocsinError) -> None:
        """Tell a sender that it was held back; of which message is not known, since none was read."""
        self.tell(None, agent, error)

    def exceeded(self, agent: str) -> None:
        """Tell of a sender that exceeds its allowance by its own messages: once a second at most, beyond its budget."""
        detail = "a second of its own messages at twice its allowance"
        if self._refusals.full():
            self._bus.metrics.count("refusals_untold")
            return
        self._refusals.put_nowait(Refusal(message=None, agent=agent, reason="rate_exceeded", detail=detail))

    def tell(self, message: bytes | None, agent: str, error: TocsinError) -> None:
        """Tell an agent what was wrong with a message; whose it is, the caller knows."""
        refusal = Refusal(message=message, agent=agent, reason=error.reason, detail=str(error)[:512])
        if self._refusals.full() or not self._budget.take(agent, at_s=time.monotonic()):
            self._bus.metrics.count("refusals_untold")
            return
        self._refusals.put_nowait(refusal)

    def accounted(self, delivery: Delivery) -> None:
        """Tell how an emergency ended; when the line is full its account goes to the log instead."""
        self._bus.metrics.count("emergencies_complete" if delivery.complete else "emergencies_incomplete")
        if self._accounts.full():
            self._bus.metrics.count("accounts_untold")
            log.error("account_untold", **delivery.model_dump(mode="json"))
            return
        self._accounts.put_nowait(delivery)

    async def finish(self) -> None:
        """Wait until every account has been published."""
        await self._accounts.join()

    async def _publish_refusals(self) -> None:
        while True:
            refusal = await self._refusals.get()
            try:
                await self._bus.event(EVENT_REFUSAL, refusal, durable=False)
            except TocsinError as error:
                self._bus.metrics.count("refusals_untold")
                log.warning("refusal_untold", reason=error.reason)

    async def _publish_accounts(self) -> None:
        while True:
            await self._publish(await self._accounts.get())
            self._accounts.task_done()

    async def _publish(self, delivery: Delivery) -> None:
        while True:
            try:
                await self._bus.event(EVENT_DELIVERY, delivery)
            except TocsinError as error:
                self._bus.metrics.count(f"account_retries.{error.reason}")
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                return
