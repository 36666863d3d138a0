"""From the host's subscriptions into its agents' inboxes.

The bus has verified each message once for the whole process; here it is handed to the agents that its
audience names, in the order of arrival. An agent gets what it has itself sent to ``all`` or to its role,
too. The two channels of an emergency carry the same bytes: see :mod:`tocsin.agent.emergencies`.

The policy is applied here once more: who can publish on ``deliver`` subjects bypasses the routers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from tocsin.agent.agent import Agent
from tocsin.agent.emergencies import Emergencies, is_emergency
from tocsin.agent.ends import Ends
from tocsin.agent.handlers import Call, call_handler
from tocsin.agent.inbox import Inbox, Job
from tocsin.bus import Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ALERT_BACKUP
from tocsin.contracts.decisions import DecisionAnnounced, MembershipWish, Proposal
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import Observations, ObservationsTaken
from tocsin.contracts.policy import Audience, Reach, check
from tocsin.contracts.routing import Coordination, Intelligence
from tocsin.contracts.subjects import MessageType
from tocsin.telemetry import Metrics, get_logger

SENSITIVE = (Coordination, Intelligence)
"""What a quarantined agent is not told."""
_NOBODY: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
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
        emergencies: takes those.
        ends: proves results of decisions.
        metrics: the process's figures.
        ballot: lets one resident ballot on a proposal.
        reject: counts and audits a message that the policy forbids, or whose key was revoked while it waited.
        require_trusted: raises UntrustedError if the key of a message of this type was revoked.
        is_quarantined: tells whether an agent is, by its name: it is told nothing sensitive.
        call: calls the handler of whatever is no proposal.
    """

    def __init__(
        self,
        residents: Iterable[Resident],
        emergencies: Emergencies,
        ends: Ends,
        metrics: Metrics,
        ballot: Callable[[Resident, Proposal, Context], Awaitable[None]],
        reject: Callable[[TocsinError, str, bytes], None],
        require_trusted: Callable[[MessageType[Message], bytes], None],
        is_quarantined: Callable[[str], bool] = lambda _: False,
        call: Call = call_handler,
    ) -> None:
        self._residents = tuple(residents)
        self._roles: dict[str, Role] = {
            resident.agent.name: resident.agent.role for resident in self._residents
        }
        self._reject = reject
        self._require_trusted = require_trusted
        self._is_quarantined = is_quarantined
        self._emergencies = emergencies
        self._ends = ends
        self._metrics = metrics
        self._ballot = ballot
        self._call = call
        self._closed = False
        self._channels: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        """Members and senders of each mission and group that residents take part in, by audience."""

    def close(self) -> None:
        """Take no more: the stream's messages are given back, for this host's next process."""
        self._closed = True

    def join(self, audience: str, members: frozenset[str], *, senders: frozenset[str]) -> None:
        """Hand over what comes for a mission or a group of it to those residents that are members.

        Args:
            audience: ``mission.<mission>`` or ``group.<group>``.
            members: agents that get it.
            senders: agents that may send there.
        """
        self._channels[audience] = (members, senders)

    def leave(self, audience: str) -> None:
        """Hand over nothing more of a mission or group."""
        self._channels.pop(audience, None)

    def from_core(self, body: Message, context: Context) -> None:
        """Take a message of a ``deliver`` subject."""
        if isinstance(body, DecisionAnnounced):
            self._ends.once_proven(body, context, partial(self._from_core, body, context))
        else:
            self._from_core(body, context)

    def _from_core(self, body: Message, context: Context) -> None:
        if is_emergency(body, context):
            if not self._take(body, context, CORE):
                self._metrics.count(f"duplicates.{context.kind.name}")
        else:
            self._deliver(body, context)

    async def from_stream(self, body: Message, context: Context) -> None:
        """Take an emergency of the stream ALERTS, or a discovery of DISCOVERIES.

        An emergency is acknowledged when the disk has it, whichever copy was first.

        Raises:
            UnavailableError: ``journal_failed``, or the host is leaving.
            ExhaustedError: ``inbox_full``, ``journal_full``.
        """
        if isinstance(body, DecisionAnnounced) and not await self._ends.holds(body, context):
            return  # what is behind it does not wait for what may never hold; the announcement comes once more
        if is_emergency(body, context):
            if not self._take(body, context, STREAM):
                self._metrics.count(f"duplicates.{ALERT_BACKUP.name}")
            await self._emergencies.durable(context.leaf)
        else:
            self._deliver(body, context)

    async def fact(self, body: Message, context: Context) -> None:
        """Take a fact that is for every agent: a decision's end, a workflow's end."""
        self._refuse_if_closed()
        for resident in self._residents:
            self._put(resident, body, context)

    def membership(self, wish: MembershipWish, context: Context) -> None:
        """Take fleet's wish for the next epoch, for the admins here.

        Raises:
            UnavailableError: ``closing``.
        """
        self._refuse_if_closed()
        for resident in self._residents:
            if resident.agent.role is Role.ADMIN:
                self._put(resident, wish, context)

    def again(self, label: str, context: Context, work: Callable[[Resident], Awaitable[None]]) -> None:
        """Give every resident, in its turn, more work about what it was handed before, if its sender is still trusted.

        Args:
            label: of the work.
            context: of what was handed over.
            work: for each.

        Raises:
            UnavailableError: ``closing``.
        """
        self._refuse_if_closed()
        for resident in self._residents:
            resident.inbox.put(Job(label, partial(self._if_trusted, context, partial(work, resident))))

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

    def _deliver(self, body: Message, context: Context) -> None:
        for resident in self._recipients(body, context):
            self._put(resident, body, context)

    def _take(self, alert: Message, context: Context, channel: str) -> bool:
        """Take an emergency; False if all had it before."""
        to = [resident.agent.name for resident in self._recipients(alert, context)]
        return not to or self._emergencies.take(alert, context, to, channel)

    def _recipients(self, body: Message, context: Context) -> list[Resident]:
        """Return for whom a message is; nobody, where the policy forbids it, on whichever channel it came.

        Raises:
            UnavailableError: ``closing``.
        """
        self._refuse_if_closed()
        if not self._allowed(body, context):
            return []
        members, _ = self._channels.get(context.content.audience, _NOBODY)
        mine = [
            r for r in self._residents if r.agent.name in members or _is_for(r.agent, context.content.audience)
        ]
        if not isinstance(body, SENSITIVE):
            return mine
        fit = [r for r in mine if not self._is_quarantined(r.agent.name)]
        if len(fit) < len(mine):
            self._metrics.count("withheld.quarantined", len(mine) - len(fit))
        return fit

    def _allowed(self, body: Message, context: Context) -> bool:
        """Apply the policy; what it forbids is settled by that, on whichever channel it came first."""
        content = context.content
        try:
            # The audience includes a resident, or the bus had refused it: so the residents' roles are enough.
            to = check(content.type, context.sender, content.audience, context.priority, body, self._role_of)
            self._check_member(to, context)
        except (DeniedError, InvalidInputError) as error:
            self._reject(error, context.subject, context.data)
            return False
        return True

    def _check_member(self, to: Audience, context: Context) -> None:
        """Check that what comes to a mission or a group of it was sent by one of the mission's members.

        Raises:
            DeniedError: ``not_a_member``.
        """
        if to.reach in {Reach.MISSION, Reach.GROUP}:
            _, senders = self._channels.get(context.content.audience, _NOBODY)
            if context.sender.name not in senders:
                raise DeniedError(f"{context.sender} takes no part in {to.name}", reason="not_a_member")

    def _role_of(self, name: str) -> Role | None:
        return self._roles.get(name)

    def _put(self, resident: Resident, body: Message, context: Context) -> bool:
        # An operator by its token, which is no agent's name.
        by = context.sender.name if context.sender.role else context.sender.token
        resident.agent.support.note(body, sender=by)
        work = partial(self._hand_over, resident, body, context)
        return resident.inbox.put(Job(context.kind.name, work, urgent=context.priority is Priority.CRITICAL))

    async def _hand_over(self, resident: Resident, body: Message, context: Context) -> None:
        if isinstance(body, Proposal):
            await self._if_trusted(context, partial(self._ballot, resident, body, context))
        else:
            await self._if_trusted(context, partial(self._call, resident.agent, body, context))

    async def _if_trusted(self, context: Context, work: Callable[[], Awaitable[None]]) -> None:
        try:
            self._require_trusted(context.kind, context.key_id)
        except UntrustedError as refused:
            self._reject(refused, context.subject, context.data)
        else:
            await work()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UnavailableError("this host is leaving", reason="closing")


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
