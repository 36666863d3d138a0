"""The how-tos of single roles, run as they stand on their pages: start it, do something real, see the outcome."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "roles"
PROGRAM = ".venv/bin/tocsin"
BACKGROUND = ("up", "tail")
"""Commands that run until they are ended: each is a terminal of its own."""


@dataclass
class Page:
    """A page as it is worked through, in a home of its own."""

    blocks: list[str]
    home: Path
    stack: ExitStack = field(default_factory=ExitStack)
    terminals: list[Path] = field(default_factory=list)

    def next(self) -> str:
        """Run the next block; return what it printed, or nothing for one that runs on."""
        block = self.blocks.pop(0)
        words = block.split()
        if words[0] == PROGRAM and words[1] in BACKGROUND:
            self._run_on(block, words[1])
            return ""
        done = subprocess.run(
            ["bash", "-c", self._here(block)],
            env=self._env(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sees(self, pattern: str, *, terminal: int = -1, within_s: float = 60) -> str:
        """Wait until a terminal shows a match; return the match."""
        deadline = time.monotonic() + within_s
        said = ""
        while time.monotonic() < deadline:
            said = self.terminals[terminal].read_text(errors="replace")
            if match := re.search(pattern, said):
                return match.group()
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} not in:\n{said}")

    def state(self, *parts: str) -> Path:
        """Return a path in the state folder of the page's host."""
        return self.home.joinpath(".local", "state", "tocsin", "hosts", "host-1", "state", *parts)

    def _run_on(self, block: str, command: str) -> None:
        said = self.home / f"terminal-{len(self.terminals)}"
        out = self.stack.enter_context(said.open("w"))
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._here(block)}"], env=self._env(), stdout=out, stderr=out
        )
        self.stack.callback(_end, process)
        self.terminals.append(said)
        if command == "up":
            self.sees("Ctrl-C ends it")
        else:
            self._wait_until_it_listens(said)

    def _wait_until_it_listens(self, said: Path) -> None:
        """Send what changes nothing until the terminal shows it; a person looks at the screen instead."""
        probe = f'{PROGRAM} alert send --severity info --summary "is this thing on"'
        deadline = time.monotonic() + 60
        while "is this thing on" not in said.read_text(errors="replace"):
            assert time.monotonic() < deadline, said.read_text()
            subprocess.run(["bash", "-c", self._here(probe)], env=self._env(), capture_output=True, check=True)

    def _here(self, block: str) -> str:
        return block.strip().replace(PROGRAM, f"{sys.executable} -m tocsin.cli")

    def _env(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "XDG_"))}
        return env | {"HOME": str(self.home)}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


@contextmanager
def page(name: str, home: Path) -> Iterator[Page]:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    made = Page(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL), home)
    with made.stack:
        made.next()
        yield made
        assert not made.blocks, "every block of the page was run"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_guardian_alone_carries_out_a_decision_and_ends_it(home: Path) -> None:
    with page("guardian", home) as guardian:
        answer = guardian.next()
        assert re.search(r"decided +deny 203\.0\.113\.9 for 3 s: 3 ballots, quorum 3 of 3", answer)
        assert "would do   guardian-01 (dry-run): would send" in answer
        guardian.next()
        deadline = time.monotonic() + 30
        while len(written := guardian.state("actuations.jsonl").read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, written
            time.sleep(0.1)
    first, second = (json.loads(line)["command"] for line in written)
    assert (first["action"], first["target"]) == ("deny", {"ipv4_net": "203.0.113.9"})
    assert (second["action"], second["target"]) == ("cancel", {"command": first["command_id"]})


def test_an_admin_alone_puts_wishes_to_the_vote(home: Path) -> None:
    with page("admin", home) as admin:
        answer = admin.next()
        assert re.search(r"proposed +by admin-01: decision [0-9a-f]{64}", answer)
        assert answer.count("would do   guardian-0") == 2
        response = json.loads(admin.next())
        assert response["status"] == 200
        assert response["results"]["x-tocsin"]["quorum"] == 3


def test_a_deception_agent_alone_raises_the_alarm(home: Path) -> None:
    with page("deception", home) as deception:
        deception.next()
        deception.next()
        deception.sees(r"deception-01.*scans 127\.0\.0\.1")
        said = deception.next()
        assert said.count("530 Login incorrect.") == 3
        deception.sees(r"deception-01.*guesses passwords at 127\.0\.0\.1")
        deception.next()
        log = deception.state("deception-01.credentials.jsonl")
        tried = [json.loads(line) for line in log.read_text().splitlines()]
        assert [one["guess"] for one in tried] == ["toor", "\\x1b[2Jsecret", "admin"]
        assert deception.terminals[1].read_text().count("guesses passwords") == 1


def test_a_canary_alone_tells_who_touched_what(home: Path) -> None:
    with page("canary", home) as canary:
        canary.next()
        token = canary.next()
        assert "aws_access_key_id" in token
        canary.sees(r"token file of canary canary-01 was opened, read: .*aws-credentials")
        assert canary.next() == token, "it is back"
        canary.sees(r"token file of canary canary-01 was [a-z, ]*removed")
        canary.next()
        canary.sees(r"127\.0\.0\.1 touched canary canary-01")
