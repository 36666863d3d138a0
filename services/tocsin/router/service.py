"""The router's shell: verified messages in, the sender's own bytes out.

One line for each priority, so a flood of ordinary messages does not hold an emergency up.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.bus import Arrival, Bus, Context, Sent, Service, subscribes
from tocsin.bus.sealing import SealingKeys
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERTS_OF_ALL, EVENT, RECEIPT, ROUTE
from tocsin.contracts.errors import DeniedError, ExhaustedError, InvalidInputError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import Priority, ServiceName
from tocsin.contracts.routing import Delivery, Receipts
from tocsin.router.announcer import Announcer
from tocsin.router.clocks import ClockTeller
from tocsin.router.copies import Copies
from tocsin.router.emergencies import Emergencies
from tocsin.router.limits import Excess, RateLimits
from tocsin.router.policy import route
from tocsin.router.pursuit import ACCOUNTS, Pursuit
from tocsin.router.recipients import check_recipients, check_standing
from tocsin.router.settings import RouterSettings

STOP_TIMEOUT_S = 3.0


class RouterService(Service[RouterSettings]):
    """Brings agents' messages to those whom the policy allows, and proves that emergencies arrived."""

    name = ServiceName.ROUTER

    def __init__(self, bus: Bus, settings: RouterSettings) -> None:
        super().__init__(bus, settings)
        self.announcer = Announcer(bus, settings)
        self.pursuit = Pursuit(bus, settings, self.announcer)
        self.emergencies = Emergencies(bus, settings, self.announcer, self.pursuit)
        self.roster = self.pursuit.roster
        self.sealing_keys = SealingKeys(bus)
        bus.opener.bodies.forwards = True
        self.copies = Copies(bus)
        self.limits = RateLimits(
            per_s=settings.messages_per_sender_per_s,
            burst=settings.burst_per_sender,
            known=self._knows,
        )
        self.excess = Excess(per_s=settings.messages_per_sender_per_s)
        self._clocks = ClockTeller(bus, self.announcer, per_s=settings.clock_checks_per_s)

    async def prepare(self) -> None:
        """Know who is enrolled, and whose the keys are that bodies are sealed to, before the first message."""
        await asyncio.gather(self.roster.follow(), self.sealing_keys.follow())

    async def started(self) -> None:
        """Announce, and take up emergencies; then hear what agents say."""
        self.announcer.start()
        self.copies.start()
        self.pursuit.start()
        self._clocks.start()
        await self.bus.subscribe_by_priority(ROUTE, self.forward, queue=self.name.value, admit=self._admit)

    async def stopping(self) -> None:
        """Publish the accounts that are closed; what is open is left to the other routers, or the next start."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.announcer.finish()
        except TimeoutError:
            self.metrics.count("accounts_untold")

    async def forward(self, body: Message, context: Context) -> None:
        """Forward one message, or tell its sender why not."""
        content = context.content
        for name in self.excess.verified(context.sender.name, at_s=time.monotonic()):
            self.metrics.count("rates_exceeded")
            self.announcer.exceeded(name)
        if self.limits.proved(context.sender.name):
            self.announcer.limited(context.sender.name, self.limits.refusal(context.sender.name))
        try:
            way = route(
                content.type, context.sender, content.audience, context.priority, body, self.roster.role_of
            )
            check_recipients(context.kind, body, self.sealing_keys.roles_of)
            standings = self.bus.standings
            check_standing(
                context.kind, way.audience, body, standings.is_quarantined, self.sealing_keys.is_quarantined
            )
            if way.backup is not None:
                await self.emergencies.take(way, body, context)
        except (DeniedError, InvalidInputError, UntrustedError) as error:
            await self._refuse(error, context)
            return
        if way.backup is None:
            await self.bus.send(way.subject, Sent.of(context))
            if way.copy is not None:
                self.copies.add(way.copy, Sent.of(context))
        self._measure(context)

    @subscribes(ALERTS_OF_ALL, at={"severity": Priority.CRITICAL.token})
    async def on_stored(self, body: Message, context: Context) -> None:
        """Hear of an emergency that another router has taken, or this one."""
        self.pursuit.on_stored(body, context)

    @subscribes(EVENT, at=ACCOUNTS)
    async def on_account(self, body: Delivery, _: Context) -> None:
        """Hear that an emergency was accounted for."""
        self.pursuit.on_account(body)

    @subscribes(RECEIPT)
    async def on_receipts(self, body: Receipts, context: Context) -> None:
        """Count receipts; every router gets all of them."""
        try:
            self.pursuit.on_receipts(body, context)
        except DeniedError as error:
            self.bus.reject(error, context.subject, context.data)

    def _knows(self, name: str) -> bool:
        """Tell whether a sender has an allowance of its own before it is proven: agents, and who operates Tocsin."""
        if self.roster.role_of(name) is not None:
            return True
        # Of the services only these hand messages in to routers; the subject has their instance as its name.
        return any(
            self.bus.trust.has_certified(f"spiffe://{self.bus.trust.domain}/service/{service}/{name}")
            for service in (ServiceName.CLI, ServiceName.CONSENSUS)
        )

    def _admit(self, arrival: Arrival) -> None:
        """Hold back who sends too much, before anything is spent on the message."""
        sender = arrival.sender_name or ""
        urgent = arrival.priority == Priority.CRITICAL.token
        try:
            self.limits.take(sender, urgent=urgent, at_s=time.monotonic())
        except ExhaustedError as error:
            self.metrics.count(f"refused.{error.reason}")
            if self.limits.is_proven(sender):
                self.excess.held_back(sender)
                self.announcer.limited(sender, error)
            raise

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
