"""`tocsin agents`: as the how-to says it, and the roster of a large fleet in pages."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fleet_support import FleetWorld, tokens_for
from support import DOMAIN, World, eventually

from tocsin.bus.roster import read_roster
from tocsin.cli import agents
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.fleet import AgentRecord, AgentState, RosterRequest
from tocsin.contracts.health import MeasuredAgent, Measurement
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.fleet.service import FleetService

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "quarantine-an-agent.md"
AGENTS = [("hunter-01", Role.HUNTER), ("hunter-02", Role.HUNTER), ("guardian-01", Role.GUARDIAN)]


def installation(world: World, folder: Path) -> Path:
    """Make the folder of an installation as the command finds it, of this world."""
    world.authority.save(folder / "ca", "root")
    (folder / "ca" / "root.pem").write_bytes(world.authority.certificate_pem)
    (folder / "version").write_text("2\n")
    held = world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "0"))
    held.save(folder / "credentials" / "cli", "cli-0")
    (folder / "broker").symlink_to(world.broker.folder)
    return folder


async def tocsin(*arguments: str) -> tuple[int, str, str]:
    """Run the command as a person does."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tocsin.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
    )
    async with asyncio.timeout(30):
        out, errors = await child.communicate()
    return child.returncode or 0, out.decode(), errors.decode()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[tuple[FleetWorld, FleetService]]:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet(challenge_interval_s=0.2)
        yield fleet, service


def state(service: FleetService, name: str) -> AgentState | None:
    return service.book.state(name, now_ns=time.time_ns())


async def test_the_how_to_does_what_it_says(world: World, tmp_path: Path) -> None:
    folder = installation(world, tmp_path / "state")
    lines = re.findall(r"^    (tocsin agents .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = {line.split()[2]: shlex.split(line)[1:] for line in lines}
    assert set(commands) == {"list", "show", "quarantine", "release", "approve"}
    where = ("--state", str(folder))
    async with running(world) as (fleet, service):
        async with fleet.make_host("h1", AGENTS):
            await eventually(lambda: service.metrics.counter("attestations") >= 3)
            code, out, errors = await tocsin(*commands["list"], *where)
            assert (code, errors) == (0, "")
            assert out.startswith("3 agents: 3 healthy\nagent ")
            assert "hunter-02" in out
            code, out, _ = await tocsin(*commands["quarantine"], *where)
            assert (code, out) == (0, "quarantine hunter-02\n")
            assert state(service, "hunter-02") is AgentState.QUARANTINED
            code, out, _ = await tocsin(*commands["show"], *where)
            assert "quarantined" in out
            assert "found on a forum" in out
            assert "(this installation)" in out or "code" in out
            code, out, _ = await tocsin(*commands["release"], *where, "--remote", world.broker.url)
            assert (code, out) == (0, "release    hunter-02\n")
            await eventually(lambda: state(service, "hunter-02") is AgentState.HEALTHY)
        # An upgrade: other settings stand for other code.
        await fleet.start_host("h1", AGENTS, inbox_length=2048)
        await eventually(lambda: state(service, "hunter-01") is AgentState.SUSPECT)
        code, out, _ = await tocsin("agents", "approve", *where)
        assert out.endswith("not approved yet: add --yes\n")
        assert state(service, "hunter-01") is AgentState.SUSPECT
        # These agents are a test's own class: no code that the command comes with.
        code, out, _ = await tocsin(*commands["approve"], *where)
        assert (code, out) == (0, "nothing to approve\n")
        code, out, _ = await tocsin("agents", "approve", "--yes", *where)
        assert "approved   3 agents" in out
        await eventually(lambda: {state(service, name) for name, _ in AGENTS} == {AgentState.HEALTHY})


async def test_bad_input_is_one_line_and_a_code(world: World, tmp_path: Path) -> None:
    folder = installation(world, tmp_path / "state")
    where = ("--state", str(folder))
    async with running(world):
        for arguments, expected in (
            (("show", "nobody"), 65),
            (("show", "no name at all"), 65),
            (("quarantine", "nobody", "--why", "x"), 65),
            (("quarantine", "hunter-01"), 2),
            (("quarantine", "hunter-01", "--why", "x" * 513), 65),
            (("approve", "--code", "xyz"), 65),
            (("list", "--is", "happy"), 2),
        ):
            code, _, errors = await tocsin("agents", *arguments, *where)
            assert code == expected, (arguments, errors)
            assert "Traceback" not in errors
    code, _, errors = await tocsin("agents", "list", "--state", str(tmp_path / "nothing"))
    assert (code, errors.count("\n")) == (69, 1)
    with pytest.raises(InvalidInputError) as caught:
        agents.with_code([], "short")
    assert caught.value.reason == "bad_digest"


async def test_a_fleet_of_five_thousand_is_read_in_pages_and_shown_in_forty_lines(world: World) -> None:
    async with running(world) as (_, service):
        for number in range(5000):
            # Names as long as they may be: the page must fit the broker's largest payload.
            name = f"agent-{number:05}".ljust(63, "x")
            host = f"h{number % 50:02}".ljust(63, "y")
            record = AgentRecord(name=name, role=Role.HUNTER, host=host, key_id=bytes(32), enrolled_ns=0)
            service.book.enrol(record)
        cli = await world.service(ServiceName.CLI)
        begun = time.perf_counter()
        whole = await read_roster(cli, timeout_s=30)
        print(f"5,000 agents in {(time.perf_counter() - begun) * 1e3:.0f} ms")  # noqa: T201 - the figure, with pytest -s
        assert len({entry.agent.name for entry in whole.entries}) == whole.total == 5000
        assert [e.agent.name for e in whole.entries] == sorted(e.agent.name for e in whole.entries)
        shown = await agents.read(cli, RosterRequest(), limit=agents.SHOWN)
        lines = agents.list_text(shown, now_ns=time.time_ns())
        assert lines[0] == "5000 agents: 5000 enrolled"
        assert len(lines) == agents.SHOWN + 3
        assert "--after" in lines[-1]
        assert len(json.loads(agents.list_json(whole))["agents"]) == 5000
        some = await agents.read(cli, RosterRequest(host="h01".ljust(63, "y")), limit=None)
        assert (some.total, some.more) == (100, False)
        none = await agents.read(cli, RosterRequest(state=AgentState.GONE), limit=40)
        assert agents.list_text(none, now_ns=0) == ["no agents"]
        with pytest.raises(UnavailableError):
            await read_roster(cli, timeout_s=0.01)


def test_only_whole_digests_of_some_length_choose() -> None:
    one = MeasuredAgent(agent="a", measurement=Measurement(code=b"\xab" * 32, configuration=bytes(32)))
    assert agents.with_code([one], "abababab") == [one]
    assert agents.with_code([one], "cdcdcdcd") == []
