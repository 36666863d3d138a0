"""The router's shell: verified messages in, the sender's own bytes out.

One line for each priority, so a flood of ordinary messages does not hold an emergency up.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.bus import Bus, Context, Sent, Service, subscribes
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import EVENT, RECEIPT, ROUTE
from tocsin.contracts.errors import DeniedError, InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority, ServiceName
from tocsin.contracts.routing import Delivery, Receipts
from tocsin.router.announcer import Announcer
from tocsin.router.emergencies import ACCOUNTS, ALERTS_OF_ALL, Emergencies
from tocsin.router.policy import route
from tocsin.router.settings import RouterSettings

STOP_TIMEOUT_S = 3.0


class RouterService(Service[RouterSettings]):
    """Brings agents' messages to those whom the policy allows, and proves that emergencies arrived."""

    name = ServiceName.ROUTER

    def __init__(self, bus: Bus, settings: RouterSettings) -> None:
        super().__init__(bus, settings)
        self.announcer = Announcer(bus, settings)
        self.emergencies = Emergencies(bus, settings, self.announcer)
        self.roster = self.emergencies.roster

    async def prepare(self) -> None:
        """Know who is enrolled before the first emergency."""
        await self.roster.follow()

    async def started(self) -> None:
        """Announce, and take up emergencies."""
        self.announcer.start()
        self.emergencies.start()

    async def stopping(self) -> None:
        """Publish the accounts that are closed; what is open is left to the other routers, or the next start."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.announcer.finish()
        except TimeoutError:
            self.metrics.count("accounts_untold")

    @subscribes(ROUTE, shared=True, at={"priority": "low"})
    @subscribes(ROUTE, shared=True, at={"priority": "normal"})
    @subscribes(ROUTE, shared=True, at={"priority": "high"})
    @subscribes(ROUTE, shared=True, again=True, at={"priority": "critical"})
    async def forward(self, body: Message, context: Context) -> None:
        """Forward one message, or tell its sender why not."""
        content = context.content
        try:
            way = route(
                content.type, context.sender, content.audience, context.priority, body, self.roster.role_of
            )
        except (DeniedError, InvalidInputError) as error:
            await self._refuse(error, context)
            return
        if way.backup is None:
            await self.bus.send(way.subject, _sent(context))
        else:
            try:
                await self.emergencies.take(way, body, context)
            except TocsinError as error:
                await self._refuse(error, context)
                return
        self._measure(context)

    @subscribes(ALERTS_OF_ALL, at={"severity": Priority.CRITICAL.token})
    async def on_stored(self, body: Message, context: Context) -> None:
        """Hear of an emergency that another router has taken, or this one."""
        self.emergencies.on_stored(body, context)

    @subscribes(EVENT, at=ACCOUNTS)
    async def on_account(self, body: Delivery, _: Context) -> None:
        """Hear that an emergency was accounted for."""
        self.emergencies.on_account(body)

    @subscribes(RECEIPT)
    async def on_receipts(self, body: Receipts, context: Context) -> None:
        """Count receipts; every router gets all of them."""
        try:
            self.emergencies.on_receipts(body, context)
        except DeniedError as error:
            self.bus.reject(error, context.subject, context.data)

    async def _refuse(self, error: TocsinError, context: Context) -> None:
        """Tell a sender why its message goes nowhere."""
        self.bus.reject(error, context.subject, context.data)
        self.metrics.count(f"refused.{error.reason}")
        self.announcer.refused(context, error)
        if context.priority is Priority.CRITICAL:
            await self.emergencies.refuse(error, context)

    def _measure(self, context: Context) -> None:
        now_ns = time.time_ns()
        self.metrics.count(f"routed.{context.content.type}")
        self.metrics.observe_ms("route", (now_ns - context.content.issued_at) / 1e6)
        self.metrics.observe_ms("route_inside", (now_ns - context.now_ns) / 1e6)


def _sent(context: Context) -> Sent:
    return Sent(context.id, context.leaf, context.data, context.content.issued_at)
