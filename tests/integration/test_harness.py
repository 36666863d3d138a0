"""What every service is, shown on the monitor as a process of its own: found, healthy, told its settings, drained."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from support import DOMAIN, World

from tocsin.contracts.catalogue import MONITOR_FIGURES, PING
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import FiguresRequest, PingRequest


def environment(world: World, folder: Path, **more: str) -> dict[str, str]:
    """Return the settings of a monitor of this world."""
    credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.MONITOR, "0"))
    credentials.save(folder, "monitor-0")
    settings = {
        "nats_url": world.broker.url,
        "nats_token_file": str(world.broker.token_file),
        "credentials_dir": str(folder),
        **more,
    }
    return os.environ | {f"TOCSIN_{key.upper()}": value for key, value in settings.items()}


@asynccontextmanager
async def monitor(env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a monitor, ended afterwards whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tocsin.monitor", env=env, stderr=asyncio.subprocess.PIPE, limit=1 << 20
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def event(process: asyncio.subprocess.Process, name: str) -> dict[str, object]:
    """Return the first log line of that event."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := await process.stderr.readline():
            logged: dict[str, object] = json.loads(line)
            if logged["event"] == name:
                return logged
    raise AssertionError(f"no {name} before the end")


async def test_a_service_is_found_as_a_micro_service_and_serves_its_health(
    world: World, tmp_path: Path
) -> None:
    cli = await world.service(ServiceName.CLI)
    async with monitor(environment(world, tmp_path)) as process:
        started = await event(process, "process_starting")
        await event(process, "service_ready")
        url = f"http://127.0.0.1:{started['health_port']}"
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
            assert (await client.get(f"{url}/readyz")).status_code == 200
        found = json.loads((await cli.connection.client.request("$SRV.INFO.monitor", b"", timeout=2)).data)
        assert found["name"] == "monitor"
        assert {"tocsin.v1.monitor.ping", "tocsin.v1.monitor.figures"} <= {
            e["subject"] for e in found["endpoints"]
        }
        assert (await cli.request(PING[ServiceName.MONITOR], PingRequest(), timeout_s=5)).name == "0"
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"{url}/metrics")).text
        assert re.search(r"^tocsin_envelopes_signed_total [1-9]", metrics, flags=re.MULTILINE)
        await cli.request(MONITOR_FIGURES, FiguresRequest(), timeout_s=5)
        stats = json.loads((await cli.connection.client.request("$SRV.STATS.monitor", b"", timeout=2)).data)
        assert sum(endpoint["num_requests"] for endpoint in stats["endpoints"]) >= 2


async def test_sigterm_ends_a_service_in_order_and_it_is_gone_at_once(world: World, tmp_path: Path) -> None:
    cli = await world.service(ServiceName.CLI)
    async with monitor(environment(world, tmp_path)) as process:
        await event(process, "service_ready")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    with pytest.raises(UnavailableError):
        await cli.request(PING[ServiceName.MONITOR], PingRequest(), timeout_s=0.3)


async def test_a_service_without_a_broker_can_be_ended_while_it_waits(world: World, tmp_path: Path) -> None:
    env = environment(world, tmp_path)
    world.broker.kill()
    async with monitor(env) as process:
        await event(process, "process_starting")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        ({"log_level": "loud"}, 65, "TOCSIN_LOG_LEVEL"),
        ({"nats_token_file": "/no/such/file"}, 69, "cannot read"),
        ({"credentials_dir": "/no/such/folder"}, 69, "cannot read"),
        ({"connect_timeout_s": "0.2", "nats_url": "nats://127.0.0.1:1"}, 69, "no broker"),
        ({"nats_url": "http://[::bad"}, 65, "broker's address"),
    ],
)
async def test_a_wrong_setting_ends_the_process_in_one_line_that_names_it(
    world: World, tmp_path: Path, wrong: dict[str, str], code: int, says: str
) -> None:
    async with monitor(environment(world, tmp_path, **wrong)) as process:
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    said = [line for line in err.decode().splitlines() if not line.startswith("{")]
    assert process.returncode == code, err
    assert len(said) == 1, said
    assert says in said[0]


async def test_print_config_shows_what_was_read_and_ends(world: World, tmp_path: Path) -> None:
    env = environment(world, tmp_path, instance="0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tocsin.monitor", "--print-config", env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    shown = json.loads(out)
    assert shown["nats_url"] == world.broker.url
    assert world.broker.token_file.read_text().strip() not in out.decode()
