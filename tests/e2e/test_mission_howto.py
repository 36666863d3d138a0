"""The how-to on missions, command by command as it stands on its page, on a running `tocsin up`."""

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
from tocsin.contracts.missions import MissionRecord, MissionRequest, MissionState

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-a-mission.md"
TOCSIN = [sys.executable, "-m", "tocsin.cli"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    said, state = tmp_path / "said", tmp_path / "state"
    with said.open("w") as out:
        command = [*TOCSIN, "up", "--agents", "12", "--hosts", "2", "--state", str(state)]
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


def run(arguments: list[str], state: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOCSIN, *arguments, "--state", str(state)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        cwd=folder,
    )


@pytest.mark.slow
def test_every_command_of_the_page_does_what_the_page_says(state: Path, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (sweep,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "sweep.toml").write_text(sweep)
    commands = re.findall(r"^    \.venv/bin/tocsin (mission .*)$", page, flags=re.MULTILINE)
    (question,) = re.findall(r"^    \.venv/bin/tocsin (decision .*)$", page, flags=re.MULTILINE)
    assert len(commands) == 4
    said = []
    for command in commands:
        ended = run(shlex.split(command), state, tmp_path)
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        said.append(ended.stdout)
    assert "12 of 12 objectives" in said[0]
    assert said[1].strip() == "sweep-01"
    assert "3 of 3 objectives" in said[2]
    assert "judge" in said[2]
    assert {"sweep-01", "complete"} <= set(said[3].split())

    record = MissionRecord.model_validate(
        json.loads(run(["mission", "watch", "sweep-01", "--json"], state, tmp_path).stdout)
    )
    assert record.state is MissionState.COMPLETE
    asked = run([*shlex.split(question), "--json"], state, tmp_path)
    assert asked.returncode == 3, (asked.stdout, asked.stderr)  # stock agents abstain where options are words
    ended = json.loads(asked.stdout)
    members = {objective.agent for objective in record.objectives}
    assert (ended["outcome"], ended["scope"]) == ("closed", "mission sweep-01")
    assert (ended["participants"], ended["ballots_received"]) == (len(members), len(members))
    listed = json.loads(run(["mission", "list", "--json", "--only", "complete"], state, tmp_path).stdout)
    assert {one["mission"] for one in listed["missions"]} >= {"sweep-01"}
    # What is refused is said in a line, with its own code.
    for wrong, code in (
        (["mission", "start", "--count", "2", "--links", "0"], 65),
        (["mission", "start", "sweep.toml"], 73),
        (["mission", "watch", "nothing"], 65),
        (["mission", "start", "nothing.toml"], 66),
    ):
        ended = run(wrong, state, tmp_path)
        assert ended.returncode == code, ended.stderr
        assert len(ended.stderr.strip().splitlines()) <= 2
    # Nobody knows this task: every agent that it is given to fails, and it is said which objective was not reached.
    unknown = run(
        ["mission", "start", "--task", "fly", "--role", "analyst", "--work", "1", "--watch"], state, tmp_path
    )
    assert unknown.returncode == 4, unknown.stderr
    assert "unknown_task" in unknown.stdout


def test_the_pages_file_is_a_mission_and_its_program_an_agent() -> None:
    page = PAGE.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(program, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    counter = names["Counter"]
    assert isinstance(counter, type)
    assert issubclass(counter, Agent)
    assert MissionRequest.model_fields.keys() >= {"title", "mission", "deadline_s", "objectives"}
