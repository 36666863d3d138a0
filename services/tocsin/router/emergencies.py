"""Take emergencies: core first, then the stream, then the sender's answer.

A sender hands identical bytes in again until it is answered, here or to another router, and is answered again as
often as it asks: the answer says that stream ALERTS has the alert, and from then on no router's death can lose it.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.bus import Bus, Context, Sent
from tocsin.bus.requests import error_reply
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERT_BACKUP, EMERGENCY
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, TocsinError, UntrustedError
from tocsin.contracts.routing import Accepted
from tocsin.contracts.subjects import MessageType
from tocsin.router.announcer import Announcer
from tocsin.router.policy import Route
from tocsin.router.pursuit import ACCEPTED_FOR_S, NS_PER_S, Pursuit
from tocsin.router.settings import RouterSettings
from tocsin.telemetry import get_logger

STORE_TIMEOUT_S = 1.0
PAUSE_S = 0.25
STORING_PER_TRACKED = 2
"""So many are being stored at most for each that may be tracked: those that cannot be tracked are stored, too."""

log = get_logger(__name__)


class Emergencies:
    """Takes emergencies from their senders."""

    def __init__(self, bus: Bus, settings: RouterSettings, announcer: Announcer, pursuit: Pursuit) -> None:
        self._bus = bus
        self._metrics = bus.metrics
        self._announcer = announcer
        self._pursuit = pursuit
        self._max_storing = STORING_PER_TRACKED * settings.max_emergencies
        self._storing: set[bytes] = set()

    async def take(self, way: Route, alert: Message, context: Context) -> None:
        """Forward an emergency that its sender hands in, the first time or again.

        Raises:
            UntrustedError: ``expired``.
        """
        if context.content.issued_at < context.now_ns - int(ACCEPTED_FOR_S * NS_PER_S):
            raise UntrustedError("its sender has given up long ago", reason="expired")
        if self._is_first(way, alert, context):
            # Known before it is sent: the first receipt can be here within a millisecond.
            await self._pursuit.send_core(way.subject, Sent.of(context))
        if context.leaf in self._storing:
            return  # the answer is under way
        if len(self._storing) >= self._max_storing:
            # Not answered, so its sender asks again; waiting would hold up the core copies of those behind it.
            self._metrics.count("emergencies_not_storing")
            return
        self._storing.add(context.leaf)
        self._bus.spawn(self._store_and_answer(way, context), "alert backup")

    async def refuse(self, error: TocsinError, context: Context) -> None:
        """Tell who waits for an answer that there will be none."""
        await self._answer(*error_reply(error), context)

    def _is_first(self, way: Route, alert: Message, context: Context) -> bool:
        """Begin to pursue, if it can be tracked; False if it was handed in before."""
        tracker = self._pursuit.tracker
        if tracker.has_ended(context.leaf):
            return False
        if tracker.is_running(context.leaf):
            self._pursuit.again(context.leaf)
            return False
        self._metrics.count("emergencies")
        try:
            self._pursuit.begin(way, alert, context, pursue=True)
        except (ExhaustedError, InvalidInputError) as error:
            # Sent all the same, with an account that confirms nobody; only once, be it handed in again.
            self._metrics.count(f"emergencies_untracked.{error.reason}")
            log.warning("emergency_untracked", reason=error.reason, message=context.id.hex())
            self._announcer.accounted(self._pursuit.emergency(way, alert, context).account())
            tracker.accounted(context.leaf)
        return True

    async def _store_and_answer(self, way: Route, context: Context) -> None:
        """Put it into stream ALERTS, trying for as long as its sender may ask again; then answer."""
        until_s = time.monotonic() + ACCEPTED_FOR_S / 2
        try:
            while (why_not := await self._store(way.backup or "", Sent.of(context))) is not None:
                if time.monotonic() > until_s:
                    log.error("alert_not_stored", message=context.id.hex(), why=why_not)
                    return
                await asyncio.sleep(PAUSE_S)
        finally:
            self._storing.discard(context.leaf)
        await self._answer(EMERGENCY.reply_type, Accepted(message=context.id), context)

    async def _store(self, subject: str, sent: Sent) -> str | None:
        """Put it into the stream once; return why that failed."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await self._bus.send(subject, sent, stream=ALERT_BACKUP.stream)
        except (TocsinError, TimeoutError) as error:
            self._metrics.count(f"emergency_backup_failures.{getattr(error, 'reason', 'timeout')}")
            return str(error) or f"no acknowledgement within {STORE_TIMEOUT_S:g} s"
        return None

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
