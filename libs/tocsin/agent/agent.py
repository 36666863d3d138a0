"""What an agent is: a role, a name, and what it does when something arrives.

    class Watcher(Agent):
        role = Role.HUNTER

        async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
            print(context.sender, alert.summary)

A handler is only called for a message that has passed all of the bus's checks, one at a time for each
agent, in the order of arrival. A handler that raises is logged and counted and disturbs no other agent.
Everything that an agent sends goes through :attr:`Agent.host`, signed under the agent's own id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from tocsin.agent.asking import ROUND_MS, question_of
from tocsin.agent.channels.channel import Channel
from tocsin.agent.channels.network import Network
from tocsin.agent.objectives import ObjectiveContext, watch
from tocsin.agent.support import Support, choose
from tocsin.bus import Context, Sent
from tocsin.contracts.analysis import Assessment, AssessmentMade
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import DecisionAnnounced, MembershipWish, Option, Proposal, Scope
from tocsin.contracts.errors import DeniedError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import AgentName, Priority, Role, SpiffeId
from tocsin.contracts.missions import Objective
from tocsin.contracts.observations import Incident, Observations, ObservationsTaken
from tocsin.contracts.proposers import check_proposer
from tocsin.contracts.routing import Discovery, Intelligence, ThreatAlert
from tocsin.contracts.subjects import MessageType, Request
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.telemetry import Metrics

__all__ = ["Agent", "BallotChoice", "HostView", "InstalledEpoch", "rendezvous"]

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class BallotChoice:
    """What an agent votes for: an option by its index, or None to abstain; and why, in a line.

    Or, with ``option`` None, a counter-proposal: if more than a third of the participants make the same one, byte for
    byte, it is an option of the next round.
    """

    option: int | None
    reason: str = ""
    counter: Option | None = None


class HostView(Protocol):
    """What an agent may ask of the process that carries it."""

    @property
    def epoch(self) -> InstalledEpoch | None:
        """The epoch that is installed, once this host has it."""

    @property
    def epochs(self) -> Mapping[bytes, InstalledEpoch]:
        """The last epochs that this host has come to believe, by digest."""

    @property
    def state_dir(self) -> Path:
        """Folder for what must survive a restart."""

    @property
    def root_pem(self) -> bytes:
        """The root certificate that this host trusts."""

    @property
    def metrics(self) -> Metrics:
        """The process's figures."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, UTC."""

    async def route(
        self,
        agent: Agent,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str,
        priority: Priority = Priority.NORMAL,
        sealed: bool = False,
    ) -> Sent:
        """Send through the router as ``agent``; sealed to the audience if asked, or if the type must be."""

    async def request(self, agent: Agent, request: Request[Q, R], body: Q, *, timeout_s: float) -> R:
        """Ask a service as ``agent``."""

    async def event(self, agent: Agent, kind: MessageType[Message], body: Message) -> Sent:
        """Publish a fact as ``agent``, into its stream."""

    def peers(self, role: Role) -> tuple[AgentName, ...]:
        """Return the names of all enrolled agents of a role, on any host, sorted."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task for as long as the host; its failure is logged and counted."""

    async def channel(self, agent: Agent, peer: str, *, timeout_s: float) -> Channel:
        """Return a secure channel from ``agent`` to a peer."""

    async def establish_network(
        self,
        agent: Agent,
        agents: Sequence[str],
        links: Iterable[tuple[str, str]] | None = None,
        *,
        timeout_s: float,
    ) -> Network:
        """Have channels opened between agents, asking as ``agent``."""

    async def certificate(self, decision_hex: str) -> bytes:
        """Fetch a decision's certificate; whoever acts on it verifies it."""


class Agent:
    """Base of all agents. Subclass it, set ``role``, and override what concerns you."""

    role: ClassVar[Role]
    capabilities: ClassVar[tuple[str, ...]] = ()
    """Names that are told to the admins when the agent makes itself known, and to fleet for missions."""
    slots: ClassVar[int] = 1
    """Objectives of missions that it works at at once, at most 64; 0: it is given none."""
    host: HostView
    """Set by the host before :meth:`started`."""
    id: SpiffeId
    """Set by the host, which knows the trust domain."""

    def __init__(self, name: str) -> None:
        self.name = AgentName(name)
        self.support = Support()
        """Whom this agent was warned about, and by whom; filled before each handler runs."""

    async def started(self) -> None:
        """Hook: the host is enrolled and subscribed."""

    async def stopping(self) -> None:
        """Hook: the host is about to leave; what is sent here still goes out."""

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Take an alert; one that comes on both channels is handed over once."""

    async def on_task(self, content: Observations | Incident | Assessment, context: Context) -> None:
        """Take work that another agent hands over."""

    async def on_discovery(self, discovery: Discovery, context: Context) -> None:
        """Take note of an agent that makes itself known."""

    async def on_intelligence(self, intelligence: Intelligence, context: Context) -> None:
        """Take information that is meant for this agent or its role."""

    async def on_observations(self, batch: Observations, context: Context) -> ObservationsTaken:  # noqa: ARG002 - its overriders use both
        """Answer a batch of observations: for sentinels.

        Raises:
            DeniedError: ``not_a_sentinel``, unless overridden.
        """
        raise DeniedError(f"{self.name} takes no observations", reason="not_a_sentinel")

    async def on_proposal(self, proposal: Proposal, context: Context) -> BallotChoice | None:
        """Choose in a decision; None casts no ballot.

        By default an agent supports a command only against an address that another agent than the
        proposer has warned it about, and doing nothing otherwise: see :mod:`tocsin.agent.support`.
        """
        if proposal.epoch not in self.host.epochs:
            return None
        index, reason = choose(proposal, self.support, proposer=context.sender.name)
        return BallotChoice(index, reason)

    async def on_membership(self, wish: MembershipWish, context: Context) -> None:
        """Take note that fleet wishes for the next epoch: for admins."""

    async def on_round(self, proposal: Proposal, round_number: int, context: Context) -> BallotChoice | None:  # noqa: ARG002 - its overriders use all
        """Choose again: no option had a quorum in the round before. None casts no ballot.

        By default the agent is asked as for a new proposal. The options are in the order of their support in the
        round before, so the default policy prefers, of the commands that it has grounds for, the one that most others
        support, and the same of the options that do nothing: agents that can agree do. It never gives up one for the
        other because others did; but it may have been warned since.

        Args:
            proposal: as it was made, but for its options: they are this round's.
            round_number: 2 or more.
            context: the proposal's own; its leaf is the decision's id.
        """
        return await self.on_proposal(proposal, context)

    async def on_decision(self, announced: DecisionAnnounced, context: Context) -> None:
        """Learn how a decision ended."""

    async def on_assessment(self, made: AssessmentMade, context: Context) -> None:
        """Learn how a workflow ended (anybody's: compare ``made.requester`` with your own id)."""

    async def on_channel(self, data: bytes | Message, peer: SpiffeId) -> None:
        """Take what a peer has said in the channel with it: bytes, or a message."""

    async def channel(self, peer: str, *, timeout_s: float = 10.0) -> Channel:
        """Return a secure channel to another agent: nobody between the two, the broker included, reads along.

        It is made on first use and lives until it is closed; asking again for the same peer costs nothing.

        Args:
            peer: the other agent's name.
            timeout_s: how long it may take to make it, in seconds.

        Raises:
            InvalidInputError: ``unknown_peer``; ``channel_to_itself``.
            UnavailableError: ``no_answer``.
            DeniedError: ``barred``, or the reason that the peer gives.
            TocsinError: with a reason ``qkd_*`` where the key server fails and a key of it is required.
        """
        return await self.host.channel(self, peer, timeout_s=timeout_s)

    async def establish_network(
        self,
        agents: Sequence[str],
        links: Iterable[tuple[str, str]] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> Network:
        """Have the channels of a group opened beforehand: for admins.

        Args:
            agents: their names.
            links: the pairs to open, e.g. of a topology; all of them by default.
            timeout_s: for each channel, in seconds, at most 25.

        Raises:
            InvalidInputError: ``too_few_agents``, ``too_many_agents``, ``bad_link``.
            DeniedError: ``sender_not_allowed``: this agent is no admin.
        """
        return await self.host.establish_network(self, agents, links, timeout_s=timeout_s)

    async def on_objective(self, objective: Objective, context: ObjectiveContext) -> str:
        """Reach an objective of a mission; return its result, in a line of at most 256 characters.

        Unlike the other handlers it runs beside them, and may take its time. By default an agent knows the task
        ``watch``: see :func:`tocsin.agent.objectives.watch`.

        Raises:
            InvalidInputError: ``unknown_task``; whatever is raised, the objective goes to another agent.
        """
        return await watch(self, objective, context)

    async def ask(
        self,
        subject: str,
        options: Mapping[str, str],
        *,
        evidence: Sequence[str] = (),
        scope: Scope | None = None,
        rounds: int = 1,
        deadline_ms: int = ROUND_MS,
    ) -> Sent:
        """Put a question to the vote; the ``leaf`` of what is returned is the decision's id.

        Its end comes to :meth:`on_decision`. For admins, analysts and hunters, and among its members for whoever takes
        part in a mission (docs/reference/policy.md).

        Args:
            subject: what is asked, in a line.
            options: text by name, two to eight of them.
            evidence: lines of grounds.
            scope: whom to ask; by default all.
            rounds: most rounds; between them the options are refined.
            deadline_ms: for how long each waits for ballots.

        Raises:
            DeniedError: ``proposer_not_allowed``.
            InvalidInputError: ``bad_question``.
            UnavailableError: ``no_epoch``: nobody can decide yet.
        """
        if (epoch := self.host.epoch) is None:
            raise UnavailableError("no epoch is installed: nobody can decide", reason="no_epoch")
        proposal = question_of(
            epoch.digest,
            subject,
            options,
            evidence=evidence,
            scope=scope,
            rounds=rounds,
            deadline_ms=deadline_ms,
        )
        check_proposer(self.id, proposal)
        return await self.send(CONSENSUS_PROPOSAL, proposal, audience="all", priority=Priority.HIGH)

    async def send(
        self,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str,
        priority: Priority = Priority.NORMAL,
        sealed: bool = False,
    ) -> Sent:
        """Send to ``agent.<name>``, ``role.<role>`` or ``all``, through the router.

        Intelligence is always sealed: nobody but its audience can read it, the router included.

        Raises:
            UnavailableError: ``no_sealing_key``: nobody of the audience can be sealed to.
            InvalidInputError: ``too_many_recipients``: the audience has more than 64 keys.
        """
        return await self.host.route(self, kind, body, audience=audience, priority=priority, sealed=sealed)


def rendezvous(key: bytes | str, names: Sequence[str]) -> str:
    """Return the one of ``names`` that owns ``key``: everyone who knows the same names agrees, unasked.

    Highest random weight hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
    rates", 1998) with SHA-256 as the weight: when a name goes, only the keys that it owned move.

    Raises:
        InvalidInputError: ``no_candidates``.
    """
    if not names:
        raise InvalidInputError("nobody to choose from", reason="no_candidates")
    raw = key.encode() if isinstance(key, str) else key
    prefix = len(raw).to_bytes(8, "big") + raw
    return max(names, key=lambda name: (hashlib.sha256(prefix + name.encode()).digest(), name))
