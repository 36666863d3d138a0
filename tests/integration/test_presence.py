"""What fleet learns when a connection ends, from a real broker and a host process that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import nats
import nats.errors
import pytest
from fleet_support import FleetWorld, tokens_for
from hypothesis import given
from hypothesis import strategies as st
from processes import environment_of, process
from support import World, eventually

from tocsin.bus import Context
from tocsin.bus.accounts import SERVICE_USER, SYSTEM_USER, system_password
from tocsin.bus.presence import process_of
from tocsin.contracts.catalogue import EVENT
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.health import AgentStates
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.fleet.service import FleetService

AGENTS = [("watcher-01", Role.HUNTER), ("guardian-01", Role.GUARDIAN)]
NAMES = {"watcher-01", "guardian-01"}


def states(service: FleetService) -> set[AgentState | None]:
    return {service.book.state(name, now_ns=time.time_ns()) for name in NAMES}


async def test_the_agents_of_a_killed_host_are_gone_at_once(world: World, tmp_path: Path) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet(silent_after_s=600)
        told: asyncio.Queue[tuple[float, tuple[str, ...]]] = asyncio.Queue()
        service.on_gone.append(lambda agents: told.put_nowait((time.perf_counter(), agents)))
        facts: list[AgentStates] = []

        async def on_fact(body: AgentStates, _: Context) -> None:
            facts.append(body)

        cli = await world.service(ServiceName.CLI)
        await cli.subscribe(EVENT, on_fact, at={"service": "fleet", "kind": "agent_state"})
        settings = environment_of(fleet.host_settings("h1", AGENTS))
        async with process("-m", "tocsin.agent", log=tmp_path / "log", **settings) as host:
            await eventually(lambda: states(service) == {AgentState.HEALTHY}, within_s=30)
            await eventually(lambda: service.liveness.listening)
            killed = time.perf_counter()
            host.kill()
            async with asyncio.timeout(10):
                at, agents = await told.get()
        assert set(agents) == NAMES
        assert states(service) == {AgentState.GONE}
        print(f"gone after {(at - killed) * 1e3:.1f} ms")  # noqa: T201 - the figure, with pytest -s
        await eventually(lambda: any(fact.changes[0].after is AgentState.GONE for fact in facts))
        gone = next(fact for fact in facts if fact.changes[0].after is AgentState.GONE)
        assert {change.agent for change in gone.changes} == NAMES
        # The same host once more: its heartbeat is all it takes.
        async with process("-m", "tocsin.agent", log=tmp_path / "log", **settings):
            await eventually(lambda: states(service) == {AgentState.HEALTHY}, within_s=30)


async def test_a_connection_that_only_calls_itself_a_host_takes_nobody_away(world: World) -> None:
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet(silent_after_s=600)
        await fleet.start_host("h1", AGENTS)
        await eventually(lambda: states(service) == {AgentState.HEALTHY} and service.liveness.listening)
        password = world.broker.token_file.read_text()
        for name in ("host.h1/main", "host.h1/main", "host.nobody/main", "host.h1/second", "/main", ""):
            liar = await nats.connect(world.broker.url, user=SERVICE_USER, password=password, name=name)
            await liar.close()
        await eventually(lambda: service.metrics.counter("hosts_back") >= 1)
        assert states(service) == {AgentState.HEALTHY}


async def test_a_broker_without_a_system_account_leaves_the_heartbeats(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("no password of anybody")
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        service = await fleet.start_fleet(silent_after_s=1, nats_system_token_file=wrong, connect_timeout_s=1)
        async with fleet.make_host("h1", AGENTS):
            await eventually(lambda: states(service) == {AgentState.HEALTHY})
            await eventually(lambda: service.metrics.counter("presence_failures.broker_refuses") >= 1)
            assert not service.liveness.listening
        await eventually(lambda: states(service) == {AgentState.SILENT})
    assert capsys.readouterr().out.count("no_system_account") <= 1


async def test_the_system_user_hears_of_ended_connections_and_nothing_else(world: World) -> None:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error))

    password = system_password(world.broker.folder).read_text()
    client = await nats.connect(world.broker.url, user=SYSTEM_USER, password=password, error_cb=on_error)
    for subject in ("tocsin.v1.event.>", ">", "$SYS.ACCOUNT.*.CONNECT", "$SYS.>"):
        await client.subscribe(subject)
    for subject in ("$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.$G.DISCONNECT", "tocsin.v1.heartbeat.h1"):
        await client.publish(subject, b"x")
    await eventually(lambda: len(refused) == 7)
    await client.close()


@pytest.mark.parametrize("event", [b"", b"[]", b"{}", b'{"client": 3}', b'{"client": {"name": 3}}', b"\xff"])
def test_what_is_no_event_is_refused(event: bytes) -> None:
    with pytest.raises(InvalidInputError) as caught:
        process_of(event)
    assert caught.value.reason == "malformed"


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), lambda x: st.dictionaries(st.text(), x)).map(
        lambda value: json.dumps({"client": value}).encode()
    )
)
def test_any_event_is_a_process_or_refused(event: bytes) -> None:
    with contextlib.suppress(InvalidInputError):
        assert isinstance(process_of(event), str)


def test_only_the_main_connection_of_a_process_speaks_for_it() -> None:
    assert process_of(b'{"client": {"name": "host.h1/main"}}') == "host.h1"
    assert process_of(b'{"client": {"name": "host.h1/second"}}') == ""
    assert process_of(b'{"client": {}}') == ""
