"""The process that carries agents: one bus, many agents.

    async with AgentHost(settings, make, metrics) as host:
        await stop.wait()

It enrols, follows who else is enrolled and which epoch holds, subscribes for all of its agents at once,
and gives every agent an inbox and a task. Emergencies also come by the stream ALERTS, over a second
connection of their own, so that one that was missed (the broker restarted, the process did) is still
delivered; decisions and workflows' ends are read from their streams for the same reason. When the host
ends, it takes nothing more, its agents go on with what waits for at most ``drain_s`` seconds, and what
they send still goes out.

Does not protect against an agent that harms its process: agents of one host share its memory and its fate.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tocsin.agent.agent import Agent
from tocsin.agent.balloting import Balloting
from tocsin.agent.ballots import BallotLog
from tocsin.agent.channels import Channel, Network
from tocsin.agent.channels.lobby import Lobby, Party
from tocsin.agent.delivery import Delivery, Resident
from tocsin.agent.emergencies import Emergencies
from tocsin.agent.ends import Ends
from tocsin.agent.enrol import Wallet, key_groups
from tocsin.agent.epochs import EpochKeeper
from tocsin.agent.handlers import Handlers
from tocsin.agent.inbox import Inbox, Job
from tocsin.agent.journal import AlertJournal
from tocsin.agent.measurement import measure
from tocsin.agent.membership import Membership
from tocsin.agent.mission_links import MissionLinks
from tocsin.agent.missions import Missions
from tocsin.agent.peers import Peers
from tocsin.agent.receipts import ReceiptSender
from tocsin.agent.settings import HostSettings
from tocsin.agent.succession import Electorate, SupportLog
from tocsin.bus import Bus, Context, Sent
from tocsin.bus.consumer import Consumer
from tocsin.bus.credentials import read
from tocsin.bus.enrolment import HeldToken, check_root, read_tokens
from tocsin.bus.folder import claim_folder
from tocsin.bus.sealing import SealingKeys
from tocsin.bus.service import VERSION
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    CONSENSUS_DECISION,
    CONSENSUS_ROUND,
    CONSENSUS_WANTED,
    DELIVER_AGENT,
    DELIVER_ALL,
    DELIVER_ROLE,
    DISCOVERY,
    DISCOVERY_BACKUP,
    EVENT,
    HEARTBEAT,
    HEARTBEAT_TYPE,
    HOST_ATTEST,
    HOST_PING,
    MEMBERSHIP,
    OBSERVE,
    ROUTE,
    THREAT_ALERT,
)
from tocsin.contracts.decisions import BallotsWanted, DecisionAnnounced, Proposal, RoundOpened
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.health import Attestation, Challenge, MeasuredAgent, Measurement
from tocsin.contracts.identifiers import AgentName, Priority, Role, SpiffeId
from tocsin.contracts.operations import PingRequest, Pong
from tocsin.contracts.routing import Discovery
from tocsin.contracts.subjects import MessageType, Request
from tocsin.crypto import TrustStore, select_backend
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.telemetry import Metrics, get_logger

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

STUCK_S = 30.0
"""An agent whose handler has run for so long is left out of the heartbeat: as silent as it is."""
ALERT_ACK_WAIT_S = 2.0
"""How long after a crash of the host the stream waits with the alert that it held; those behind it wait, too."""
ALERT_MAX_DELIVER = -1
"""An alert that is refused, since an inbox is full or the revocations are too old, comes again for as long as it is
good; those behind it wait, though not for their copies by core."""
CATCH_UP_S = 5.0
"""How long a host that starts reads the alerts that it missed before it listens to new ones."""
EMERGENCY_S = 10.0
"""How long a sender tries to get an emergency accepted."""
GOODBYE_S = 2.0
DECISION_MAX_DELIVER = 50
"""With pauses that double up to 16 s: a quarter of an hour in which revocations may be stale."""
STATE_LAYOUT = 1
"""Of a host's state folder."""

log = get_logger(__name__)


def open_membership(settings: HostSettings) -> Membership:
    """Read a host's files: the root, the tokens, keys and certificates of an earlier run. Blocking.

    Raises:
        TocsinError: one is missing or does not hold, e.g. ``wrong_root``, ``no_token`` or ``state_version``.
    """
    claim_folder(settings.state_dir, layout=STATE_LAYOUT)
    root_pem = read(settings.credentials_dir / "ca.pem")
    backend = select_backend(settings.signature_backend)
    wallet = Wallet(settings.state_dir / "identity", root_pem, backend)
    tokens = read_tokens(settings.enrol_tokens_file, HeldToken)
    check_root(tokens, TrustStore(root_pem, backend).root_fingerprint)
    groups = key_groups(settings.host_name, settings.carried(), tokens, per_agent=settings.key_scope == "agent")
    return Membership.open(wallet, groups, now_ns=time.time_ns())


class AgentHost:
    """Carries agents. Use with ``async with``; the constructor does no I/O.

    Args:
        settings: which agents, and the rest.
        make: makes one agent of a role.
        metrics: the process's figures.
    """

    def __init__(self, settings: HostSettings, make: Callable[[Role, str], Agent], metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.agents = {spec.name: make(spec.role, spec.name) for spec in settings.carried()}
        self.peers_known = Peers()
        self._ready = False
        self._bus: Bus
        self._membership: Membership
        self._epochs: EpochKeeper
        self._electorate: Electorate
        self._balloting: Balloting
        self._sealing_keys: SealingKeys
        self._receipts: ReceiptSender
        self._delivery: Delivery
        self._ends: Ends
        self._lobby: Lobby
        self._missions: Missions
        self._residents: dict[str, Resident] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._consumers: tuple[Consumer, ...] = ()
        self._root_pem = b""
        self._beat_now = asyncio.Event()
        self._measured: dict[str, Measurement] = {}
        self._open = AsyncExitStack()

    # --- Life ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready = False
        try:
            await self._say_goodbye()
        finally:
            await self._open.aclose()

    @property
    def ready(self) -> bool:
        """Whether the agents are enrolled and subscribed, and the broker is there."""
        return self._ready and self._bus.connected and self._bus.certified

    async def _start(self) -> None:
        self._membership = await asyncio.to_thread(self._prepare)
        ballots = await asyncio.to_thread(BallotLog, self.state_dir / "ballots.log")
        self._open.callback(ballots.close)
        supported = await asyncio.to_thread(SupportLog, self.state_dir / "epochs.log")
        self._open.callback(supported.close)
        journal = await asyncio.to_thread(
            AlertJournal, self.state_dir / "alerts.journal", now_ns=time.time_ns()
        )
        self._open.push_async_callback(journal.close)
        self._bus = self._membership.make_bus(self.settings, self.metrics)
        self._bus.audiences |= self._audiences()
        await self._open.enter_async_context(self._bus)
        await self._membership.join(self._bus, timeout_s=self.settings.enrol_timeout_s)
        self._epochs = EpochKeeper(self._bus)
        self._ends = Ends(self._bus, self._epochs.reader)
        self._sealing_keys = SealingKeys(self._bus)
        self._receipts = ReceiptSender(self._bus, self.settings.host_name)
        self._residents = {name: self._settle(agent) for name, agent in self.agents.items()}
        self._electorate = Electorate(self._bus, supported)
        self._balloting = Balloting(self._bus, ballots, self._epochs, self._electorate)
        carried = [(resident.agent, resident.inbox) for resident in self._residents.values()]
        handlers = Handlers()
        emergencies = Emergencies(self._bus, journal, self._receipts, carried, handlers.call)
        self._delivery = Delivery(
            self._residents.values(),
            emergencies,
            self._ends,
            self.metrics,
            self._balloting.ballot,
            self._bus.reject,
            self._bus.opener.require_trusted,
            self._bus.standings.is_quarantined,
            handlers.call,
        )
        await asyncio.gather(
            self._epochs.start(),
            self.peers_known.follow(self._bus),
            self._sealing_keys.follow(),
            self._bus.standings.follow(),
        )
        await self._membership.publish_sealing_keys(self._bus)
        # Before anything new can come: what was accepted before keeps its place.
        await emergencies.restore()
        self._lobby = Lobby(
            self._bus, self.peers_known, self.settings, map(self._party, self._residents.values())
        )
        self._missions = Missions(
            self._bus,
            self.settings.host_name,
            self.settings.zone,
            self.agents,
            self._delivery,
            MissionLinks(self._lobby, self.agents),
            is_fit=lambda name: not self._bus.standings.is_quarantined(name),
        )
        await asyncio.gather(self._subscribe(), self._lobby.start())
        for resident in self._residents.values():
            self._working.add(self._bus.spawn(resident.inbox.run(), f"agent {resident.agent.name}"))
        self._bus.spawn(self._receipts.run(), "receipts")
        await self._bus.serve(HOST_ATTEST, self._attest, concurrency=2, at={"host": self.settings.host_name})
        await self._bus.serve(HOST_PING, self._pong, concurrency=2, at={"host": self.settings.host_name})
        self._bus.connection.on_reconnect(self._beat_now.set)
        await self._missions.start()
        self._bus.spawn(self._beat(), "heartbeat")
        self._bus.spawn(self._membership.renew(self._bus), "renewal")
        await self._introduce()
        self._ready = True
        log.info("host_ready", host=self.settings.host_name, agents=len(self.agents))

    def _prepare(self) -> Membership:
        self._root_pem = read(self.settings.credentials_dir / "ca.pem")
        self._measured = measure(self.agents.values(), self.settings)
        return open_membership(self.settings)

    def _settle(self, agent: Agent) -> Resident:
        """Give an agent its host, its id and its inbox; its first job is to start."""
        agent.host = self
        agent.id = SpiffeId.agent(self._bus.trust.domain, agent.role, agent.name)
        inbox = Inbox(agent.name, self.metrics, length=self.settings.inbox_length)
        inbox.put(Job("started", agent.started, urgent=True))
        return Resident(agent, inbox, self._membership.key_id(agent.id))

    def _party(self, resident: Resident) -> Party:
        """Say where what peers send to an agent in channels goes: into its inbox."""
        agent, inbox = resident.agent, resident.inbox

        def deliver(data: bytes | Message, peer: SpiffeId) -> None:
            inbox.put(Job("channel", partial(agent.on_channel, data, peer)))

        return Party(agent.id, resident.key_id, deliver)

    def _audiences(self) -> frozenset[str]:
        roles = {f"role.{agent.role.value}" for agent in self.agents.values()}
        return frozenset(roles | {f"agent.{name}" for name in self.agents})

    async def _subscribe(self) -> None:
        """Listen for all agents; the slow part is the broker's confirmation, so all wait for it at once."""
        bus, to = self._bus, self._delivery
        roles = sorted({agent.role.value for agent in self.agents.values()})
        durable = f"host-{self.settings.host_name}"
        alerts = await bus.consume(
            ALERT_BACKUP,
            to.from_stream,
            durable=f"{durable}-alerts",
            only_new=True,
            second_connection=True,
            in_order=True,
            ack_wait_s=ALERT_ACK_WAIT_S,
            max_deliver=ALERT_MAX_DELIVER,
            again=True,
        )
        # What was missed first: by core, a later alert or another copy could come before it.
        if not await alerts.caught_up(timeout_s=CATCH_UP_S):
            self.metrics.count("alerts_not_caught_up")
        await asyncio.gather(
            bus.subscribe(DELIVER_ALL, to.from_core),
            bus.subscribe(CONSENSUS_ROUND, self._round),
            bus.subscribe(CONSENSUS_WANTED, self._wanted),
            *(bus.subscribe(DELIVER_ROLE, to.from_core, at={"role": role}) for role in roles),
            *(bus.subscribe(DELIVER_AGENT, to.from_core, at={"agent": name}) for name in self.agents),
            *(self._serve_observe(resident) for resident in self._residents.values()),
        )
        decisions = await bus.consume(
            CONSENSUS_DECISION,
            self._on_decision,
            durable=f"{durable}-decisions",
            only_new=True,
            max_deliver=DECISION_MAX_DELIVER,
        )
        about = {"service": "workflow", "kind": "assessment"}
        made = await bus.consume(EVENT, to.fact, durable=f"{durable}-assessments", only_new=True, at=about)
        self._consumers = (alerts, decisions, made)
        if Role.ADMIN.value in roles:
            await bus.subscribe(MEMBERSHIP, to.membership)
            self._consumers += (
                await bus.consume(
                    DISCOVERY_BACKUP,
                    to.from_stream,
                    durable=f"{durable}-discoveries",
                    only_new=True,
                    second_connection=True,
                    at={"reach": "role", "name": Role.ADMIN.value},
                ),
            )

    async def _on_decision(self, body: Message, context: Context) -> None:
        if isinstance(body, DecisionAnnounced):
            await self._ends.prove(body)
            await self._electorate.ended(body)
        await self._delivery.fact(body, context)

    async def _round(self, opened: RoundOpened, context: Context) -> None:
        """Let all agents ballot again, if a further round of a decision has begun."""
        known = await self._balloting.opened(opened)
        if known is not None:
            again = partial(self._balloting.ballot_again, known)
            self._delivery.again(context.kind.name, known.context, again)

    async def _wanted(self, wanted: BallotsWanted, _: Context) -> None:
        """Send ballots again; where the question has never come, hear of it now.

        Raises:
            TocsinError: what came along is no such proposal.
        """
        if await self._balloting.wanted(wanted, self._residents):
            proposal, context = await self._bus.reopen(DELIVER_ALL, DELIVER_ALL.at(), wanted.proposal)
            if isinstance(proposal, Proposal) and context.leaf == wanted.decision:
                self.metrics.count("proposals_heard_late")
                self._delivery.from_core(proposal, context)

    async def _serve_observe(self, resident: Resident) -> None:
        if resident.agent.role is Role.SENTINEL:
            answer = partial(self._delivery.observe, resident)
            at = {"agent": resident.agent.name}
            await self._bus.serve(OBSERVE, answer, concurrency=1, sender=resident.agent.id, at=at)

    async def _introduce(self) -> None:
        """Tell the admins of every agent; nothing depends on it, so a router that is away is no failure."""
        try:
            await asyncio.gather(*(self._discover(agent) for agent in self.agents.values()))
        except TocsinError as error:
            self.metrics.count(f"discovery_failures.{error.reason}")

    async def _discover(self, agent: Agent) -> None:
        known = Discovery(
            agent=agent.name,
            role=agent.role,
            host=self.settings.host_name,
            capabilities=agent.capabilities,
        )
        await self.route(agent, DISCOVERY, known, audience="role.admin", priority=Priority.HIGH)

    async def _beat(self) -> None:
        while True:
            living = [name for name, resident in self._residents.items() if resident.inbox.busy_s() < STUCK_S]
            self.metrics.gauge("agents_stuck", len(self._residents) - len(living))
            if living:
                await self._beat_once(living)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.heartbeat_s):
                    await self._beat_now.wait()
            self._beat_now.clear()

    async def _pong(self, _: PingRequest, __: Context) -> Pong:
        """Say that this process lives."""
        return Pong(
            process=self._bus.id.token,
            version=VERSION,
            signature_backend=self._bus.backend.name,
            name=self.settings.host_name,
        )

    async def _attest(self, challenge: Challenge, _: Context) -> Attestation:
        """Say what each agent runs, as it was measured when this process started."""
        measured = (MeasuredAgent(agent=name, measurement=one) for name, one in self._measured.items())
        return Attestation(nonce=challenge.nonce, agents=tuple(measured))

    async def _beat_once(self, living: list[str]) -> None:
        inboxes = [resident.inbox for resident in self._residents.values()]
        beat = Heartbeat(
            host=self.settings.host_name,
            agents=tuple(living),
            handled=sum(inbox.handled for inbox in inboxes),
            failed=sum(inbox.failed for inbox in inboxes),
        )
        try:
            await self._bus.publish(HEARTBEAT, HEARTBEAT_TYPE, beat, at={"host": self.settings.host_name})
        except TocsinError as error:
            self.metrics.count(f"heartbeat_failures.{error.reason}")

    async def _say_goodbye(self) -> None:
        # The streams' consumers end first: what they gave back would come again, until it has come too often.
        await asyncio.gather(*(consumer.stop() for consumer in self._consumers))
        await self._missions.stop(timeout_s=GOODBYE_S)
        self._delivery.close()
        for resident in self._residents.values():
            resident.inbox.close()
        if self._working:
            _, late = await asyncio.wait(self._working, timeout=self.settings.drain_s)
            for task in late:
                log.warning("agent_abandoned", task=task.get_name())
                task.cancel()
        await asyncio.gather(*map(self._stop_agent, self.agents.values()))
        await self._lobby.stop()
        await self._receipts.flush(timeout_s=GOODBYE_S)

    async def _stop_agent(self, agent: Agent) -> None:
        try:
            async with asyncio.timeout(GOODBYE_S):
                await agent.stopping()
        except Exception:  # one agent's bug must not keep the others from leaving
            self.metrics.count("agent_failures.stopping")
            log.exception("agent_handler_failed", agent=agent.name, type="stopping")

    # --- What agents may ask (HostView) ---------------------------------------------------------

    @property
    def epoch(self) -> InstalledEpoch | None:
        """The epoch that is installed, once this host has it."""
        return self._epochs.epoch

    @property
    def epochs(self) -> Mapping[bytes, InstalledEpoch]:
        """The last epochs that this host has come to believe, by digest."""
        return self._epochs.reader.known

    @property
    def state_dir(self) -> Path:
        """Folder for what must survive a restart."""
        return self.settings.state_dir

    @property
    def root_pem(self) -> bytes:
        """The root certificate that this host trusts."""
        return self._root_pem

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, UTC."""
        return time.time_ns()

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
        """Send through the router as ``agent``; sealed to the audience if asked, or if the type must be.

        An emergency returns once stream ALERTS has it.

        Raises:
            UnavailableError: ``no_answer``: no router has said so; it may be delivered all the same.
            TocsinError: a router refuses the emergency.
        """
        seal_to = self._sealing_keys.of(audience, cleared=kind.cleared) if sealed or kind.cleared else None
        if priority is Priority.CRITICAL and kind is THREAT_ALERT:
            sent = await self._bus.make(
                kind, body, audience=audience, priority=priority, sender=agent.id, seal_to=seal_to
            )
            await self._bus.emergency(sent, agent.id, timeout_s=EMERGENCY_S)
            return sent
        at = {"type": kind.name, "priority": priority.token, "agent": agent.name}
        return await self._bus.publish(
            ROUTE, kind, body, audience=audience, priority=priority, sender=agent.id, seal_to=seal_to, at=at
        )

    async def request(self, agent: Agent, request: Request[Q, R], body: Q, *, timeout_s: float) -> R:
        """Ask a service as ``agent``."""
        return await self._bus.request(request, body, timeout_s=timeout_s, sender=agent.id)

    async def event(self, agent: Agent, kind: MessageType[Message], body: Message) -> Sent:
        """Publish a fact as ``agent``, into its stream."""
        return await self._bus.event(kind, body, sender=agent.id)

    def peers(self, role: Role) -> tuple[AgentName, ...]:
        """Return the names of all enrolled agents of a role, on any host, sorted; nobody who is quarantined."""
        return tuple(name for name in self.peers_known.of(role) if not self._bus.standings.is_quarantined(name))

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task for as long as the host; its failure is logged and counted."""
        self._bus.spawn(work, name)

    @property
    def channels(self) -> Lobby:
        """The secure channels of all agents here: to bar an agent, and to look at them."""
        return self._lobby

    async def channel(self, agent: Agent, peer: str, *, timeout_s: float) -> Channel:
        """Return a secure channel from ``agent`` to a peer."""
        return await self._lobby.channel(agent.name, peer, timeout_s=timeout_s)

    async def establish_network(
        self,
        agent: Agent,
        agents: Sequence[str],
        links: Iterable[tuple[str, str]] | None = None,
        *,
        timeout_s: float,
    ) -> Network:
        """Have channels opened between agents, asking as ``agent``."""
        return await self._lobby.establish(agent.id, agents, links, timeout_s=timeout_s)

    async def certificate(self, decision_hex: str) -> bytes:
        """Fetch a decision's certificate; whoever acts on it verifies it."""
        return await self._bus.get_certificate(decision_hex)
