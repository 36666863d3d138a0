"""The shell: enrolment and the roster are answered, heartbeats are taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.contracts.catalogue import AGENTS, FLEET_ENROL, FLEET_RENEW, FLEET_ROSTER, HEARTBEAT
from tocsin.contracts.errors import TocsinError, UnavailableError, UntrustedError
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
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.crypto import Algorithm, key_id
from tocsin.fleet import admission
from tocsin.fleet.authority import AuthorityKeeper
from tocsin.fleet.health import HealthBook
from tocsin.fleet.revocations import RevocationStater
from tocsin.fleet.settings import FleetSettings
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
        self._book = HealthBook(silent_after_ns=int(settings.silent_after_s * NS_PER_S))
        self._keeper = AuthorityKeeper(
            bus, settings.authority_dir, service_lifetime_s=settings.service_lifetime_s
        )
        self._tokens = TokenBook(settings.tokens_file, bus.metrics)
        self._enrolling: dict[tuple[SpiffeId, bytes], asyncio.Task[Enrolled]] = {}

    async def prepare(self) -> None:
        """Read the authority and the tokens, and learn who is enrolled.

        Raises:
            InvalidInputError: ``wrong_authority``: not an intermediate of this trust domain.
        """
        await self._keeper.load()
        await self._tokens.load()
        await self.bus.records(AGENTS).follow(lambda _, record: self._book.enrol(record))

    async def started(self) -> None:
        """Begin to state which keys are revoked."""
        stater = RevocationStater(self.bus, interval_s=self.settings.revocations_interval_s)
        self.bus.spawn(stater.run(), "revocation statements")
        self.bus.spawn(self._keeper.run(), "authority")

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
    async def roster(self, _: RosterRequest, context: Context) -> Roster:
        """Return all agents and how they are."""
        return Roster(entries=self._book.roster(now_ns=context.now_ns))

    @subscribes(HEARTBEAT)
    async def on_heartbeat(self, beat: Heartbeat, context: Context) -> None:
        """Take a host's word for its own agents; the bus has checked that the host itself sent it."""
        counted = self._book.beat(context.sender.name, beat.agents, at_ns=context.now_ns)
        if counted < len(beat.agents):
            self.metrics.count("heartbeats_of_others", len(beat.agents) - counted)

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
