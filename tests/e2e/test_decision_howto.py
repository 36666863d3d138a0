"""The how-to on decisions, command by command as it stands on its page, on a running `tocsin up`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tocsin.agent import Agent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "decide-a-question.md"
TOCSIN = [sys.executable, "-m", "tocsin.cli"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    said, state = tmp_path / "said", tmp_path / "state"
    with said.open("w") as out:
        command = [*TOCSIN, "up", "--agents", "16", "--hosts", "2", "--state", str(state)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C ends it" in line:
                break
        else:
            raise AssertionError(said.read_text())
        yield state
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()


def run(arguments: list[str], state: Path | None, folder: Path) -> subprocess.CompletedProcess[str]:
    where = [] if state is None else ["--state", str(state)]
    return subprocess.run(
        [*TOCSIN, *arguments, *where], capture_output=True, text=True, check=False, timeout=90, cwd=folder
    )


@pytest.mark.slow
def test_every_command_of_the_page_does_what_the_page_says(state: Path, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    commands = [
        shlex.split(one)
        for one in re.findall(r"^    \.venv/bin/tocsin (decision .*)$", page, flags=re.MULTILINE)
    ]
    kinds = [command[1] for command in commands]
    assert kinds == ["propose", "propose", "list", "show", "export", "verify", "watch"]
    (tmp_path / "ca.pem").write_bytes((state / "ca" / "root.pem").read_bytes())
    watching = subprocess.Popen(
        [*TOCSIN, *commands[6], "--state", str(state)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("watching")
        asked = run(commands[0], state, tmp_path)
        assert asked.returncode == 0, (asked.stdout, asked.stderr)
        assert "16 of 16 agents have confirmed the result" in asked.stdout
        closed = run([*commands[1], "--json"], state, tmp_path)
        assert closed.returncode == 3, (closed.stdout, closed.stderr)
        ended = json.loads(closed.stdout)
        assert (ended["outcome"], ended["scope"], ended["round"]) == ("closed", "role sentinel", 2)
        assert ended["delivery"]["complete"]
    finally:
        watching.send_signal(signal.SIGINT)
        try:
            heard, _ = watching.communicate(timeout=20)
        finally:
            watching.kill()
    decision = asked.stdout.split()[1]
    assert f"{decision[:16]}  ended     decided: deny" in heard
    assert "round     2" in heard

    listed = run(commands[2], state, tmp_path).stdout
    assert listed.index(ended["decision"][:16]) < listed.index(decision[:16])
    for command in commands[3:5]:
        command[2] = decision[:8]
        done = run(command, state, tmp_path)
        assert done.returncode == 0, (done.stdout, done.stderr)
    verified = run(commands[5], None, tmp_path)
    assert verified.stdout.startswith("valid      deny 203.0.113.7 for 30m")
    assert json.loads((tmp_path / "scanner.json").read_text())["decision"] == decision
    exported = run(["decision", "export", ended["decision"][:8], "-o", "closed.decision"], state, tmp_path)
    assert exported.returncode == 0, exported.stderr
    closure = run(["decision", "verify", "closed.decision", "--root", "ca.pem"], None, tmp_path)
    assert closure.stdout.startswith("valid      closed in round 2: nothing was decided"), closure.stderr
    for wrong, code in (
        (commands[4], 73),  # it exists
        (["decision", "show", "not-hex"], 65),
        (["decision", "show", "0" * 64], 65),
        (["decision", "propose", "q", "--option", "one"], 65),
        (["decision", "propose", "q", "--option", "a", "--option", "b", "--scope", "role:king"], 65),
    ):
        refused = run(wrong, state, tmp_path)
        assert refused.returncode == code, (wrong, refused.stdout, refused.stderr)
        assert len(refused.stderr.strip().splitlines()) <= 2


def test_the_pages_program_is_an_agent() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    planner = names["Planner"]
    assert isinstance(planner, type)
    assert issubclass(planner, Agent)
