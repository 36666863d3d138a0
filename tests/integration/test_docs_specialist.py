"""The specialist's how-to: its commands are run as they stand on the page, on the real logs and real servers."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from support import SHARED
from tls_servers import rsa_key, server_context, tls_server

from tocsin.agent.roles import survey
from tocsin.agent.roles.plan import parse_plan
from tocsin.analysis.inventory.judging import Level
from tocsin.analysis.inventory.ranking import rank

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/roles/specialist.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(
    not (SHARED / "data/zeek").exists(), reason="the real data of ../shared is not here"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that has ../shared beside it, as the page says."""
    (tmp_path / "shared").symlink_to(SHARED)
    (tmp_path / "main").mkdir()
    return tmp_path / "main"


async def run(command: str, folder: Path) -> tuple[int | None, str]:
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == ".venv/bin/tocsin"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tocsin.cli", *arguments, cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await child.communicate()
    return child.returncode, output.decode()


async def test_the_logs_give_the_list_that_the_page_shows(checkout: Path) -> None:
    code, output = await run(blocks("bash")[0], checkout)
    (shown,) = blocks("text")
    assert code == 0
    assert [line.rstrip() for line in output.splitlines()] == [line.rstrip() for line in shown.splitlines()]


async def test_servers_are_asked(checkout: Path, tmp_path: Path) -> None:
    async with tls_server(server_context(tmp_path, rsa_key())) as port, asyncio.timeout(60):
        command = blocks("bash")[1].replace("127.0.0.1:8443", f"127.0.0.1:{port}")
        code, output = await run(command.replace("mail.example.org:443", "127.0.0.1:1"), checkout)
    assert code == 4
    assert f"127.0.0.1:{port}" in output
    assert "RSA-2048" in output
    assert "incomplete: 127.0.0.1:1: unreachable" in output


async def test_the_document_and_the_cbom_are_written_the_same_twice(checkout: Path) -> None:
    code, output = await run(blocks("bash")[2], checkout)
    first = (checkout / "cbom.json").read_bytes()
    assert code == 0
    assert json.loads(output)["endpoints"][0]["endpoint"] == "tocsin-broker:4222", "as it should"
    assert json.loads(first)["specVersion"] == "1.6"
    assert (await run(blocks("bash")[2], checkout))[1] == output
    assert (checkout / "cbom.json").read_bytes() == first


async def test_the_plan_of_the_page_is_followed(checkout: Path) -> None:
    (text,) = blocks("json")
    plan = parse_plan(text.encode())
    taken = await survey.take(plan.sources(checkout), lambda: 1_795_564_800.0)
    (one,) = rank(taken.inventory, plan.assumptions(1_795_564_800.0))
    assert (one.endpoint.sessions, one.level) == (376, Level.HIGH)
