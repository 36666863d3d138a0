"""Hosts and fleet as the operating-system processes that they are."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime
from pathlib import Path

from fleet_support import FleetWorld, tokens_for
from processes import environment_of, line_with, process
from support import DOMAIN, World

from tocsin.bus.accounts import system_password
from tocsin.contracts.catalogue import DELIVER_ALL, FLEET_ROSTER, THREAT_ALERT
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.fleet import AgentState, RosterRequest
from tocsin.contracts.identifiers import Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.routing import ThreatAlert

AGENTS = [("watcher-01", Role.HUNTER), ("guardian-01", Role.GUARDIAN)]
TEN_LINES = """
from tocsin.agent import Agent, Context, run_agents
from tocsin.contracts.identifiers import Role
from tocsin.contracts.routing import ThreatAlert

class Watcher(Agent):
    role = Role.HUNTER
    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        print("SEEN", context.sender, alert.summary, flush=True)

run_agents(Watcher)
"""


async def healthy(world: World, names: set[str]) -> None:
    cli = await world.service(ServiceName.CLI)
    async with asyncio.timeout(20):
        while True:
            try:
                roster = await cli.request(FLEET_ROSTER, RosterRequest(), timeout_s=1)
            except UnavailableError:
                continue
            if {e.agent.name for e in roster.entries if e.state is AgentState.HEALTHY} == names:
                return


async def test_an_agent_of_ten_lines_runs_as_a_process_and_leaves_on_sigterm(
    world: World, tmp_path: Path
) -> None:
    script = tmp_path / "watcher.py"
    script.write_text(TEN_LINES)
    fleet = FleetWorld(world, tokens_for("h1", AGENTS), world.folder)
    host = environment_of(fleet.host_settings("h1", AGENTS))
    world.authority.issue_intermediate("fleet", now=datetime.now(UTC)).save(tmp_path / "ca", "fleet")
    tokens_file = tmp_path / "tokens.json"
    tokens_file.write_text(json.dumps([one.model_dump(mode="json") for one in fleet.tokens]))
    credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.FLEET, "0"))
    credentials.save(tmp_path / "credentials", "fleet-0")
    base = {name: host[name] for name in ("nats_url", "nats_token_file")}
    own = {
        "credentials_dir": tmp_path / "credentials",
        "authority_dir": tmp_path / "ca",
        "nats_system_token_file": system_password(world.broker.folder),
    }
    async with (
        process("-m", "tocsin.fleet", **base, **own, tokens_file=tokens_file) as service,
        process(str(script), **host) as watcher,
    ):
        await healthy(world, {"watcher-01", "guardian-01"})
        sentinel = await world.agent(Role.SENTINEL, "s-01")
        alert = ThreatAlert(severity=Severity.LOW, summary="hello")
        await sentinel.send(DELIVER_ALL.at(), await sentinel.make(THREAT_ALERT, alert, audience="all"))
        assert f"{sentinel.id} hello" in await line_with(watcher, "SEEN")
        for child in (watcher, service):
            child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                _, errors = await child.communicate()
            assert child.returncode == 0
            assert {json.loads(line)["level"] for line in errors.splitlines()} == {"info"}


async def test_a_host_that_is_refused_says_so_in_one_line(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        host = environment_of(fleet.host_settings("h1", AGENTS))
        fleet.tokens.clear()
        await fleet.start_fleet()
        async with process("-m", "tocsin.agent", **host) as child, asyncio.timeout(20):
            _, errors = await child.communicate()
        assert child.returncode == 76
        assert errors.decode().splitlines()[-1] == "no such enrolment token"
        assert "Traceback" not in errors.decode()
