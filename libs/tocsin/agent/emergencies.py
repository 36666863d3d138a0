"""A host's emergencies: handed to its agents at once, on the disk next, confirmed last.

The first copy of either channel is taken, the others dropped; by leaf and agent, so that an agent whose inbox
was full gets the next copy, and across restarts of the host, since the journal knows what was accepted. An agent
has its alert before the disk does: an alarm waits for no disk. The receipt, and the stream's acknowledgement,
wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial

from tocsin.agent.accepted import CONFIRM_AGAIN_NS, Acceptance
from tocsin.agent.agent import Agent
from tocsin.agent.handlers import Call, call_handler
from tocsin.agent.inbox import Inbox, Job
from tocsin.agent.journal import AlertJournal
from tocsin.agent.receipts import ReceiptSender
from tocsin.bus import Bus, Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERT_BACKUP
from tocsin.contracts.decisions import DecisionAnnounced
from tocsin.contracts.errors import ExhaustedError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import get_logger

MAY_PASS = frozenset({"revocations_stale", "unknown_key"})
"""Why an alert cannot be opened now, and perhaps can soon."""
RESTORE_PAUSE_S = 1.0
RESTORE_WITHIN_S = 600.0
"""For how long that is tried; what is left then is tried by the host's next process."""

log = get_logger(__name__)


class Emergencies:
    """Takes emergencies for one host's agents."""

    def __init__(
        self,
        bus: Bus,
        journal: AlertJournal,
        receipts: ReceiptSender,
        inboxes: Iterable[tuple[Agent, Inbox]],
        call: Call = call_handler,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._receipts = receipts
        self._call = call
        self._inboxes: dict[str, tuple[Agent, Inbox]] = {agent.name: (agent, inbox) for agent, inbox in inboxes}

    def take(self, alert: Message, context: Context, agents: Iterable[str], channel: str) -> bool:
        """Hand an emergency to those of the agents that have not had it; False if all had it before.

        Raises:
            ExhaustedError: ``inbox_full`` of some agent: another copy must come.
        """
        fresh = [name for name in agents if not self._journal.has(context.leaf, name)]
        taken = [name for name in fresh if self._put(self._inboxes[name], alert, context)]
        if taken:
            taken_ns = time.time_ns()
            writing = self._journal.accept(context.leaf, context.data, channel, taken_ns, taken)
            acceptance = Acceptance(context.leaf, b"", channel, taken_ns, dict.fromkeys(taken))
            writing.add_done_callback(partial(self._confirm, acceptance))
        if len(taken) < len(fresh):
            self._journal.missed(context.leaf)
            raise ExhaustedError(f"{len(fresh) - len(taken)} inboxes are full", reason="inbox_full")
        return bool(fresh)

    async def durable(self, leaf: bytes) -> None:
        """Wait until what was taken is on the disk.

        Raises:
            UnavailableError: ``journal_failed``.
            ExhaustedError: ``journal_full``.
        """
        await self._journal.durable(leaf)

    async def restore(self) -> None:
        """Put what agents had not handled before the restart into their inboxes again, in order, and confirm again.

        What cannot be opened yet is tried again in the background, for RESTORE_WITHIN_S.
        """
        # By name now: who gets a first copy meanwhile has it from there.
        promised = [(one, tuple(one.waiting)) for one in self._journal.unhandled()]
        later = [one for one in promised if not await self._restore(*one)]
        if later:
            self._bus.spawn(self._restore_later(later), "restoring")
        for acceptance in self._journal.since(time.time_ns() - CONFIRM_AGAIN_NS):
            self._receipts.add(acceptance.receipt())

    async def _restore_later(self, promised: list[tuple[Acceptance, tuple[str, ...]]]) -> None:
        until_s = time.monotonic() + RESTORE_WITHIN_S
        while promised:
            await asyncio.sleep(RESTORE_PAUSE_S)
            last = time.monotonic() > until_s
            promised = [one for one in promised if not await self._restore(*one, last=last)]

    async def _restore(self, acceptance: Acceptance, names: tuple[str, ...], *, last: bool = False) -> bool:
        """Restore one; False if it has to be tried again."""
        try:
            where = ALERT_BACKUP.at(severity=Priority.CRITICAL.token)
            alert, context = await self._bus.reopen(ALERT_BACKUP, where, acceptance.data)
        except TocsinError as error:
            if error.reason in MAY_PASS and not last:
                return False
            self._bus.metrics.count(f"alerts_not_restored.{error.reason}")
            log.warning("alert_not_restored", leaf=acceptance.leaf.hex(), reason=error.reason)
            return True
        for name in names:
            if name in self._inboxes and self._put(self._inboxes[name], alert, context, promised=True):
                self._bus.metrics.count("alerts_restored")
        return True

    def _put(
        self, to: tuple[Agent, Inbox], alert: Message, context: Context, *, promised: bool = False
    ) -> bool:
        agent, inbox = to
        agent.support.note(alert, sender=context.sender.name)
        job = Job(context.kind.name, partial(self._handle, agent, alert, context), urgent=True)
        return inbox.put(job, promised=promised)

    async def _handle(self, agent: Agent, alert: Message, context: Context) -> None:
        try:
            self._bus.opener.require_trusted(context.kind, context.key_id)  # it may have waited for long
        except UntrustedError as refused:
            self._bus.reject(refused, context.subject, context.data)
            self._journal.handled(context.leaf, agent.name)
            return
        try:
            await self._call(agent, alert, context)
        except asyncio.CancelledError:  # the host leaves: its next process begins it anew
            raise
        except Exception:
            self._journal.handled(context.leaf, agent.name)
            raise
        self._journal.handled(context.leaf, agent.name)

    def _confirm(self, acceptance: Acceptance, written: asyncio.Future[None]) -> None:
        if written.cancelled() or written.exception() is not None:
            self._bus.metrics.count("alerts_unconfirmed")
        else:
            self._receipts.add(acceptance.receipt())


def is_emergency(body: object, context: Context) -> bool:
    """Tell whether a message is one that its recipients confirm: an alert, or a decision's result."""
    return isinstance(body, ThreatAlert | DecisionAnnounced) and context.priority is Priority.CRITICAL
