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
from tocsin.agent.inbox import Inbox, Job
from tocsin.agent.journal import AlertJournal
from tocsin.agent.receipts import ReceiptSender
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import ALERT_BACKUP, THREAT_ALERT
from tocsin.contracts.errors import ExhaustedError, TocsinError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import get_logger

log = get_logger(__name__)


class Emergencies:
    """Takes emergencies for one host's agents."""

    def __init__(
        self,
        bus: Bus,
        journal: AlertJournal,
        receipts: ReceiptSender,
        inboxes: Iterable[tuple[Agent, Inbox]],
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._receipts = receipts
        self._inboxes: dict[str, tuple[Agent, Inbox]] = {agent.name: (agent, inbox) for agent, inbox in inboxes}

    def take(self, alert: ThreatAlert, context: Context, agents: Iterable[str], channel: str) -> bool:
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
        """Put what agents had not handled before the restart into their inboxes again, in order, and confirm again."""
        for acceptance in self._journal.unhandled():
            try:
                where = ALERT_BACKUP.at(severity=Priority.CRITICAL.token)
                alert, context = await self._bus.reopen(ALERT_BACKUP, where, acceptance.data)
            except TocsinError as error:
                self._bus.metrics.count(f"alerts_not_restored.{error.reason}")
                log.warning("alert_not_restored", leaf=acceptance.leaf.hex(), reason=error.reason)
                continue
            if isinstance(alert, ThreatAlert):
                self._restore(acceptance, alert, context)
        for acceptance in self._journal.since(time.time_ns() - CONFIRM_AGAIN_NS):
            self._receipts.add(acceptance.receipt())

    def _restore(self, acceptance: Acceptance, alert: ThreatAlert, context: Context) -> None:
        for name in list(acceptance.waiting):
            if name in self._inboxes and self._put(self._inboxes[name], alert, context):
                self._bus.metrics.count("alerts_restored")

    def _put(self, to: tuple[Agent, Inbox], alert: ThreatAlert, context: Context) -> bool:
        agent, inbox = to
        agent.support.note(alert, sender=context.sender.name)
        return inbox.put(Job(THREAT_ALERT.name, partial(self._handle, agent, alert, context), urgent=True))

    async def _handle(self, agent: Agent, alert: ThreatAlert, context: Context) -> None:
        try:
            await agent.on_alert(alert, context)
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
    """Tell whether a message is one that its recipients confirm."""
    return isinstance(body, ThreatAlert) and context.priority is Priority.CRITICAL
