"""The shell: enrolment and the roster are answered, heartbeats are taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.contracts.catalogue import (
    AGENTS,
    AUDIT,
    EVENT,
    FLEET_AGENT,
    FLEET_APPROVE,
    FLEET_COORDINATE,
    FLEET_ENROL,
    FLEET_MISSION,
    FLEET_MISSIONS,
    FLEET_RENEW,
    FLEET_ROSTER,
    FLEET_STANDING,
    HEARTBEAT,
    METRICS,
    MISSION_REPORT,
)
from tocsin.contracts.decisions import Equivocation
from tocsin.contracts.errors import (
    DeniedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.fleet import (
    AgentRecord,
    Enrolled,
    Enrolment,
    EnrolRequest,
    Heartbeat,
    RenewRequest,
    Roster,
    RosterRequest,
)
from tocsin.contracts.health import (
    AgentDetail,
    AgentQuestion,
    Approval,
    StandingAction,
    StandingDone,
    StandingOrder,
)
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.missions import (
    MissionAccepted,
    MissionList,
    MissionListRequest,
    MissionQuestion,
    MissionReport,
    MissionRequest,
    MissionView,
)
from tocsin.contracts.operations import MetricsSnapshot, RejectedEnvelope
from tocsin.contracts.routing import Refusal
from tocsin.crypto import Algorithm, key_id
from tocsin.fleet import admission
from tocsin.fleet.authority import AuthorityKeeper
from tocsin.fleet.challenger import Challenger
from tocsin.fleet.electing import Elector
from tocsin.fleet.health import HealthBook
from tocsin.fleet.liveness import Liveness, OnGone
from tocsin.fleet.missions import MissionKeeper
from tocsin.fleet.profiles import Profiles
from tocsin.fleet.reports import reporter_of
from tocsin.fleet.revocations import RevocationStater
from tocsin.fleet.settings import FleetSettings
from tocsin.fleet.standing import StandingKeeper
from tocsin.fleet.states import Happening
from tocsin.fleet.store import FleetStore
from tocsin.fleet.tokens import TokenBook
from tocsin.telemetry import get_logger

T = TypeVar("T")

NS_PER_S = 1_000_000_000
STALE = "stale"
"""Two instances at once for one id: asked again, it is answered."""

log = get_logger(__name__)


class FleetService(Service[FleetSettings]):
    """Enrols hosts and agents, and says who is enrolled and who lives."""

    name = ServiceName.FLEET

    def __init__(self, bus: Bus, settings: FleetSettings) -> None:
        super().__init__(bus, settings)
        self._store = FleetStore(bus)
        self.book = HealthBook(silent_after_ns=int(settings.silent_after_s * NS_PER_S))
        self.liveness = Liveness(bus, settings, self.book)
        self.standing = StandingKeeper(bus, self.book, self.liveness)
        self.challenger = Challenger(
            bus, settings, self.book, changed=self.liveness.changed, condemn=self.standing.quarantine
        )
        self.liveness.on_change.append(self.challenger.on_change)
        self.elector = Elector(bus, settings, self.book)
        self._keeper = AuthorityKeeper(
            bus, settings.authority_dir, service_lifetime_s=settings.service_lifetime_s
        )
        self._tokens = TokenBook(settings.tokens_file, bus.metrics)
        self._enrolling: dict[tuple[SpiffeId, bytes], asyncio.Task[Enrolled]] = {}
        self.missions = MissionKeeper(bus, Profiles(self.book))
        self.liveness.on_gone.append(self.missions.agents_lost)

    async def prepare(self) -> None:
        """Read the authority and the tokens, and learn who is enrolled.

        Raises:
            InvalidInputError: ``wrong_authority``: not an intermediate of this trust domain.
        """
        await self._keeper.load()
        await self._tokens.load()
        await self.bus.records(AGENTS).follow(self._learn)
        await self.missions.prepare()
        self.bus.revocations.on_change(self._revoked)
        self._revoked()

    async def started(self) -> None:
        """Begin to state which keys are revoked, and to look who lives."""
        self.liveness.start()
        self.standing.start()
        self.challenger.start()
        await self.missions.started()
        await self.elector.start()
        stater = RevocationStater(self.bus, interval_s=self.settings.revocations_interval_s)
        self.bus.spawn(stater.run(), "revocation statements")
        self.bus.spawn(self._keeper.run(), "authority")

    async def stopping(self) -> None:
        """End the connection by which the broker says who is gone."""
        await self.liveness.stop()

    @property
    def on_gone(self) -> list[OnGone]:
        """Hooks of this process: each is told, at once, of agents that do no work any more (:data:`states.UNFIT`)."""
        return self.liveness.on_gone

    @handles(FLEET_ENROL)
    async def enrol(self, request: EnrolRequest, context: Context) -> Enrolled:
        """Certify a key for what its token promises.

        The use is recorded first, the certificate is known to everyone before the agents are, and the
        answer comes last: wherever this stops, the same request from the same key goes on from there.

        Raises:
            UntrustedError: ``revoked``: the key counts no more, so nothing is certified for it.
            TocsinError: as :func:`admission.admit`, :func:`admission.bind` and :func:`admission.require_open`.
        """
        return await self._audited(self._enrol_once(request, context), context)

    @handles(FLEET_RENEW)
    async def renew(self, _: RenewRequest, context: Context) -> Enrolled:
        """Give longer life to the certificate by which this was asked: the root has vouched for it once.

        Raises:
            UntrustedError: ``not_from_root``, or ``unknown_key``: it was revoked meanwhile.
        """
        return await self._audited(self._renew(context), context)

    async def _audited(self, work: Awaitable[T], context: Context) -> T:
        """Do the work; a refusal is audited like an envelope that does not hold: somebody wanted what is not theirs."""
        try:
            return await work
        except UnavailableError:
            raise
        except TocsinError as error:
            if error.reason != STALE:
                self.bus.reject(error, context.subject, context.data)
            raise

    async def _renew(self, context: Context) -> Enrolled:
        identity = self.bus.trust.identity(context.key_id)
        if identity is None or self.bus.trust.is_revoked(context.key_id):
            raise UntrustedError("this key counts no more", reason="revoked")
        chain = await asyncio.to_thread(self._keeper.renew, identity)
        await self.bus.put_identity(context.sender, chain)
        self.metrics.count("services_renewed")
        return Enrolled(chain=chain)

    async def _enrol_once(self, request: EnrolRequest, context: Context) -> Enrolled:
        """Let a host that asks again, since a thousand agents take long, wait for the answer to its first question.

        The code covers all of the request but who asks, so what has both the same is the same.
        """
        asked = (context.sender, request.mac)
        running = self._enrolling.get(asked)
        if running is None:
            running = asyncio.create_task(self._enrol(request, context))
            self._enrolling[asked] = running
            running.add_done_callback(lambda _: self._enrolling.pop(asked, None))
        return await asyncio.shield(running)

    async def _enrol(self, request: EnrolRequest, context: Context) -> Enrolled:
        if self.bus.trust.is_revoked(context.key_id):
            raise UntrustedError("this key was revoked", reason="revoked", advice="make a new key")
        await self._tokens.refresh()
        tokens = self._tokens.tokens
        ids = admission.admit(request, context.sender, tokens, self.bus.trust.domain)
        held = await self._store.enrolments(ids)
        now_ns = time.time_ns()
        bound = admission.bind_all(
            ids,
            held,
            token_id=request.token_id,
            key_id=key_id(request.public_key),
            now_ns=now_ns,
        )
        admission.require_open(tokens[request.token_id], held, bound, now_ns=now_ns)
        await self._store.bind(held, bound)
        chain = await asyncio.to_thread(self._issue, request, bound)
        await self.bus.put_identity(ids[0], chain)
        await self._store.put_agents(_records(request, bound))
        self.metrics.count("enrolments")
        log.info("enrolled", host=request.host, agents=len(request.agents), token_id=request.token_id)
        return Enrolled(chain=chain)

    @handles(FLEET_ROSTER)
    async def roster(self, asked: RosterRequest, context: Context) -> Roster:
        """Return a page of the agents that are asked for, and how they are."""
        return self.book.page(asked, now_ns=context.now_ns, score=self.standing.score)

    @handles(FLEET_AGENT)
    async def agent(self, asked: AgentQuestion, context: Context) -> AgentDetail:
        """Return all that is known of one agent.

        Raises:
            InvalidInputError: ``no_such_agent``.
        """
        name = asked.agent
        entry = self.book.entry(name, now_ns=context.now_ns, score=self.standing.score(name))
        if entry is None:
            raise InvalidInputError(f"no agent {name} is enrolled", reason="no_such_agent")
        record = await self.challenger.allowed(entry.agent.host)
        allowed = [one for one in record.agents if one.agent == name] if record is not None else []
        return AgentDetail(
            entry=entry,
            standing=self.standing.of(name),
            doubts=tuple(f"{by}: {why}"[:64] for by, why in sorted(self.book.doubts(name).items())),
            presented=self.challenger.presented.get(name),
            attested_ns=self.challenger.attested_ns.get(name),
            allowed=allowed[0].allowed if allowed else (),
            held_against=self.standing.ledger.held_against(name, now_ns=context.now_ns),
        )

    @handles(FLEET_STANDING, concurrency=1)
    async def order(self, order: StandingOrder, context: Context) -> StandingDone:
        """Quarantine or release agents, as an operator orders.

        Raises:
            InvalidInputError: ``no_such_agent``, or ``bad_action``: approvals have a request of their own.
        """
        by = context.sender.token
        if order.action is StandingAction.QUARANTINE:
            return await self.standing.quarantine(order.agents, order.why, by=by)
        if order.action is StandingAction.RELEASE:
            done = await self.standing.release(order.agents, order.why, by=by)
            for record in filter(None, map(self.book.record, order.agents)):
                self.challenger.soon(record.host)
            return done
        raise InvalidInputError(f"{order.action.value} is ordered otherwise", reason="bad_action")

    @handles(FLEET_APPROVE, concurrency=1)
    async def approve(self, approval: Approval, context: Context) -> StandingDone:
        """Allow agents what an operator has seen them run.

        Raises:
            InvalidInputError: ``no_such_agent``.
        """
        changed, unchanged = await self.challenger.approve(approval.agents)
        await self.standing.approved(changed, by=context.sender.token)
        return StandingDone(changed=changed, unchanged=unchanged)

    @handles(FLEET_COORDINATE, concurrency=4)
    async def coordinate(self, request: MissionRequest, context: Context) -> MissionAccepted:
        """Start a mission."""
        return await self.missions.coordinate(request, context)

    @handles(FLEET_MISSION)
    async def mission(self, asked: MissionQuestion, _: Context) -> MissionView:
        """Return all of one mission."""
        return await self.missions.view(asked.mission)

    @handles(FLEET_MISSIONS)
    async def list_missions(self, asked: MissionListRequest, _: Context) -> MissionList:
        """Return missions, the youngest first."""
        return await self.missions.listing(asked)

    @subscribes(MISSION_REPORT)
    async def on_mission_report(self, report: MissionReport, context: Context) -> None:
        """Take what a host says of its agents' objectives."""
        try:
            self.missions.on_report(report, context)
        except DeniedError as error:
            self.bus.reject(error, context.subject, context.data)

    @subscribes(METRICS)
    async def on_figures(self, _: MetricsSnapshot, context: Context) -> None:
        """Count who could report."""
        reporter = reporter_of(context.sender)
        if reporter is not None:
            self.standing.population.seen(reporter, at_ns=context.now_ns)

    @subscribes(AUDIT, at={"kind": "rejected"})
    async def on_rejected(self, rejected: RejectedEnvelope, context: Context) -> None:
        """Weigh what somebody refused."""
        self.standing.on_rejected(rejected, context)

    @subscribes(AUDIT, at={"kind": "equivocation"})
    async def on_equivocation(self, proof: Equivocation, context: Context) -> None:
        """Verify the proof that an agent has voted twice."""
        await self.standing.on_equivocation(proof, context)
        self.elector.convict(proof)

    @subscribes(EVENT, at={"service": "router", "kind": "refusal"})
    async def on_refusal(self, refusal: Refusal, context: Context) -> None:
        """Weigh what a router did not forward."""
        self.standing.on_refusal(refusal, context)

    @subscribes(HEARTBEAT)
    async def on_heartbeat(self, beat: Heartbeat, context: Context) -> None:
        """Take a host's word for its own agents; the bus has checked that the host itself sent it."""
        counted, changes = self.book.beat(
            context.sender.name, beat.agents, at_ns=context.now_ns, sent_ns=context.content.issued_at
        )
        self.liveness.changed(changes, f"heard of by host {context.sender.name}")
        if counted < len(beat.agents):
            self.metrics.count("heartbeats_of_others", len(beat.agents) - counted)

    def _learn(self, _: str, record: AgentRecord) -> None:
        self.liveness.changed(self.book.enrol(record), "enrolled anew")
        self.standing.apply(record.name)
        if self.bus.trust.is_revoked(record.key_id):
            self.liveness.changed(self.book.happen(Happening.REVOKED, [record.name]), "its key was revoked")

    def _revoked(self) -> None:
        """Take note of agents whose keys count no more."""
        names = [name for name in self.book.names() if self._is_revoked(name)]
        self.liveness.changed(self.book.happen(Happening.REVOKED, names), "their keys were revoked")

    def _is_revoked(self, name: str) -> bool:
        record = self.book.record(name)
        return record is not None and self.bus.trust.is_revoked(record.key_id)

    def _issue(self, request: EnrolRequest, bound: dict[SpiffeId, Enrolment]) -> tuple[bytes, ...]:
        certificate = self._keeper.authority.issue(
            ids=tuple(bound),
            public_key=request.public_key,
            algorithm=Algorithm(request.algorithm),
            generation=max(enrolment.generation for enrolment in bound.values()),
            now=datetime.now(UTC),
            lifetime=timedelta(seconds=self.settings.certificate_lifetime_s),
        )
        return certificate.chain_der


def _records(request: EnrolRequest, bound: dict[SpiffeId, Enrolment]) -> list[AgentRecord]:
    by_name = {spiffe_id.name: enrolment for spiffe_id, enrolment in bound.items() if spiffe_id.role}
    return [
        AgentRecord(
            name=agent.name,
            role=agent.role,
            host=request.host,
            key_id=by_name[agent.name].key_id,
            enrolled_ns=by_name[agent.name].enrolled_ns,
        )
        for agent in request.agents
    ]
