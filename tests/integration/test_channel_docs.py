"""What the how-to about channels tells a reader to run is run here, as it stands on the page."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from fleet_support import FleetWorld, tokens_for
from support import World, eventually

from tocsin.agent import HostSettings
from tocsin.contracts.identifiers import Role

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/open-a-channel.md"
AGENTS = {"host-a": [("chatty-01", Role.HUNTER)], "host-b": [("chatty-02", Role.HUNTER)]}


def environment(settings: HostSettings) -> dict[str, str]:
    names = ("nats_url", "nats_token_file", "credentials_dir", "enrol_tokens_file", "state_dir", "host_name")
    values = {f"TOCSIN_{one.upper()}": str(getattr(settings, one)) for one in (*names, "host_agents")}
    return os.environ | values | {"TOCSIN_REVOCATIONS_MAX_AGE_S": "3600"}


async def test_two_agents_of_the_page_talk(world: World, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = tmp_path / "chatty.py"
    script.write_text(program)
    tokens = [one for host in AGENTS for one in tokens_for(host, AGENTS[host])]
    heard: dict[str, list[bytes]] = {host: [] for host in AGENTS}
    processes: list[asyncio.subprocess.Process] = []
    reading: list[asyncio.Task[None]] = []

    async def read(stream: asyncio.StreamReader, lines: list[bytes]) -> None:
        while line := await stream.readline():
            lines.append(line.strip())

    async with FleetWorld(world, tokens, tmp_path) as fleet:
        await fleet.start_fleet()
        try:
            for host in ("host-b", "host-a"):
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(script),
                    env=environment(fleet.host_settings(host, AGENTS[host])),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                processes.append(process)
                assert process.stdout is not None
                lines = heard[host]
                reading.append(asyncio.create_task(read(process.stdout, lines)))
                await eventually(lambda lines=lines: any(b"host_ready" in one for one in lines), within_s=60)  # type: ignore[misc]
            await eventually(lambda: b"chatty-01 says b'Are you there?'" in heard["host-b"], within_s=30)
            await eventually(lambda: b"chatty-02 says b'I am.'" in heard["host-a"], within_s=30)
            assert b"stats True False" in heard["host-a"]
        finally:
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))
            await asyncio.gather(*reading)


async def test_the_page_s_eavesdropper_aborts_the_run() -> None:
    for arguments, code, says in (
        ([], 0, b"no physical security"),
        (["--eavesdropper"], 76, b"errors, abort above 11%"),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tocsin.cli", "qkd", "run", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == code, output
        assert says in output
