"""The router's shell: verified messages in, the sender's own bytes out, receipts counted.

One line for each priority, so a flood of ordinary messages does not hold an emergency up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from tocsin.bus import Arrival, Bus, Context, Sent, Service, subscribes
from tocsin.bus.sealing import SealingKeys
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERT_BACKUP, RECEIPT, ROUTE
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
)
from tocsin.contracts.identifiers import Priority, ServiceName
from tocsin.contracts.routing import Receipts
from tocsin.router.announcer import Announcer
from tocsin.router.clocks import ClockTeller
from tocsin.router.copies import Copies
from tocsin.router.limits import RateLimits
from tocsin.router.policy import Route, route
from tocsin.router.recipients import check_recipients
from tocsin.router.roster import Roster
from tocsin.router.settings import RouterSettings
from tocsin.router.tracker import Confirmation, Emergency, Schedule, Tracker, who_is_due
from tocsin.telemetry import get_logger

BACKUP_PAUSE_S = 0.25
STOP_TIMEOUT_S = 3.0

log = get_logger(__name__)


class RouterService(Service[RouterSettings]):
    """Brings agents' messages to those whom the policy allows, and proves that emergencies arrived."""

    name = ServiceName.ROUTER

    def __init__(self, bus: Bus, settings: RouterSettings) -> None:
        super().__init__(bus, settings)
        schedule = Schedule(settings.retry_first_s, settings.retry_max_s, settings.delivery_deadline_s)
        self.tracker = Tracker(schedule, max_tracked=settings.max_emergencies)
        self.roster = Roster(bus)
        self.sealing_keys = SealingKeys(bus)
        bus.opener.bodies.forwards = True
        self.announcer = Announcer(bus, settings)
        self.copies = Copies(bus)
        self.limits = RateLimits(
            per_s=settings.messages_per_sender_per_s,
            burst=settings.burst_per_sender,
            enrolled=lambda name: self.roster.role_of(name) is not None,
        )
        self._clocks = ClockTeller(bus, self.announcer, per_s=settings.clock_checks_per_s)
        self._wake = asyncio.Event()

    async def prepare(self) -> None:
        """Know who is enrolled, and whose the keys are that bodies are sealed to, before the first message."""
        await asyncio.gather(self.roster.follow(), self.sealing_keys.follow())

    async def started(self) -> None:
        """Keep the roster, pursue emergencies, announce; then hear what agents say."""
        self.announcer.start()
        self.copies.start()
        self._clocks.start()
        self.bus.spawn(self.roster.keep(pause_s=self.settings.roster_refresh_s), "roster")
        self.bus.spawn(self._pursue(), "emergencies")
        await self.bus.subscribe_by_priority(ROUTE, self.forward, queue=self.name.value, admit=self._admit)

    async def stopping(self) -> None:
        """Say what is known of emergencies that are still open."""
        for delivery in self.tracker.close():
            self.announcer.accounted(delivery)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.announcer.finish()
        except TimeoutError:
            self.metrics.count("accounts_untold")

    async def forward(self, body: Message, context: Context) -> None:
        """Forward one message, or tell its sender why not."""
        content = context.content
        if self.limits.proved(context.sender.name):
            self.announcer.limited(context.sender.name, self.limits.refusal(context.sender.name))
        try:
            way = route(
                content.type, context.sender, content.audience, context.priority, body, self.roster.role_of
            )
            check_recipients(context.kind, body, self.sealing_keys.roles_of)
        except (DeniedError, InvalidInputError) as error:
            self.bus.reject(error, context.subject, context.data)
            self.metrics.count(f"refused.{error.reason}")
            self.announcer.refused(context, error)
            return
        if way.backup is None:
            await self.bus.send(way.subject, _sent(context))
            if way.copy is not None:
                self.copies.add(way.copy, _sent(context))
        else:
            await self._raise_alarm(way, context)
        self._measure(context)

    @subscribes(RECEIPT)
    async def on_receipts(self, body: Receipts, context: Context) -> None:
        """Count receipts; every router gets all of them, and only who forwarded an emergency tracks it."""
        if body.host != context.sender.name:
            self.bus.reject(
                DeniedError(f"{context.sender} signs receipts of {body.host}", reason="wrong_host"),
                context.subject,
                context.data,
            )
            return
        for receipt in body.receipts:
            outcome = self.tracker.confirm(body.host, receipt, now_ns=context.now_ns)
            self._count_receipt(outcome, context)
            if outcome.ended is not None:
                self.announcer.accounted(outcome.ended)

    def _admit(self, arrival: Arrival) -> None:
        """Hold back who sends too much, before anything is spent on the message."""
        sender = arrival.sender_name or ""
        urgent = arrival.priority == Priority.CRITICAL.token
        try:
            self.limits.take(sender, urgent=urgent, at_s=time.monotonic())
        except ExhaustedError as error:
            self.metrics.count(f"refused.{error.reason}")
            if self.limits.is_proven(sender):
                self.announcer.limited(sender, error)
            raise

    async def _raise_alarm(self, way: Route, context: Context) -> None:
        """Send an emergency on both channels, core first, and track it."""
        due = who_is_due(way.audience, self.roster.agents)
        if not due:
            # They may have enrolled a moment ago; an emergency to nobody is worth one reading.
            await self.roster.refresh_within(self.settings.roster_wait_s)
            due = who_is_due(way.audience, self.roster.agents)
        emergency = Emergency(
            context.id, context.leaf, context.content.issued_at, way.subject, context.data, due
        )
        self.metrics.count("emergencies")
        # Tracked before it is sent: the first receipt can be here within a millisecond.
        tracked = self._track(emergency)
        await self._send_core(emergency)
        backup = self._back_up(emergency, way.backup or "")
        if tracked:
            self.bus.spawn(backup, "alert backup")
        else:
            # Nothing else bounds these: the line of emergencies waits for the stream.
            await backup

    def _track(self, emergency: Emergency) -> bool:
        """Track it; one that cannot be is forwarded all the same, with an account that confirms nobody."""
        try:
            self.tracker.begin(emergency, at_s=time.monotonic())
        except (ExhaustedError, InvalidInputError) as error:
            self.metrics.count(f"emergencies_untracked.{error.reason}")
            log.warning("emergency_untracked", reason=error.reason, message=emergency.message.hex())
            self.announcer.accounted(emergency.account())
            return False
        self._wake.set()
        return True

    async def _send_core(self, emergency: Emergency) -> None:
        try:
            await self.bus.send(emergency.subject, _bytes_of(emergency))
        except TocsinError as error:
            # The stream and the retries carry on; the account says how it ended.
            self.metrics.count(f"emergency_core_failures.{error.reason}")

    async def _back_up(self, emergency: Emergency, subject: str) -> None:
        """Put it into stream ALERTS, trying until the delivery's deadline."""
        until = time.monotonic() + self.settings.delivery_deadline_s
        while True:
            try:
                await self.bus.send(subject, _bytes_of(emergency), stream=ALERT_BACKUP.stream)
            except TocsinError as error:
                self.metrics.count(f"emergency_backup_failures.{error.reason}")
                if not isinstance(error, UnavailableError) or time.monotonic() >= until:
                    log.exception("alert_not_stored", message=emergency.message.hex(), reason=error.reason)
                    return
                await asyncio.sleep(BACKUP_PAUSE_S)
            else:
                return

    async def _pursue(self) -> None:
        """Send again what is not confirmed, and close what is past its deadline."""
        while True:
            self._wake.clear()
            next_s = self.tracker.next_s()
            wait_s = None if next_s is None else max(0.0, next_s - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            turn = self.tracker.advance(at_s=time.monotonic())
            for delivery in turn.ended:
                self.announcer.accounted(delivery)
            for emergency in turn.resend:
                self.metrics.count("emergency_resends")
                await self._send_core(emergency)

    def _count_receipt(self, outcome: Confirmation, context: Context) -> None:
        if not outcome.tracked:
            self.metrics.count("receipts_late" if outcome.late else "receipts_elsewhere")
            return
        self.metrics.count("receipts_counted", outcome.counted)
        self.metrics.count("receipts_again", outcome.again)
        for reason, agents in outcome.refused.items():
            error = DeniedError(f"{context.sender} confirms {agents} agents", reason=f"receipt_{reason}")
            self.bus.reject(error, context.subject, context.data)

    def _measure(self, context: Context) -> None:
        now_ns = time.time_ns()
        self.metrics.count(f"routed.{context.content.type}")
        self.metrics.observe_ms("route", (now_ns - context.content.issued_at) / 1e6)
        self.metrics.observe_ms("route_inside", (now_ns - context.now_ns) / 1e6)


def _sent(context: Context) -> Sent:
    return Sent(context.id, context.leaf, context.data, context.content.issued_at)


def _bytes_of(emergency: Emergency) -> Sent:
    return Sent(emergency.message, emergency.leaf, emergency.data, emergency.issued_at_ns)
