"""`tocsin up` as a user runs it, and the tutorial on top of it, as it stands on its page."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from up_support import START, TOCSIN, Up, running_up, wait_for

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "your-first-agent.md"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as running:
        yield running


def test_the_tutorials_agent_joins_and_hears_of_an_attack(up: Up, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "watcher.py").write_text(program)
    out = str(tmp_path / "invited")
    invited = subprocess.run(
        [*TOCSIN, "agent", "invite", "my-laptop", "watcher-01:hunter", "--out", out, "--state", str(up.state)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert invited.returncode == 0, invited.stderr
    settings = dict(line.split("=", 1) for line in (tmp_path / "invited" / "env").read_text().splitlines())
    heard = tmp_path / "heard"
    with heard.open("w") as log:
        agent = subprocess.Popen(
            [sys.executable, str(tmp_path / "watcher.py")], env=os.environ | settings, stdout=log, stderr=log
        )
    try:
        roster = rest(up, "agents")
        deadline = time.monotonic() + 20
        while "watcher-01" not in json.dumps(roster) and time.monotonic() < deadline:
            time.sleep(0.2)
            roster = rest(up, "agents")
        ports = up.wait_for(r"ports ([\d ]+)\n").split()
        for port in ports:
            socket.create_connection(("127.0.0.1", int(port)), timeout=2).close()
        wait_for(heard, r"scans 127\.0\.0\.1", within_s=20, alive=lambda: agent.poll() is None)
        wait_for(heard, r"Decided: contain 127\.0\.0\.1", within_s=40, alive=lambda: agent.poll() is None)
    finally:
        agent.terminate()
        assert agent.wait(20) == 0
    assert "Traceback" not in heard.read_text()


def rest(up: Up, what: str) -> object:
    """Ask the gateway as its README says."""
    url = (up.state / "gateway" / "url").read_text().strip()
    token = (up.state / "gateway" / "token").read_text().strip()
    answer = httpx.get(f"{url}/api/v1/{what}", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_ends_is_started_again_and_a_second_start_continues(up: Up) -> None:
    first = rest(up, "agents")
    pid = subprocess.run(
        ["pgrep", "-P", str(up.process.pid), "-f", "tocsin.router"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(pid[0]), signal.SIGKILL)
    up.wait_for("router had ended and was started again")
    in_use = subprocess.run(
        [*TOCSIN, "up", "--state", str(up.state)], capture_output=True, text=True, timeout=30, check=False
    )
    assert in_use.returncode == 73
    assert "is in use" in in_use.stderr
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(30) == 0
    with up.said.open("w") as out:
        up.process = subprocess.Popen([*START, "--state", str(up.state)], stdout=out, stderr=out, text=True)
    up.wait_for("Ctrl-C ends it")
    names = [entry["agent"]["name"] for entry in first["entries"]]  # type: ignore[index]  # JSON
    again = [entry["agent"]["name"] for entry in rest(up, "agents")["entries"]]  # type: ignore[index]  # JSON
    assert sorted(names) == sorted(again)


def test_a_broker_that_ends_ends_everything_and_is_said(up: Up) -> None:
    (pid,) = subprocess.run(
        ["pgrep", "-P", str(up.process.pid), "-f", "nats-server"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(pid), signal.SIGKILL)
    assert up.process.wait(30) == 69
    up.wait_for("the broker ended with code -9")
    assert subprocess.run(["pgrep", "-f", str(up.state)], capture_output=True, check=False).stdout == b""


def test_tail_ends_when_nobody_reads_it_any_more(up: Up) -> None:
    with subprocess.Popen(
        [*TOCSIN, "tail", "metrics.*", "--state", str(up.state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.readline()
        tail.stdout.close()
        assert tail.wait(10) == 0
        assert tail.stderr.read() == ""


def test_tail_prints_verified_events_as_json(up: Up) -> None:
    with subprocess.Popen(
        [*TOCSIN, "tail", "metrics.*", "--json", "--state", str(up.state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        line = json.loads(tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) in {0, 130}
    assert line["type"] == "metrics"
    assert line["sender"].startswith("spiffe://tocsin.local/")


def test_a_revoked_host_is_refused_and_cannot_start_again(up: Up) -> None:
    command = [*TOCSIN, "ca", "revoke", "--reason", "compromised", "--state", str(up.state)]
    nobody = subprocess.run([*command, "nobody-01"], capture_output=True, text=True, timeout=30, check=False)
    assert (nobody.returncode, "no key speaks for 'nobody-01'" in nobody.stderr) == (65, True)
    done = subprocess.run([*command, "hunter-01"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"revoked    [0-9a-f]{64}  as compromised; it spoke for .*/hunter/hunter-01", done.stdout)
    assert "list       1, in force" in done.stdout
    wait_for(up.state / "logs" / "router.log", "keys_revoked", within_s=1)
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(30) == 0
    again = subprocess.run(
        [*START, "--state", str(up.state)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 69
    assert "was revoked (give it a new key" in again.stderr
