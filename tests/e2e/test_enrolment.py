"""The how-tos on enrolment and on rotation, as they stand on their pages, against a running `tocsin up`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from up_support import Up, running_up, wait_for

DOCS = Path(__file__).resolve().parents[2] / "docs" / "how-to"
BIN = str(Path(sys.executable).parent)


def blocks(page: str) -> list[str]:
    """Return the shell commands of a page."""
    return re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def environment(running: Up) -> dict[str, str]:
    return {**os.environ, "STATE": str(running.state), "PATH": f"{BIN}:{os.environ['PATH']}"}


def run(script: str, running: Up, folder: Path, *, code: int = 0) -> str:
    """Run a page's commands; return what they said."""
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env=environment(running),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@contextmanager
def running_host(script: str, running: Up, folder: Path) -> Iterator[Path]:
    """Run the page's host until the test has what it wants."""
    said = folder / "host.log"
    with said.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-ec", f"export TOCSIN_LOG_LEVEL=info; exec env {script}"],
            cwd=folder,
            env=environment(running),
            stdout=out,
            stderr=out,
        )
    try:
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as running:
        yield running


def test_a_host_enrols_and_the_authority_is_rotated_under_it(up: Up, tmp_path: Path) -> None:
    where, issue, redeem, start, listing = blocks("enrol-an-agent.md")
    issued = run(where + issue, up, tmp_path)
    assert "host branch-1 with 2 agents" in issued
    ticket = tmp_path / "branch-1.ticket"
    assert ticket.stat().st_mode & 0o777 == 0o600
    assert "enrolled   host branch-1" in run(redeem, up, tmp_path)
    assert re.search(r"branch-1-0-\w+ +used +3 of 3", run(where + listing, up, tmp_path))

    # The same ticket somewhere else is another key: refused, and said why.
    stolen = run(redeem.replace("--out branch-1", "--out elsewhere"), up, tmp_path, code=73)
    assert "with another key" in stolen
    ended = run(issue.replace("branch-1", "branch-2").replace("1h", "1s") + "sleep 1.5", up, tmp_path)
    assert "good for 1s" in ended
    late = run(redeem.replace("branch-1", "branch-2"), up, tmp_path, code=77)
    assert "has expired" in late

    withdrawn = (
        issue.replace("branch-1", "branch-3") + 'tocsin agent tokens --state "$STATE" --json > tokens.json'
    )
    run(where + withdrawn, up, tmp_path)
    (token,) = set(re.findall(r"branch-3-0-\w+", (tmp_path / "tokens.json").read_text()))
    run(f'tocsin agent tokens --withdraw {token} --state "$STATE"', up, tmp_path)
    assert "was withdrawn" in run(redeem.replace("branch-1", "branch-3"), up, tmp_path, code=77)
    assert "forgotten  2 tokens" in run('tocsin agent tokens --clean --state "$STATE"', up, tmp_path)

    with running_host(start.strip(), up, tmp_path) as said:
        wait_for(said, "host_ready", within_s=60)
        rotate, finish = blocks("rotate-the-authority.md")
        first = run(rotate, up, tmp_path)
        assert "overlap    0 certificates to renew" in first
        assert "retired" in first
        assert "list 2 of revoked keys" in run(finish, up, tmp_path)
        assert '"certificate_lost"' not in said.read_text()
