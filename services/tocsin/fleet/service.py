"""The shell: enrolment and the roster are answered, heartbeats are taken."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.bus.enrolment import IssuedToken, read_tokens
from tocsin.contracts.catalogue import AGENTS, FLEET_ENROL, FLEET_ROSTER, HEARTBEAT
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.contracts.fleet import (
    AgentRecord,
    Enrolled,
    Enrolment,
    EnrolRequest,
    Heartbeat,
    Roster,
    RosterRequest,
)
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.crypto import Algorithm, Authority, key_id
from tocsin.fleet import admission
from tocsin.fleet.health import HealthBook
from tocsin.fleet.liveness import Liveness, OnGone
from tocsin.fleet.revocations import RevocationStater
from tocsin.fleet.settings import FleetSettings
from tocsin.fleet.store import FleetStore
from tocsin.telemetry import get_logger

AUTHORITY_NAME = "fleet"
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class FleetService(Service[FleetSettings]):
    """Enrols hosts and agents, and says who is enrolled and who lives."""

    name = ServiceName.FLEET

    def __init__(self, bus: Bus, settings: FleetSettings) -> None:
        super().__init__(bus, settings)
        self._store = FleetStore(bus)
        self.book = HealthBook(silent_after_ns=int(settings.silent_after_s * NS_PER_S))
        self.liveness = Liveness(bus, settings, self.book)
        self._authority: Authority
        self._tokens: dict[str, IssuedToken] = {}
        self._tokens_changed_ns = -1

    async def prepare(self) -> None:
        """Read the authority and the tokens, and learn who is enrolled.

        Raises:
            InvalidInputError: ``wrong_authority``: not an intermediate of this trust domain.
        """
        self._authority = Authority.load(self.settings.authority_dir, AUTHORITY_NAME, backend=self.bus.backend)
        if self._authority.is_root or self._authority.id.domain != self.bus.trust.domain:
            raise InvalidInputError(
                f"{self._authority.id} is no intermediate authority of {self.bus.trust.domain}",
                reason="wrong_authority",
                advice="`tocsin ca init` makes fleet.key and fleet.pem",
            )
        await self._read_tokens()
        await self.bus.records(AGENTS).follow(self._learn)

    async def started(self) -> None:
        """Begin to state which keys are revoked, and to look who lives."""
        self.liveness.start()
        stater = RevocationStater(self.bus, interval_s=self.settings.revocations_interval_s)
        self.bus.spawn(stater.run(), "revocation statements")

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
            TocsinError: as :func:`admission.admit` and :func:`admission.bind`.
        """
        if self.bus.trust.is_revoked(context.key_id):
            raise UntrustedError("this key was revoked", reason="revoked", advice="make a new key")
        if request.token_id not in self._tokens:
            await self._read_tokens()
        ids = admission.admit(request, context.sender, self._tokens, self._authority.id.domain)
        held = await self._store.enrolments(ids)
        bound = admission.bind_all(
            ids,
            held,
            token_id=request.token_id,
            key_id=key_id(request.public_key),
            now_ns=time.time_ns(),
        )
        await self._store.bind(held, bound)
        chain = await asyncio.to_thread(self._issue, request, bound)
        await self.bus.put_identity(ids[0], chain)
        await self._store.put_agents(_records(request, bound))
        self.metrics.count("enrolments")
        log.info("enrolled", host=request.host, agents=len(request.agents), token_id=request.token_id)
        return Enrolled(chain=chain)

    @handles(FLEET_ROSTER)
    async def roster(self, _: RosterRequest, context: Context) -> Roster:
        """Return all agents and how they are."""
        return Roster(entries=self.book.roster(now_ns=context.now_ns))

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

    async def _read_tokens(self) -> None:
        """Read the tokens file if it changed: who operates fleet may add to it while fleet runs.

        Raises:
            InvalidInputError: ``bad_tokens_file``: those that are known stay in force.
        """
        path = self.settings.tokens_file
        changed_ns = await asyncio.to_thread(lambda: path.stat().st_mtime_ns if path.exists() else 0)
        if changed_ns != self._tokens_changed_ns:
            tokens = await asyncio.to_thread(read_tokens, path, IssuedToken)
            self._tokens = {token.token_id: token for token in tokens}
            self._tokens_changed_ns = changed_ns

    def _issue(self, request: EnrolRequest, bound: dict[SpiffeId, Enrolment]) -> tuple[bytes, ...]:
        certificate = self._authority.issue(
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
