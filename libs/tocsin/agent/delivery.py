"""From the host's subscriptions into its agents' inboxes.

The bus has verified each message once for the whole process; here it is handed to the agents that its
audience names, in the order of arrival. An agent gets what it has itself sent to ``all`` or to its role,
too. The two channels of an emergency carry the same bytes: the bus's ledger lets the first copy through
and drops the other, and one receipt says which channel was first.

The policy is applied here once more: who can publish on ``deliver`` subjects bypasses the routers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tocsin.agent.agent import Agent
from tocsin.agent.inbox import Inbox, Job
from tocsin.agent.receipts import ReceiptSender
from tocsin.bus import Context
from tocsin.contracts.analysis import AssessmentMade
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import DecisionAnnounced, Proposal
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
)
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Observations, ObservationsTaken
from tocsin.contracts.policy import check
from tocsin.contracts.routing import Coordination, Discovery, Intelligence, Receipt, ThreatAlert
from tocsin.telemetry import get_logger

CORE = "core"
STREAM = "stream"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resident:
    """An agent that this host carries."""

    agent: Agent
    inbox: Inbox
    key_id: bytes


class Delivery:
    """Hands messages to residents.

    Args:
        residents: all of the host's.
        receipts: is told of every emergency that was taken.
        ballot: lets one resident ballot on a proposal.
        reject: counts and audits a message that the policy forbids.
    """

    def __init__(
        self,
        residents: Iterable[Resident],
        receipts: ReceiptSender,
        ballot: Callable[[Resident, Proposal, Context], Awaitable[None]],
        reject: Callable[[TocsinError, str, bytes], None],
    ) -> None:
        self._residents = tuple(residents)
        self._roles: dict[str, Role] = {
            resident.agent.name: resident.agent.role for resident in self._residents
        }
        self._reject = reject
        self._receipts = receipts
        self._ballot = ballot
        self._closed = False

    def close(self) -> None:
        """Take no more: the stream's messages are given back, for this host's next process."""
        self._closed = True

    async def from_core(self, body: Message, context: Context) -> None:
        """Take a message of a ``deliver`` subject."""
        self._deliver(body, context, CORE)

    async def from_stream(self, body: Message, context: Context) -> None:
        """Take an emergency of the stream ALERTS, or a discovery of DISCOVERIES."""
        self._deliver(body, context, STREAM)

    async def fact(self, body: Message, context: Context) -> None:
        """Take a fact that is for every agent: a decision's end, a workflow's end."""
        self._refuse_if_closed()
        for resident in self._residents:
            self._put(resident, body, context)

    async def observe(self, resident: Resident, batch: Observations, context: Context) -> ObservationsTaken:
        """Let a sentinel answer a batch, in its turn.

        Raises:
            ExhaustedError: ``inbox_full``.
            TocsinError: what the sentinel raises.
        """
        answer: asyncio.Future[ObservationsTaken] = asyncio.get_running_loop().create_future()
        full = ExhaustedError(f"{resident.agent.name} is behind", reason="inbox_full")
        job = Job(
            "observe",
            partial(_answer, resident.agent, batch, context, answer),
            dropped=partial(_fail, answer, full),
        )
        if not resident.inbox.put(job):
            raise full
        return await answer

    def _deliver(self, body: Message, context: Context, channel: str) -> None:
        self._refuse_if_closed()
        if not self._allowed(body, context):
            return
        taken = [
            resident.agent.name
            for resident in self._residents
            if _is_for(resident.agent, context.content.audience) and self._put(resident, body, context)
        ]
        if taken and context.priority is Priority.CRITICAL and isinstance(body, ThreatAlert):
            self._receipts.add(
                Receipt(leaf=context.leaf, agents=tuple(taken), channel=channel, taken_ns=time.time_ns())
            )

    def _allowed(self, body: Message, context: Context) -> bool:
        """Apply the policy; what it forbids is settled by that, on whichever channel it came first."""
        content = context.content
        try:
            # The audience includes a resident, or the bus had refused it: so the residents' roles are enough.
            check(content.type, context.sender, content.audience, context.priority, body, self._role_of)
        except (DeniedError, InvalidInputError) as error:
            self._reject(error, context.subject, context.data)
            return False
        return True

    def _role_of(self, name: str) -> Role | None:
        return self._roles.get(name)

    def _put(self, resident: Resident, body: Message, context: Context) -> bool:
        resident.agent.support.note(body, sender=context.sender.name)
        work = partial(self._hand_over, resident, body, context)
        return resident.inbox.put(Job(context.kind.name, work, urgent=context.priority is Priority.CRITICAL))

    async def _hand_over(self, resident: Resident, body: Message, context: Context) -> None:
        if isinstance(body, Proposal):
            await self._ballot(resident, body, context)
        else:
            await call_handler(resident.agent, body, context)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UnavailableError("this host is leaving", reason="closing")


async def call_handler(agent: Agent, body: Message, context: Context) -> None:
    """Call the handler that the message's model belongs to."""
    if isinstance(body, ThreatAlert):
        await agent.on_alert(body, context)
    elif isinstance(body, Coordination):
        await agent.on_task(body.content, context)
    elif isinstance(body, Discovery):
        await agent.on_discovery(body, context)
    elif isinstance(body, Intelligence):
        await agent.on_intelligence(body, context)
    elif isinstance(body, DecisionAnnounced):
        await agent.on_decision(body, context)
    elif isinstance(body, AssessmentMade):
        await agent.on_assessment(body, context)
    else:
        raise InvariantBrokenError(f"no handler for {context.kind.name}", reason="no_handler")


def _is_for(agent: Agent, audience: str) -> bool:
    return audience in {"all", f"role.{agent.role.value}", f"agent.{agent.name}"}


async def _answer(
    agent: Agent, batch: Observations, context: Context, answer: asyncio.Future[ObservationsTaken]
) -> None:
    try:
        taken = await agent.on_observations(batch, context)
    except TocsinError as error:
        _fail(answer, error)
    except Exception:
        _fail(answer, InvariantBrokenError("an internal error", reason="internal"))
        raise
    else:
        if not answer.done():
            answer.set_result(taken)


def _fail(answer: asyncio.Future[ObservationsTaken], error: TocsinError) -> None:
    if not answer.done():
        answer.set_exception(error)
