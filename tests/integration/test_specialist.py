"""The specialist on a real host, with real fleet and router: it tells what is urgent, sealed, once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_support import FleetWorld, tokens_for
from processes import environment_of, process
from support import SHARED, World, eventually
from tls_servers import server_context, tls_server

from tocsin.agent import Agent, AgentHost, Context
from tocsin.agent.roles import make
from tocsin.bus import Bus
from tocsin.contracts.catalogue import DELIVER_ROLE
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.routing import Intelligence, ThreatAlert
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

SPECIALISTS = [("specialist-01", Role.SPECIALIST)]
OTHERS = [
    ("admin-01", Role.ADMIN),
    ("analyst-01", Role.ANALYST),
    ("guardian-01", Role.GUARDIAN),
]
SSL = SHARED / "data/zeek/apt29-nashua.ssl.log"
X509 = SHARED / "data/zeek/apt29-nashua.x509.log"
needs_data = pytest.mark.skipif(not SSL.exists(), reason="the real data of ../shared is not here")


class Listener(Agent):
    """Keeps alerts and intelligence."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.alerts: list[tuple[ThreatAlert, Context]] = []
        self.intelligence: list[tuple[Intelligence, Context]] = []

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        self.alerts.append((alert, context))

    async def on_intelligence(self, intelligence: Intelligence, context: Context) -> None:
        self.intelligence.append((intelligence, context))


@dataclass
class Scene:
    fleet: FleetWorld
    plan: Path
    router: Bus
    listeners: dict[str, Listener] = field(default_factory=dict)

    def write_plan(self, **said: Any) -> None:
        fresh = self.plan.with_suffix(".new")
        fresh.write_text(json.dumps(said, default=str))
        fresh.replace(self.plan)

    async def start_specialist(self) -> AgentHost:
        def specialist(role: Role, name: str) -> Agent:
            return make(role, name, plan=self.plan)

        return await self.fleet.start_host("h1", SPECIALISTS, specialist)

    def exposures(self, name: str) -> list[str]:
        told = [one for intelligence, _ in self.listeners[name].intelligence for one in intelligence.exposures]
        return [f"{one.host}:{one.port}" for one in told]


@asynccontextmanager
async def scene_at(world: World) -> AsyncIterator[Scene]:
    """A router, a fleet, and a host with those who may be told and one who may not."""
    async with FleetWorld(
        world, [*tokens_for("h1", SPECIALISTS), *tokens_for("h2", OTHERS)], world.folder
    ) as fleet:
        await fleet.start_fleet()
        bus = await world.service(ServiceName.ROUTER)
        router = RouterService(bus, RouterSettings(**world.settings().model_dump()))
        await router.start()
        fleet.stack.push_async_callback(router.stop)
        scene = Scene(fleet, world.folder / "plan.json", bus)

        def listener(role: Role, name: str) -> Agent:
            made: type[Listener] = type(f"{role.value}Listener", (Listener,), {"role": role})
            scene.listeners[name] = made(name)
            return scene.listeners[name]

        await fleet.start_host("h2", OTHERS, listener)
        yield scene


@needs_data
async def test_a_high_endpoint_is_alerted_once_and_told_sealed_to_who_needs_to_know(world: World) -> None:
    async with scene_at(world) as scene:
        seen: list[bytes] = []

        async def watch(message: Any) -> None:
            seen.append(message.data)

        monitor = await world.service(ServiceName.MONITOR)
        await monitor.connection.subscribe(DELIVER_ROLE.at(role="admin"), watch)
        scene.write_plan(zeek_ssl=SSL, zeek_x509=X509, sensitive={"192.168.0.4": 30}, cbom="out.cbom.json")
        host = await scene.start_specialist()
        admin, analyst = scene.listeners["admin-01"], scene.listeners["analyst-01"]
        await eventually(
            lambda: bool(admin.alerts and admin.intelligence and analyst.intelligence), within_s=30
        )
        alert, context = admin.alerts[0]
        assert (alert.severity, context.priority) == (Severity.HIGH, Priority.HIGH)
        assert alert.summary.startswith("Cryptography of 192.168.0.4:8443 (rank 1 of 1): ECDH-secp256r1")
        assert context.content.sealed == 1
        (told,) = admin.intelligence[0][0].exposures
        assert (told.host, told.port, told.sessions) == ("192.168.0.4", 8443, 376)
        assert told.exchange == ("ECDH-secp256r1",)
        assert told.reasons[0].startswith("ECDH-secp256r1: what is recorded today")
        assert analyst.intelligence[0][0] == admin.intelligence[0][0]
        assert not scene.listeners["guardian-01"].alerts
        await eventually(lambda: len(seen) >= 3)  # its discovery, the alert, the intelligence
        assert not any(b"192.168.0.4" in one for one in seen), "who reads the broker reads none of it"
        bom = json.loads((world.folder / "out.cbom.json").read_text())
        assert bom["specVersion"] == "1.6"
        assert (world.folder / "out.cbom.json").stat().st_mode & 0o077 == 0

        # Taken again, since the plan changed: the same endpoint is no news.
        taken = host.metrics.counter("specialist.inventories")
        scene.write_plan(zeek_ssl=SSL, zeek_x509=X509, sensitive={"192.168.0.4": 31})
        await eventually(lambda: host.metrics.counter("specialist.inventories") > taken, within_s=30)
        # What is urgent of another endpoint comes after it, and alone.
        async with tls_server(server_context(world.folder, ec.generate_private_key(ec.SECP256R1()))) as port:
            scene.write_plan(probe=[f"127.0.0.1:{port}"], secrecy_years=30)
            await eventually(lambda: len(scene.exposures("admin-01")) == 2, within_s=30)
        assert scene.exposures("admin-01") == ["192.168.0.4:8443", f"127.0.0.1:{port}"]
        assert [one.summary.split(" ")[2] for one, _ in admin.alerts] == scene.exposures("admin-01")


@needs_data
async def test_a_specialist_that_is_started_again_does_not_repeat_itself(world: World) -> None:
    async with scene_at(world) as scene:
        scene.write_plan(zeek_ssl=SSL, secrecy_years=30)
        admin = scene.listeners["admin-01"]

        def specialist(role: Role, name: str) -> Agent:
            return make(role, name, plan=scene.plan)

        async with scene.fleet.make_host("h1", SPECIALISTS, specialist) as first:
            state = first.state_dir / "specialist-01.specialist.json"
            await eventually(lambda: bool(admin.alerts and admin.intelligence) and state.exists(), within_s=30)
            await eventually(lambda: b"192.168.0.4" in state.read_bytes().partition(b"alerted")[0], within_s=30)
        async with scene.fleet.make_host("h1", SPECIALISTS, specialist) as again:
            await eventually(lambda: again.metrics.counter("specialist.inventories") == 1, within_s=30)
            async with tls_server(
                server_context(world.folder, ec.generate_private_key(ec.SECP256R1()))
            ) as port:
                scene.write_plan(zeek_ssl=SSL, probe=[f"127.0.0.1:{port}"], secrecy_years=30)
                await eventually(lambda: len(scene.exposures("admin-01")) == 2, within_s=30)
        assert len(admin.alerts) == 2


async def test_a_plan_that_is_wrong_is_counted_and_a_better_one_is_followed(world: World) -> None:
    async with scene_at(world) as scene:
        scene.plan.write_text("{")
        host = await scene.start_specialist()
        counter = host.metrics.counter
        await eventually(lambda: counter("specialist.inventory_failures.bad_plan") == 1, within_s=30)
        scene.write_plan(zeek_ssl="gone.log")
        await eventually(lambda: counter("specialist.inventory_failures.no_log") == 1, within_s=30)
        scene.write_plan(probe=["nonsense"])
        await eventually(lambda: counter("specialist.inventory_failures.bad_endpoint") == 1, within_s=30)
        scene.plan.unlink()
        await eventually(lambda: counter("specialist.inventory_failures.no_plan") == 1, within_s=30)
        scene.write_plan(own=True)
        await eventually(lambda: bool(scene.listeners["admin-01"].alerts), within_s=30)
        (alert,) = [one for one, _ in scene.listeners["admin-01"].alerts]
        assert alert.summary.startswith(
            "Cryptography of tocsin-broker:4222 (rank 1 of 2): nothing is encrypted"
        )


async def test_a_host_s_setting_gives_its_first_specialist_the_plan(world: World) -> None:
    async with scene_at(world) as scene:
        scene.write_plan(own=True)
        settings = scene.fleet.host_settings("h1", SPECIALISTS, specialist_plan=scene.plan)
        async with process("-m", "tocsin.agent", **environment_of(settings)):
            await eventually(lambda: bool(scene.listeners["admin-01"].alerts), within_s=30)
        (alert,) = [one for one, _ in scene.listeners["admin-01"].alerts]
        assert "tocsin-broker:4222" in alert.summary
