"""One question of an operator's: sent as a wish, put to the vote by an admin, followed to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tocsin.agent.ends import Ends
from tocsin.agent.epochs import EpochReader
from tocsin.agent.roles.memory import Memory
from tocsin.bus import Bus, Context
from tocsin.cli.alert import raise_alert
from tocsin.cli.decision_views import Ended
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_DECISION, DELIVER_ALL
from tocsin.contracts.decisions import DecisionAnnounced, Proposal, QuestionWish
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.routing import ThreatAlert

PROPOSED_WITHIN_S = 15.0
MAX_EARLY = 256
"""Others' proposals and ends that are remembered; the oldest is forgotten."""


class Question:
    """Asks one question."""

    def __init__(self, bus: Bus, wish: QuestionWish) -> None:
        self._bus = bus
        self._wish = wish
        self._ends = Ends(bus, EpochReader(bus))
        self._ended: Memory[bytes, Ended] = Memory(MAX_EARLY)
        """Ends by decision: one can overtake its proposal on the way here."""
        self._proposed: Memory[bytes, bytes] = Memory(MAX_EARLY)
        """Decisions by workflow."""
        self._changed = asyncio.Event()

    async def ask(self, *, within_s: float) -> Ended:
        """Return how it ended.

        Raises:
            UnavailableError: ``not_proposed``, or ``not_ended`` in time.
        """
        await self._bus.subscribe(DELIVER_ALL, self._on_delivered)
        await self._bus.subscribe(CONSENSUS_DECISION, self._on_decision)
        alert = ThreatAlert(
            severity=Severity.HIGH, summary=f"Asked: {self._wish.subject}"[:512], wish=self._wish
        )
        raised = await raise_alert(self._bus, alert, "all", wait=False)
        if not await self._until(lambda: raised.sent.id in self._proposed, PROPOSED_WITHIN_S):
            raise UnavailableError(
                "no admin has proposed it",
                reason="not_proposed",
                advice="is an admin running, and the same not being decided or in force already?",
            )
        decision = self._proposed.get(raised.sent.id) or b""
        if not await self._until(lambda: decision in self._ended, within_s):
            raise UnavailableError(
                f"decision {decision.hex()} has not ended within {within_s:g} s",
                reason="not_ended",
                advice=f"tocsin decision watch {decision.hex()[:16]} follows it; the instances may have refused it, "
                "see tocsin tail audit",
            )
        ended = self._ended.get(decision)
        assert ended is not None  # noqa: S101 - it was there a moment ago, in this very turn
        return ended

    async def _until(self, holds: Callable[[], bool], within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _on_delivered(self, body: Message, context: Context) -> None:
        if (
            isinstance(body, Proposal)
            and context.sender.role is Role.ADMIN
            and body.workflow not in self._proposed
        ):
            self._proposed.keep(body.workflow, context.leaf)
            self._changed.set()

    async def _on_decision(self, announced: DecisionAnnounced, context: Context) -> None:
        if announced.decision in self._ended:
            return
        await self._ends.prove(announced)
        self._ended.keep(announced.decision, Ended(announced, context.content.issued_at, context.sender.name))
        self._changed.set()
