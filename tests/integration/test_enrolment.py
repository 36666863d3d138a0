"""Tokens that end, over a real broker: who is refused, why, and that the audit trail has it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fleet_support import FleetWorld, token
from support import DOMAIN, World, eventually

from tocsin.agent.enrol import KeyGroup, Wallet, enrol
from tocsin.bus import Bus, Context, Credentials
from tocsin.bus.enrolment import HeldToken, IssuedToken
from tocsin.contracts.catalogue import AUDIT
from tocsin.contracts.errors import ConflictError, DeniedError, TocsinError, UntrustedError
from tocsin.contracts.fleet import AgentSpec
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.crypto import Algorithm, LocalKey
from tocsin.telemetry import Metrics

H01 = AgentSpec(name="hunter-01", role=Role.HUNTER)
H02 = AgentSpec(name="hunter-02", role=Role.HUNTER)
HUNTERS = [(one.name, one.role) for one in (H01, H02)]
PAST_NS = 10**18


async def ask(
    world: World,
    folder: Path,
    issued: IssuedToken,
    *,
    key: LocalKey | None = None,
    agents: tuple[AgentSpec, ...] = (H01,),
    sender: SpiffeId | None = None,
) -> LocalKey:
    """Enrol a key as a new host does; return it."""
    key = key or LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
    root = world.authority.certificate_pem
    bare = Credentials(sender or SpiffeId.host(DOMAIN, "h1"), key, (), root)
    async with Bus(world.settings(), bare, Metrics()) as bus:
        held = HeldToken(token_id=issued.token_id, secret_hex=issued.secret_hex, agents=())
        group = KeyGroup(held, "h1", names_host=True, agents=agents)
        await enrol(bus, Wallet(folder, root, world.backend), group, key, timeout_s=5)
    return key


async def audited(world: World) -> list[RejectedEnvelope]:
    """Follow what fleet says that it refused."""
    found: list[RejectedEnvelope] = []

    async def take(rejected: RejectedEnvelope, _: Context) -> None:
        found.append(rejected)

    reader = await world.service(ServiceName.MONITOR)
    await reader.subscribe(AUDIT, take, at={"kind": "rejected"})
    return found


def rewrite(fleet: FleetWorld, **change: object) -> None:
    """Replace the tokens file, as an operator's command does while fleet runs."""
    path = fleet.folder / "tokens.json"
    tokens = [one.model_copy(update=change).model_dump(mode="json") for one in fleet.tokens]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(tokens))
    fresh.replace(path)


@pytest.mark.parametrize(
    ("change", "family", "reason"),
    [
        ({"expires_ns": PAST_NS}, DeniedError, "token_expired"),
        ({"withdrawn_ns": PAST_NS}, DeniedError, "token_withdrawn"),
        ({"secret_hex": "ab" * 32}, UntrustedError, "bad_token"),
        ({"agents": (H02,)}, DeniedError, "wrong_agents"),
        ({"host": "h9"}, DeniedError, "wrong_host"),
    ],
)
async def test_each_refusal_has_its_reason_and_is_audited(
    world: World, tmp_path: Path, change: dict[str, object], family: type[TocsinError], reason: str
) -> None:
    good = token("h1", HUNTERS)
    async with FleetWorld(world, [good], world.folder) as fleet:
        found = await audited(world)
        await fleet.start_fleet()
        rewrite(fleet, **change)
        with pytest.raises(family) as caught:
            await ask(world, tmp_path / "w", good)
        assert caught.value.reason == reason
        await eventually(lambda: any(one.reason == reason for one in found))
        # Nothing was used up: as soon as the token is in order, the same host enrols.
        rewrite(fleet)
        await ask(world, tmp_path / "w", good)


async def test_what_was_enrolled_in_time_is_renewed_and_nothing_more(world: World, tmp_path: Path) -> None:
    good = token("h1", HUNTERS)
    async with FleetWorld(world, [good], world.folder) as fleet:
        found = await audited(world)
        await fleet.start_fleet()
        rewrite(fleet, expires_ns=time.time_ns() + 3_600 * 10**9)
        key = await ask(world, tmp_path / "w", good)
        for change, reason in (
            ({"expires_ns": PAST_NS}, "token_expired"),
            ({"withdrawn_ns": PAST_NS}, "token_withdrawn"),
        ):
            rewrite(fleet, **change)
            await ask(world, tmp_path / "w", good, key=key)
            with pytest.raises(DeniedError) as caught:
                await ask(world, tmp_path / "w", good, key=key, agents=(H01, H02))
            assert caught.value.reason == reason, "an agent that was not enrolled in time"
        with pytest.raises(ConflictError) as used:
            await ask(world, tmp_path / "thief", good)
        assert used.value.reason == "token_used"
        await eventually(lambda: {"token_used", "token_expired"} <= {one.reason for one in found})


async def test_a_certificate_for_anothers_id_is_refused_and_audited(world: World, tmp_path: Path) -> None:
    good = token("h1", HUNTERS)
    async with FleetWorld(world, [good], world.folder) as fleet:
        found = await audited(world)
        await fleet.start_fleet()
        # The code is right, for its own names; but who asks says it is somebody else.
        other = SpiffeId.agent(DOMAIN, Role.HUNTER, "hunter-02")
        key = LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
        bare = Credentials(other, key, (), world.authority.certificate_pem)
        bus = await world.buses.enter_async_context(Bus(world.settings(), bare, Metrics()))

        class Posing(KeyGroup):
            def ids(self, domain: str) -> tuple[SpiffeId, ...]:
                return (other, *super().ids(domain))

        held = HeldToken(token_id=good.token_id, secret_hex=good.secret_hex, agents=())
        group = Posing(held, "h1", names_host=True, agents=(H01,))
        with pytest.raises(DeniedError) as caught:
            await enrol(bus, Wallet(tmp_path / "w", bare.root_pem, world.backend), group, key, timeout_s=5)
        assert caught.value.reason == "wrong_sender"
        await eventually(lambda: any(one.reason == "wrong_sender" for one in found))


async def test_a_tokens_file_that_does_not_hold_leaves_the_tokens_in_force(
    world: World, tmp_path: Path
) -> None:
    good = token("h1", HUNTERS)
    async with FleetWorld(world, [good], world.folder) as fleet:
        service = await fleet.start_fleet()
        (fleet.folder / "tokens.json").write_text("[{")
        await ask(world, tmp_path / "w", good)
        assert service.metrics.statistics().counters["tokens_file_failures.bad_tokens_file"] >= 1
