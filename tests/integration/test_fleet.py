"""Fleet over a real broker: who gets a certificate, who does not, and who lives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet_support import FleetWorld, token, tokens_for
from support import DOMAIN, World, eventually

from tocsin.agent.enrol import KeyGroup, Wallet, enrol, key_groups
from tocsin.bus import Bus, Credentials
from tocsin.bus.enrolment import HeldToken, IssuedToken
from tocsin.contracts.catalogue import (
    AGENTS,
    ENROLMENTS,
    FLEET_ROSTER,
    HEARTBEAT,
    HEARTBEAT_TYPE,
)
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    InvalidInputError,
    TocsinError,
    UntrustedError,
)
from tocsin.contracts.fleet import AgentRecord, AgentSpec, AgentState, Heartbeat, RosterRequest
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.crypto import Algorithm, LocalKey
from tocsin.telemetry import Metrics

H01 = AgentSpec(name="hunter-01", role=Role.HUNTER)
H02 = AgentSpec(name="hunter-02", role=Role.HUNTER)
ADMIN = AgentSpec(name="admin-01", role=Role.ADMIN)
TOKEN = token("h1", [("hunter-01", Role.HUNTER), ("admin-01", Role.ADMIN)])


@dataclass
class Applicant:
    """A host process before it is enrolled."""

    bus: Bus
    wallet: Wallet
    key: LocalKey

    async def ask(
        self,
        token: IssuedToken,
        agents: tuple[AgentSpec, ...] = (H01,),
        *,
        host: str = "h1",
        names_host: bool = True,
    ) -> Credentials:
        held = HeldToken(token_id=token.token_id, secret_hex=token.secret_hex, agents=())
        group = KeyGroup(held, host, names_host, agents)
        return await enrol(self.bus, self.wallet, group, self.key, timeout_s=5)


async def applicant(world: World, folder: Path, host: str = "h1", key: LocalKey | None = None) -> Applicant:
    key = key or LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
    root = world.authority.certificate_pem
    bare = Credentials(SpiffeId.host(DOMAIN, host), key, (), root)
    bus = await world.buses.enter_async_context(Bus(world.settings(), bare, Metrics()))
    return Applicant(bus, Wallet(folder, root, world.backend), key)


async def enrolled_under(world: World) -> dict[str, str]:
    fleet = await world.service(ServiceName.FLEET, "reader")
    return {key: held.token_id for key, held in (await fleet.records(ENROLMENTS).all()).items()}


async def test_a_certificate_is_issued_for_what_the_token_promises(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, [TOKEN], world.folder) as fleet:
        await fleet.start_fleet()
        host = await applicant(world, tmp_path / "w")
        held = await host.ask(TOKEN)
        await eventually(lambda: host.bus.trust.identity(host.key.signer.key_id) is not None)
        identity = host.bus.trust.identity(host.key.signer.key_id)
        assert identity is not None
        assert identity.ids == {
            str(SpiffeId.host(DOMAIN, "h1")),
            str(SpiffeId.agent(DOMAIN, Role.HUNTER, "hunter-01")),
        }
        assert (identity.generation, len(held.chain)) == (1, 2)
        assert 23.9 < (identity.not_after_ns - identity.not_before_ns) / 3600e9 < 24.1
        record = await host.bus.records(AGENTS).get("hunter-01")
        assert record is not None
        assert (record.host, record.role, record.key_id) == ("h1", Role.HUNTER, host.key.signer.key_id)


@pytest.mark.parametrize(
    ("change", "agents", "host", "family", "reason"),
    [
        ({"secret_hex": "ab" * 32}, (H01,), "h1", UntrustedError, "bad_token"),
        ({"token_id": "h9-9"}, (H01,), "h1", UntrustedError, "bad_token"),
        ({}, (H02,), "h1", DeniedError, "wrong_agents"),
        ({}, (AgentSpec(name="hunter-01", role=Role.GUARDIAN),), "h1", DeniedError, "wrong_agents"),
        ({}, (H01,), "h2", DeniedError, "wrong_host"),
        ({}, (H01, ADMIN), "h1", InvalidInputError, "shared_key"),
        ({}, (H01, H01), "h1", InvalidInputError, "bad_names"),
    ],
)
async def test_a_request_for_anything_else_is_refused_and_uses_nothing_up(
    world: World,
    tmp_path: Path,
    change: dict[str, str],
    agents: tuple[AgentSpec, ...],
    host: str,
    family: type[TocsinError],
    reason: str,
) -> None:
    async with FleetWorld(world, [TOKEN], world.folder) as fleet:
        await fleet.start_fleet()
        one = await applicant(world, tmp_path / "w", host)
        with pytest.raises(family) as caught:
            await one.ask(TOKEN.model_copy(update=change), agents, host=host)
        assert caught.value.reason == reason
        assert await enrolled_under(world) == {}
        assert one.bus.trust.identity(one.key.signer.key_id) is None


async def test_a_used_token_is_good_for_the_same_key_only(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, [TOKEN], world.folder) as fleet:
        await fleet.start_fleet()
        first = await applicant(world, tmp_path / "a")
        await first.ask(TOKEN)
        await first.ask(TOKEN)
        thief = await applicant(world, tmp_path / "b")
        with pytest.raises(ConflictError) as caught:
            await thief.ask(TOKEN)
        assert caught.value.reason == "token_used"
        # The admin's id under the same token is still free, for a key of its own.
        admin = await applicant(world, tmp_path / "c")
        admin.bus.add_key(admin.key, (SpiffeId.agent(DOMAIN, Role.ADMIN, "admin-01"),))
        await admin.ask(TOKEN, (ADMIN,), names_host=False)


async def test_the_use_of_a_token_survives_fleet(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, [TOKEN], world.folder) as fleet:
        first_fleet = await fleet.start_fleet()
        first = await applicant(world, tmp_path / "a")
        await first.ask(TOKEN)
        await first_fleet.stop()
        await first_fleet.bus.__aexit__(None, None, None)
        await fleet.start_fleet()
        thief = await applicant(world, tmp_path / "b")
        with pytest.raises(TocsinError) as caught:
            await thief.ask(TOKEN)
        assert caught.value.reason == "token_used"


async def test_a_fresh_token_replaces_a_lost_key_for_good(world: World, tmp_path: Path) -> None:
    fresh = token("h1", [("hunter-01", Role.HUNTER)], number=1)
    async with FleetWorld(world, [TOKEN, fresh], world.folder) as fleet:
        await fleet.start_fleet()
        lost = await applicant(world, tmp_path / "a")
        await lost.ask(TOKEN)
        new = await applicant(world, tmp_path / "b")
        await new.ask(fresh)
        await eventually(lambda: new.bus.trust.identity(new.key.signer.key_id) is not None)
        identity = new.bus.trust.identity(new.key.signer.key_id)
        assert identity is not None
        assert identity.generation == 2
        with pytest.raises(ConflictError) as caught:
            await lost.ask(TOKEN)
        assert caught.value.reason == "token_used"


async def test_an_answer_that_does_not_lead_to_the_root_is_refused(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, [TOKEN], world.folder) as fleet:
        await fleet.start_fleet()
        host = await applicant(world, tmp_path / "w")
        group = key_groups(
            "h1",
            [H01],
            [HeldToken(token_id=TOKEN.token_id, secret_hex=TOKEN.secret_hex, agents=("hunter-01",))],
            per_agent=False,
        )[0]
        held = await host.ask(TOKEN)
        other = LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
        with pytest.raises(UntrustedError, match="another key"):
            host.wallet.check(group, other, held.chain)
        with pytest.raises(UntrustedError, match="other ids"):
            host.wallet.check(KeyGroup(group.token, "h1", names_host=True, agents=()), host.key, held.chain)
        forged = bytearray(held.chain[0])
        forged[-1] ^= 1
        with pytest.raises(UntrustedError):
            host.wallet.check(group, host.key, (bytes(forged), held.chain[1]))


async def test_the_roster_says_who_lives_and_only_the_own_host_can_say_so(world: World) -> None:
    agents = [("hunter-01", Role.HUNTER)]
    tokens = [*tokens_for("h1", agents), *tokens_for("h2", [("hunter-02", Role.HUNTER)])]
    async with FleetWorld(world, tokens, world.folder) as fleet:
        service = await fleet.start_fleet(silent_after_s=1)
        await fleet.start_host("h2", [("hunter-02", Role.HUNTER)])
        host = fleet.make_host("h1", agents)
        cli = await world.service(ServiceName.CLI)

        async def states() -> dict[str, AgentState]:
            roster = await cli.request(FLEET_ROSTER, RosterRequest(), timeout_s=5)
            return {entry.agent.name: entry.state for entry in roster.entries}

        async def become(expected: dict[str, AgentState]) -> None:
            while await states() != expected:
                assert set(await states()) <= set(expected)

        both = {"hunter-01": AgentState.HEALTHY, "hunter-02": AgentState.HEALTHY}
        async with host:
            await become(both)
        await become(both | {"hunter-01": AgentState.GONE})
        liar = await world.bus(SpiffeId.host(DOMAIN, "h3"))
        beat = Heartbeat(host="h3", agents=("hunter-01",), handled=0, failed=0)
        await liar.publish(HEARTBEAT, HEARTBEAT_TYPE, beat, at={"host": "h3"})
        await eventually(lambda: service.metrics.counter("heartbeats_of_others") == 1)
        assert (await states())["hunter-01"] is AgentState.GONE


async def test_a_forged_record_makes_nobody_an_agent(world: World) -> None:
    agents = [("hunter-01", Role.HUNTER)]
    async with FleetWorld(world, tokens_for("h1", agents), world.folder) as fleet:
        await fleet.start_fleet()
        host = await fleet.start_host("h1", agents)
        await eventually(lambda: host.peers(Role.HUNTER) == ("hunter-01",))
        enemy = await world.service(ServiceName.ROUTER, "evil")
        kv = await enemy.connection.js.key_value(AGENTS.name)
        genuine = await kv.get("hunter-01")
        assert genuine.value is not None
        await kv.put("hunter-99", genuine.value)
        await kv.put("hunter-98", b"garbage")
        await eventually(lambda: host.metrics.counter("rejected.moved_record") == 1)
        await eventually(lambda: host.metrics.counter("rejected.malformed") == 1)
        assert host.peers(Role.HUNTER) == ("hunter-01",)
        record = AgentRecord(name="h", role=Role.HUNTER, host="h1", key_id=bytes(32), enrolled_ns=0)
        with pytest.raises(DeniedError):
            await enemy.records(AGENTS).put("h", record)
