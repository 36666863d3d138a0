"""The emergencies' shell: core first, then the stream, then the sender's answer; receipts; retries; accounts.

What a router must not lose is in the streams: the alert in ALERTS before its sender is answered, the receipts
in RECEIPTS before their host lets go of them, the account in EVENTS. So every router follows all three, by ear as
messages are stored and by reading what it may have missed: when it starts, after a reconnection, and always
before it sends an alert again or says that somebody is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace

from tocsin.bus import Bus, Context, Sent
from tocsin.bus.requests import error_reply
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERT_BACKUP, EMERGENCY, EVENT, RECEIPT
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.routing import MAX_DEADLINE_S, Accepted, Delivery, Receipts, ThreatAlert
from tocsin.contracts.subjects import ANY_AUDIENCE, MessageType
from tocsin.router.accounts import who_is_due
from tocsin.router.announcer import Announcer
from tocsin.router.policy import Route, route
from tocsin.router.roster import Roster
from tocsin.router.settings import RouterSettings
from tocsin.router.tracker import Confirmation, Emergency, Schedule, Tracker
from tocsin.telemetry import get_logger

ALERTS_OF_ALL = replace(ALERT_BACKUP, audience=ANY_AUDIENCE)
"""The stream's alerts as routers read them: for whomever they are."""
ACCOUNTS = {"service": "router", "kind": "delivery"}
ACCEPTED_FOR_S = 60.0
"""An emergency that was issued so long ago is refused: who sends it has given up, or is not its sender. Clocks may
differ by half of it. Below the broker's window for duplicates, so that the stream gets each once."""
STORE_TIMEOUT_S = 1.0
PAUSE_S = 0.25
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class Emergencies:
    """One router's part in all emergencies."""

    def __init__(self, bus: Bus, settings: RouterSettings, announcer: Announcer) -> None:
        self._bus = bus
        self._metrics = bus.metrics
        self._settings = settings
        self._announcer = announcer
        grace_s = settings.standby_grace_s * random.uniform(1, 2)  # noqa: S311 - jitter
        schedule = Schedule(settings.retry_first_s, settings.retry_max_s, settings.delivery_deadline_s, grace_s)
        self.tracker = Tracker(schedule, max_tracked=settings.max_emergencies)
        self.roster = Roster(bus, self.tracker.learn)
        self._storing: set[bytes] = set()
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

    # --- What comes in ----------------------------------------------------------------------------

    async def take(self, way: Route, alert: Message, context: Context) -> None:
        """Forward an emergency that its sender hands in, the first time or again.

        Raises:
            UntrustedError: ``expired``.
        """
        if context.content.issued_at < context.now_ns - int(ACCEPTED_FOR_S * NS_PER_S):
            raise UntrustedError("its sender has given up long ago", reason="expired")
        tracked = self._first(way, alert, context)
        if tracked is not None:
            # Known before it is sent: the first receipt can be here within a millisecond.
            await self._send_core(way.subject, _sent(context))
        if context.leaf in self._storing:
            return  # the answer is under way
        self._storing.add(context.leaf)
        storing = self._store_and_answer(way, context)
        if tracked is False or len(self._storing) > self._settings.max_emergencies:
            # Nothing else bounds these: the line of emergencies waits for the stream.
            await storing
        else:
            self._bus.spawn(storing, "alert backup")

    async def refuse(self, error: TocsinError, context: Context) -> None:
        """Tell who waits for an answer that there will be none."""
        await self._answer(*error_reply(error), context)

    def on_stored(self, alert: Message, context: Context, *, age_s: float = 0.0) -> None:
        """Stand by for an emergency that is in its stream, or on its way there."""
        if self.tracker.is_running(context.leaf) or self.tracker.has_ended(context.leaf):
            return
        content = context.content
        try:
            way = route(
                content.type, context.sender, content.audience, context.priority, alert, self.roster.role_of
            )
            self._track(way, alert, context, pursue=False, age_s=age_s)
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

    # --- On both channels -------------------------------------------------------------------------

    def _first(self, way: Route, alert: Message, context: Context) -> bool | None:
        """Begin to pursue; None if it was handed in before, False if it cannot be tracked."""
        if self.tracker.has_ended(context.leaf):
            return None
        if self.tracker.is_running(context.leaf):
            self.tracker.pursue(context.leaf)
            self._wake.set()
            return None
        self._metrics.count("emergencies")
        try:
            self._track(way, alert, context, pursue=True)
        except (ExhaustedError, InvalidInputError) as error:
            # Sent all the same, with an account that confirms nobody; only once, be it handed in again.
            self._metrics.count(f"emergencies_untracked.{error.reason}")
            log.warning("emergency_untracked", reason=error.reason, message=context.id.hex())
            self._announcer.accounted(self._emergency(way, alert, context).account())
            self.tracker.accounted(context.leaf)
            return False
        return True

    def _track(self, way: Route, alert: Message, context: Context, *, pursue: bool, age_s: float = 0.0) -> None:
        emergency = self._emergency(way, alert, context)
        self.tracker.begin(emergency, at_s=time.monotonic(), pursue=pursue, age_s=age_s)
        self._wake.set()

    def _emergency(self, way: Route, alert: Message, context: Context) -> Emergency:
        issued_at = context.content.issued_at
        due = who_is_due(way.audience, self.roster.agents, issued_at_ns=issued_at)
        deadline_s = alert.deadline_s if isinstance(alert, ThreatAlert) else None
        return Emergency(
            context.id, context.leaf, issued_at, way.subject, context.data, way.audience, due, deadline_s
        )

    async def _send_core(self, subject: str, sent: Sent) -> None:
        try:
            await self._bus.send(subject, sent)
        except TocsinError as error:
            # The stream and the retries carry on; the account says how it ended.
            self._metrics.count(f"emergency_core_failures.{error.reason}")

    async def _store_and_answer(self, way: Route, context: Context) -> None:
        """Put it into stream ALERTS, trying for as long as its sender may ask again; then answer."""
        until_s = time.monotonic() + ACCEPTED_FOR_S / 2
        try:
            while not await self._store(way.backup or "", _sent(context)):
                if time.monotonic() > until_s:
                    log.error("alert_not_stored", message=context.id.hex())
                    return
                await asyncio.sleep(PAUSE_S)
        finally:
            self._storing.discard(context.leaf)
        await self._answer(EMERGENCY.reply_type, Accepted(message=context.id), context)

    async def _store(self, subject: str, sent: Sent) -> bool:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await self._bus.send(subject, sent, stream=ALERT_BACKUP.stream)
        except (TocsinError, TimeoutError) as error:
            self._metrics.count(f"emergency_backup_failures.{getattr(error, 'reason', 'timeout')}")
            return False
        return True

    async def _answer(self, kind: MessageType[Message], body: Message, context: Context) -> None:
        if context.reply is None:
            return
        audience = f"reply.{context.sender.token}"
        try:
            answer = await self._bus.make(kind, body, audience=audience, correlation=context.id)
            await self._bus.send(context.reply, answer)
        except TocsinError as error:
            # The sender asks again.
            self._metrics.count(f"emergency_answer_failures.{error.reason}")

    # --- Until everyone is accounted for ----------------------------------------------------------

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
            current = await self._catch_up()
            turn = self.tracker.advance(at_s=time.monotonic(), close=current)
            for delivery in turn.ended:
                self._announcer.accounted(delivery)
            for emergency in turn.resend:
                self._metrics.count("emergency_resends")
                await self._send_core(emergency.subject, _bytes_of(emergency))
            if not current:
                await asyncio.sleep(PAUSE_S)

    def _catch_up_soon(self) -> None:
        self._behind = True
        self._wake.set()

    async def _catch_up(self) -> bool:
        """Read what the streams hold and this router has not read; False if the broker does not let it."""
        self._behind = False
        try:
            for account in await self._accounts.read():
                if isinstance(account.body, Delivery):
                    self.on_account(account.body)
            for stored in await self._alerts.read():
                age_s = max(0.0, (time.time_ns() - stored.stored_ns) / NS_PER_S)
                self.on_stored(stored.body, stored.context, age_s=age_s)
            for receipts in await self._receipts.read():
                if isinstance(receipts.body, Receipts):
                    with contextlib.suppress(DeniedError):
                        self.on_receipts(receipts.body, receipts.context, heard=False)
        except UnavailableError as error:
            self._metrics.count(f"reading_failures.{error.reason}")
            self._behind = True
            return False
        return True

    def _count(self, outcome: Confirmation, context: Context) -> None:
        if not outcome.tracked:
            self._metrics.count("receipts_late" if outcome.late else "receipts_elsewhere")
            return
        self._metrics.count("receipts_counted", outcome.counted)
        self._metrics.count("receipts_again", outcome.again)
        for reason, agents in outcome.refused.items():
            error = DeniedError(f"{context.sender} confirms {agents} agents", reason=f"receipt_{reason}")
            self._bus.reject(error, context.subject, context.data)


def _loop_time(at_s: float) -> float:
    return asyncio.get_running_loop().time() + at_s - time.monotonic()


def _sent(context: Context) -> Sent:
    return Sent(context.id, context.leaf, context.data, context.content.issued_at)


def _bytes_of(emergency: Emergency) -> Sent:
    return Sent(emergency.message, emergency.leaf, emergency.data, emergency.issued_at_ns)
