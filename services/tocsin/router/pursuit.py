"""Pursue emergencies, and stand by for those of the other routers, until everyone is accounted for.

What a router must not lose is in the streams: the alert in ALERTS before its sender is answered, the receipts
in RECEIPTS before their host lets go of them, the account in EVENTS. So every router follows all three, by ear as
messages are stored and by reading what it may have missed: when it starts, after a reconnection, and always
before it says that somebody is missing. What is due to be sent again is sent before that: hosts take it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from tocsin.bus import Bus, Context, Sent
from tocsin.bus.reader import Stored
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERTS_OF_ALL, EVENT, RECEIPT
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
)
from tocsin.contracts.routing import MAX_DEADLINE_S, Delivery, Receipts, ThreatAlert
from tocsin.router.accounts import who_is_due
from tocsin.router.announcer import Announcer
from tocsin.router.policy import Route, route
from tocsin.router.roster import Roster
from tocsin.router.settings import RouterSettings
from tocsin.router.tracker import Confirmation, Emergency, Schedule, Tracker, Turn
from tocsin.telemetry import get_logger

ACCOUNTS = {"service": "router", "kind": "delivery"}
ACCEPTED_FOR_S = 60.0
"""An emergency that was issued so long ago is refused: who sends it has given up, or is not its sender. Clocks may
differ by half of it. Below the broker's window for duplicates, so that the stream gets each once."""
PAUSE_S = 0.25
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class Pursuit:
    """One router's view of all emergencies."""

    def __init__(self, bus: Bus, settings: RouterSettings, announcer: Announcer) -> None:
        self._bus = bus
        self._metrics = bus.metrics
        self._settings = settings
        self._announcer = announcer
        grace_s = settings.standby_grace_s * random.uniform(1, 2)  # noqa: S311 - jitter
        schedule = Schedule(settings.retry_first_s, settings.retry_max_s, settings.delivery_deadline_s, grace_s)
        self.tracker = Tracker(schedule, max_tracked=settings.max_emergencies)
        self.roster = Roster(bus, self.tracker.learn)
        self._wake = asyncio.Event()
        self._behind = True

    def start(self) -> None:
        """Take up what the streams say is open, and pursue; call it when the router's subscriptions stand."""
        recall_s = MAX_DEADLINE_S + ACCEPTED_FOR_S + 4 * self._settings.standby_grace_s
        start_ns = time.time_ns() - int(recall_s * NS_PER_S)
        self._accounts = self._bus.reader(EVENT, start_ns=start_ns, at=ACCOUNTS)
        self._alerts = self._bus.reader(ALERTS_OF_ALL, start_ns=start_ns)
        self._receipts = self._bus.reader(RECEIPT, start_ns=start_ns)
        self._bus.connection.on_reconnect(self._catch_up_soon)
        self._bus.spawn(self._pursue(), "emergencies")

    def begin(self, way: Route, alert: Message, context: Context, *, pursue: bool, age_s: float = 0.0) -> None:
        """Track an emergency.

        Raises:
            InvalidInputError: ``nobody_due``.
            ExhaustedError: ``tracker_full``.
        """
        emergency = self.emergency(way, alert, context)
        ended = self.tracker.begin(emergency, at_s=time.monotonic(), pursue=pursue, age_s=age_s)
        self._metrics.count("receipts_counted", len(emergency.confirmed))
        if ended is not None:
            self._announcer.accounted(ended)
        self._wake.set()

    def again(self, leaf: bytes) -> None:
        """Pursue an emergency that is tracked: its sender has handed it in here, too."""
        self.tracker.pursue(leaf)
        self._wake.set()

    def emergency(self, way: Route, alert: Message, context: Context) -> Emergency:
        """Return an emergency with those to whom it is due as far as they are known."""
        issued_at = context.content.issued_at
        due = who_is_due(way.audience, self.roster.agents, issued_at_ns=issued_at)
        deadline_s = alert.deadline_s if isinstance(alert, ThreatAlert) else None
        return Emergency(
            context.id, context.leaf, issued_at, way.subject, context.data, way.audience, due, deadline_s
        )

    def on_stored(self, alert: Message, context: Context, *, age_s: float = 0.0) -> None:
        """Stand by for an emergency that is in its stream, or on its way there."""
        if self.tracker.is_running(context.leaf) or self.tracker.has_ended(context.leaf):
            return
        content = context.content
        try:
            way = route(
                content.type, context.sender, content.audience, context.priority, alert, self.roster.role_of
            )
            self.begin(way, alert, context, pursue=False, age_s=age_s)
        except (DeniedError, InvalidInputError, ExhaustedError) as error:
            self._metrics.count(f"emergencies_not_stood_by.{error.reason}")

    def on_receipts(self, body: Receipts, context: Context, *, heard: bool = True) -> None:
        """Take receipts; what is ``heard`` is counted and audited, what is read again is not.

        Raises:
            DeniedError: ``wrong_host``.
        """
        if body.host != context.sender.name:
            raise DeniedError(f"{context.sender} signs receipts of {body.host}", reason="wrong_host")
        for receipt in body.receipts:
            outcome = self.tracker.confirm(body.host, receipt, at_s=time.monotonic(), now_ns=context.now_ns)
            if heard:
                self._count(outcome, context)
            if outcome.ended is not None:
                self._announcer.accounted(outcome.ended)

    def on_account(self, delivery: Delivery) -> None:
        """Leave an emergency to who has accounted for it."""
        self.tracker.accounted(delivery.leaf)

    async def send_core(self, subject: str, sent: Sent) -> None:
        """Send an emergency on core; whether that failed its account will say."""
        try:
            await self._bus.send(subject, sent)
        except TocsinError as error:
            self._metrics.count(f"emergency_core_failures.{error.reason}")

    async def _pursue(self) -> None:
        """Send again what is not confirmed, and close what is past its deadline."""
        while True:
            self._wake.clear()
            next_s = self.tracker.next_s()
            if not self._behind and (next_s is None or next_s > time.monotonic()):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(None if next_s is None else _loop_time(next_s)):
                        await self._wake.wait()
                continue
            try:
                current = await self._turn()
            except Exception:
                # The emergencies that follow must be pursued all the same.
                self._metrics.count("pursuit_failures")
                log.exception("pursuit_failed")
                current = False
            if not current:
                await asyncio.sleep(PAUSE_S)

    async def _turn(self) -> bool:
        """Send again what is due, then catch up and close; False if that was not possible."""
        await self._send_again(self.tracker.advance(at_s=time.monotonic(), close=False))
        current = await self._catch_up()
        turn = self.tracker.advance(at_s=time.monotonic(), close=current)
        for delivery in turn.ended:
            self._announcer.accounted(delivery)
        await self._send_again(turn)
        return current

    async def _send_again(self, turn: Turn) -> None:
        for emergency in turn.resend:
            self._metrics.count("emergency_resends")
            await self.send_core(emergency.subject, _bytes_of(emergency))

    def _catch_up_soon(self) -> None:
        self._behind = True
        self._wake.set()

    async def _catch_up(self) -> bool:
        """Read what the streams hold and this router has not read; False if the broker does not let it."""
        self._behind = False
        try:
            for reader in (self._accounts, self._alerts, self._receipts):
                for stored in await reader.read():
                    self._take(stored)
        except UnavailableError as error:
            self._metrics.count(f"reading_failures.{error.reason}")
            self._behind = True
        except Exception:
            self._behind = True
            raise
        return not self._behind

    def _take(self, stored: Stored) -> None:
        """Take what was read, as if it had been heard; it is not read again, so it must not stop those behind it."""
        body, context = stored.body, stored.context
        try:
            if isinstance(body, Delivery):
                self.on_account(body)
            elif isinstance(body, Receipts):
                self.on_receipts(body, context, heard=False)
            else:
                age_s = max(0.0, (time.time_ns() - stored.stored_ns) / NS_PER_S)
                self.on_stored(body, context, age_s=age_s)
        except TocsinError as error:
            self._metrics.count(f"read_in_vain.{error.reason}")

    def _count(self, outcome: Confirmation, context: Context) -> None:
        if not outcome.tracked:
            kept = "receipts_early" if outcome.early else "receipts_elsewhere"
            self._metrics.count("receipts_late" if outcome.late else kept)
            return
        self._metrics.count("receipts_counted", outcome.counted)
        self._metrics.count("receipts_again", outcome.again)
        for reason, agents in outcome.refused.items():
            error = DeniedError(f"{context.sender} confirms {agents} agents", reason=f"receipt_{reason}")
            self._bus.reject(error, context.subject, context.data)


def _loop_time(at_s: float) -> float:
    return asyncio.get_running_loop().time() + at_s - time.monotonic()


def _bytes_of(emergency: Emergency) -> Sent:
    return Sent(emergency.message, emergency.leaf, emergency.data, emergency.issued_at_ns)
