"""Lives that end, and an authority that is replaced, over a real broker: nobody is started again, nothing stops."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_support import FleetWorld, Recorder, recorder, tokens_for
from support import DOMAIN, World, eventually

from tocsin.agent import Agent
from tocsin.bus import Bus, Credentials, Sent
from tocsin.bus.renewal import CertificateKeeper
from tocsin.cli.authority import issue_service, sign_as_root
from tocsin.contracts.catalogue import (
    COORDINATION,
    DELIVER_AGENT,
    FLEET_ROSTER,
    IDENTITIES,
    REVOCATION_LIST,
    REVOCATIONS,
    ROUTE,
)
from tocsin.contracts.errors import TocsinError, UntrustedError
from tocsin.contracts.fleet import RosterRequest
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.observations import Observations
from tocsin.contracts.revocations import Revocation, RevocationList, RevocationReason
from tocsin.contracts.routing import Coordination
from tocsin.contracts.subjects import EVENT_AUDIENCE
from tocsin.crypto import TrustStore
from tocsin.telemetry import Metrics

AGENTS = [("sentinel-01", Role.SENTINEL), ("hunter-01", Role.HUNTER)]


def put_successor(world: World, fleet: FleetWorld) -> None:
    """Replace fleet's authority by another of its name, as `tocsin ca rotate` does."""
    fresh = fleet.folder / "fresh"
    # Periods begin at whole seconds; a successor begins later.
    world.authority.issue_intermediate("fleet", now=datetime.now(UTC) + timedelta(seconds=2)).save(
        fresh, "fleet"
    )
    for name in ("fleet.key", "fleet.pem"):
        (fresh / name).replace(fleet.folder / "ca" / name)


async def supersede(world: World, bus: Bus, authority: bytes) -> None:
    """Publish the root's word that an authority's key counts no more."""
    entry = Revocation(key_id=authority, reason=RevocationReason.SUPERSEDED, since_ns=time.time_ns())
    listed = RevocationList(number=1, made_ns=time.time_ns(), entries=(entry,))
    sent = sign_as_root(world.authority, REVOCATIONS, listed, audience=EVENT_AUDIENCE)
    await bus.send(REVOCATION_LIST.at(), sent, stream=REVOCATION_LIST.stream)


def service_credentials(world: World, service: ServiceName, folder: Path, *, life_s: float) -> Credentials:
    """Certify a service for a short time, in files."""
    credentials = issue_service(world.authority, service, "0", folder)
    certificate = world.authority.issue(
        ids=[credentials.id],
        public_key=credentials.key.signer.public_key,
        algorithm=credentials.key.algorithm,
        generation=1,
        now=datetime.now(UTC),
        lifetime=timedelta(seconds=life_s),
    )
    name = f"{service.value}-0"
    Credentials(credentials.id, credentials.key, certificate.chain_der, credentials.root_pem).save(folder, name)
    return Credentials.load(folder, None, name, world.backend)


def identity_of(bus: Bus, credentials: Credentials) -> tuple[int, int]:
    """Return how long a chain is that a bus knows of a key, and when it ends."""
    identity = bus.trust.identity(credentials.key.signer.key_id)
    return (0, 0) if identity is None else (len(identity.chain), identity.not_after_ns)


async def test_a_service_outlives_the_certificate_that_the_root_gave_it(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, [], world.folder) as fleet:
        await fleet.start_fleet(service_lifetime_s=10)
        credentials = service_credentials(world, ServiceName.ROUTER, tmp_path / "router", life_s=6)
        router = await world.bus(credentials=credentials)
        other = await world.service(ServiceName.CONSENSUS)
        root_end_ns = TrustStore(credentials.root_pem).add_chain(credentials.chain).not_after_ns
        await eventually(lambda: time.time_ns() > root_end_ns + 10**9, within_s=20)
        # Asked and believed after the root's own certificate has ended, by one and the same process.
        await router.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)
        assert router.certified
        assert identity_of(other, credentials)[0] == 3
        written = Credentials.load(tmp_path / "router", None, "router-0", world.backend)
        assert len(written.chain) == 3

        # A process that starts with what the root gave, as from a read-only folder, finds the renewal in the bucket.
        again = await world.bus(credentials=credentials)
        assert again.certified
        again.credentials.require_valid(now_ns=time.time_ns())
        await again.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)


async def test_a_chain_that_is_written_meanwhile_is_taken_up(world: World, tmp_path: Path) -> None:
    credentials = service_credentials(world, ServiceName.ROUTER, tmp_path, life_s=60)
    router = await world.bus(credentials=credentials)
    keeper = CertificateKeeper(router, (tmp_path, "router-0"))
    issue_service(world.authority, ServiceName.ROUTER, "0", tmp_path)
    before = identity_of(router, credentials)[1]
    await keeper.look()
    assert identity_of(router, credentials)[1] > before + 86_400 * 10**9
    (tmp_path / "router-0.chain").write_bytes(b"\xc1 no chain")
    with pytest.raises(TocsinError):
        await keeper.look()
    assert router.certified


async def test_fleet_renews_what_the_root_has_certified_and_nothing_else(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet()
        await fleet.start_host("h1", AGENTS)
        trust = service.bus.trust
        host = next(i for i in trust.certified_by(service._keeper.authority.signer.key_id) if len(i.chain) == 2)
        with pytest.raises(UntrustedError) as caught:
            service._keeper.renew(host)
        assert caught.value.reason == "not_from_root"
        # What a captured fleet would try: another key under a service's name, in the shape of a renewal.
        router = world.credentials(SpiffeId.service(DOMAIN, ServiceName.ROUTER, "0"))
        thief = world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "0"))
        authority = service._keeper.authority
        forged = authority.renew(thief.chain[0], now=datetime.now(UTC))
        with pytest.raises(UntrustedError) as refused:
            trust.add_chain((forged.der, *authority.chain_der, router.chain[0]))
        assert refused.value.reason == "bad_renewal"
        with pytest.raises(UntrustedError) as alone:
            trust.add_chain((forged.der, *authority.chain_der))
        assert alone.value.reason == "beyond_authority"


class _Traffic:
    """Messages from one agent to another, through a router's bus, without a pause."""

    def __init__(self, router: Bus, sentinel: Agent, hunter: Recorder) -> None:
        self._router, self._sentinel, self._hunter = router, sentinel, hunter
        self.sent = 0
        self.running = True

    async def start(self) -> None:
        async def forward(_: object, context: object) -> None:
            sent = Sent.of(context)  # type: ignore[arg-type]
            await self._router.send(DELIVER_AGENT.at(agent="hunter-01"), sent)

        await self._router.subscribe(ROUTE, forward)

    async def run(self) -> None:
        while self.running:
            body = Coordination(content=Observations(source="s", sequence=self.sent))
            await self._sentinel.send(COORDINATION, body, audience="agent.hunter-01")
            self.sent += 1
            await asyncio.sleep(0.01)

    @property
    def received(self) -> list[int]:
        return [task.sequence for task in self._hunter.tasks if isinstance(task, Observations)]


async def test_messages_flow_while_the_authority_is_rotated(world: World) -> None:
    made: dict[str, Recorder] = {}

    def make(role: Role, name: str) -> Agent:
        made[name] = recorder(role, name)
        return made[name]

    tokens = [*tokens_for("h1", AGENTS[:1]), *tokens_for("h2", AGENTS[1:])]
    async with FleetWorld(world, tokens, world.folder) as fleet:
        service = await fleet.start_fleet(certificate_lifetime_s=600)
        hosts = [
            await fleet.start_host("h1", AGENTS[:1], make),
            await fleet.start_host("h2", AGENTS[1:], make),
        ]
        router = await fleet.router()
        old = service._keeper.authority.signer.key_id
        traffic = _Traffic(router, made["sentinel-01"], made["hunter-01"])
        await traffic.start()
        sending = asyncio.create_task(traffic.run())
        await eventually(lambda: len(traffic.received) > 20)

        put_successor(world, fleet)
        await eventually(lambda: service._keeper.authority.signer.key_id != old)
        new = service._keeper.authority.signer.key_id
        # Both count meanwhile; then everybody has renewed, by itself.
        await eventually(
            lambda: not router.trust.certified_by(old) and len(router.trust.certified_by(new)) == 3, within_s=30
        )
        renewed_at = len(traffic.received)
        await supersede(world, router, old)
        await eventually(lambda: all(host._bus.revocations.book.number == 1 for host in hosts))
        await eventually(lambda: len(traffic.received) > renewed_at + 50)
        traffic.running = False
        await sending
        await eventually(lambda: len(traffic.received) == traffic.sent)
        assert traffic.received == list(range(traffic.sent)), "none lost, none twice, in order"
        refused = {
            name: count
            for bus in (service.bus, router, *(host._bus for host in hosts))
            for name, count in bus.metrics.statistics().counters.items()
            if name.startswith("rejected.")
        }
        assert refused == {}


async def test_a_host_that_was_away_enrols_again_and_the_old_authority_is_worth_nothing(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet()
        async with fleet.make_host("h1", AGENTS) as host:
            key_id = host._bus.credentials.key.signer.key_id
        old = service._keeper.authority
        put_successor(world, fleet)
        await eventually(lambda: service._keeper.authority.signer.key_id != old.signer.key_id)
        await supersede(world, service.bus, old.signer.key_id)
        await eventually(lambda: service.bus.trust.identity(key_id) is None)

        # Whoever has the old key certifies somebody, with a date from before: refused.
        thief = world.credentials(SpiffeId.agent(DOMAIN, Role.HUNTER, "hunter-99"))
        backdated = old.issue(
            ids=[thief.id],
            public_key=thief.key.signer.public_key,
            algorithm=thief.key.algorithm,
            generation=9,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )
        with pytest.raises(UntrustedError) as caught:
            service.bus.trust.add_chain(backdated.chain_der)
        assert caught.value.reason == "revoked"

        back = await fleet.start_host("h1", AGENTS)
        assert back._bus.credentials.key.signer.key_id == key_id
        assert back.ready
        await eventually(lambda: service.bus.trust.identity(key_id) is not None)


async def test_a_running_host_whose_authority_is_gone_at_once_comes_back_by_itself(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet()
        host = await fleet.start_host("h1", AGENTS)
        old = service._keeper.authority.signer.key_id
        put_successor(world, fleet)
        await eventually(lambda: service._keeper.authority.signer.key_id != old)
        await supersede(world, service.bus, old)
        await eventually(lambda: host.ready and bool(service.bus.trust.certified_by(old)) is False, within_s=20)
        await eventually(
            lambda: host._bus.metrics.statistics().counters.get("certificates_renewed", 0) >= 1, within_s=20
        )
        assert host.ready


async def test_the_bucket_is_not_overwritten_by_an_older_chain(world: World, tmp_path: Path) -> None:
    """A service that starts from a read-only folder must not hide its own renewal from those who start later."""
    async with FleetWorld(world, [], world.folder) as fleet:
        service = await fleet.start_fleet()
        credentials = service_credentials(world, ServiceName.ROUTER, tmp_path, life_s=600)
        first = await world.bus(credentials=credentials)
        identity = first.trust.identity(credentials.key.signer.key_id)
        assert identity is not None
        await asyncio.sleep(1.1)  # periods have whole seconds
        renewed = service._keeper.renew(identity)
        await service.bus.put_identity(credentials.id, renewed)
        bare = Credentials(credentials.id, credentials.key, credentials.chain, credentials.root_pem)
        async with Bus(world.settings(), bare, Metrics()) as again:
            assert again.credentials.chain == renewed
            bucket = await again.connection.js.key_value(IDENTITIES)
            entry = await bucket.get(credentials.id.token)
            assert entry.value is not None
            assert len(entry.value) > sum(map(len, renewed[:2]))
