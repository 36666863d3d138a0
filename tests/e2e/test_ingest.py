"""`tocsin ingest` as a user runs it: killed again and again, rotated under its feet, joined by another host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
EVE = SHARED / "suricata" / "malicious.eve.json"
TOCSIN = [sys.executable, "-m", "tocsin.cli"]

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs the real logs of ../shared/data")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start commands that run on; what they say is in ``said-<n>``; they end with the test."""
    with ExitStack() as stack:
        count = 0

        def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
            nonlocal count
            with (
                (tmp_path / f"said-{count}").open("wb") as out,
                (tmp_path / f"erred-{count}").open("wb") as err,
            ):
                process = subprocess.Popen([*TOCSIN, *map(str, arguments)], stdout=out, stderr=err)
            count += 1
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool], *, within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def written(folder: Path, name: str) -> list[dict[str, object]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_killed_again_and_again_nothing_is_lost_and_nothing_alerted_twice(
    run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log, state = tmp_path / "eve.json", tmp_path / "state"
    folder = state / "hosts" / "watch-1" / "state"
    lines = EVE.read_bytes().splitlines(keepends=True)

    def append(first: int, last: int) -> None:
        with log.open("ab") as file:
            file.writelines(lines[first:last])

    def alerts() -> list[dict[str, object]]:
        return [line for line in written(folder, "sentinel-01.alerts.jsonl") if "alert" in line]

    def subjects() -> set[object]:
        return {line["finding"]["subject"] for line in alerts()}  # type: ignore[index]  # JSON

    append(0, 800)
    process = run("ingest", log, "--state", state, "--json", "--severity", "info")
    until(lambda: len(alerts()) > 20)
    append(800, 1500)
    process.kill()  # the kernel ends what it started
    process.wait()
    log.rename(tmp_path / "eve.json.1")
    append(1500, 1900)
    process = run("ingest", log, "--state", state, "--json", "--severity", "info")
    until(lambda: (tmp_path / "said-1").stat().st_size > 0)
    process.kill()
    process.wait()
    append(1900, len(lines))
    process = run("ingest", log, "--state", state, "--json", "--severity", "info")
    until(lambda: {"193.46.255.92", "45.143.200.10", "45.143.203.2", "77.247.108.42"} <= subjects())
    until(lambda: len(written(folder, "analyst-01.reports.jsonl")) >= 4)

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    names = [line["alert"] for line in alerts()]
    assert len(names) == len(set(names))
    expected = {json.loads(line)["src_ip"] for line in lines if json.loads(line)["event_type"] == "alert"}
    assert {subject for subject in expected if subject != "192.168.1.129"} <= subjects()
    incidents = [line["incident"] for line in written(folder, "hunter-01.incidents.jsonl")]
    assert len(incidents) == len(set(incidents))
    assert not [line for line in written(folder, "sentinel-01.alerts.jsonl") if "loss" in line]
    said = [line for n in range(3) for line in (tmp_path / f"said-{n}").read_text().splitlines(keepends=True)]
    # What was being printed when it was killed, twice, may be torn; the files are not.
    printed = [json.loads(line) for line in said if line.endswith("\n")]
    told = {line["alert"] for line in printed if "alert" in line}
    assert told <= set(names)
    assert len(told) >= len(names) - 2


def test_another_hosts_sentinel_joins_and_its_alerts_become_an_incident_here(
    run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    state, edge = tmp_path / "state", tmp_path / "edge-1"
    quiet, scan = tmp_path / "quiet.log", tmp_path / "conn.log"
    run("ingest", quiet, "--state", state)
    until(lambda: "agents watch" in (tmp_path / "erred-0").read_text())
    url = subprocess.run(
        [*TOCSIN, "agent", "invite", "edge-1", "sentinel-edge:sentinel", "--out", edge, "--state", state],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert url.returncode == 0, url.stderr
    settings = dict(line.split("=", 1) for line in (edge / "env").read_text().splitlines())
    shutil.copy(SHARED / "zeek" / "port-scan-vertical.conn.log", scan)
    run("ingest", scan, "--remote", settings["TOCSIN_NATS_URL"], "--state", edge)
    here = state / "hosts" / "watch-1" / "state"
    until(lambda: bool(written(edge / "state", "sentinel-edge.alerts.jsonl")))
    until(lambda: "192.168.1.9" in str(written(here, "hunter-01.incidents.jsonl")))
    until(lambda: "scans 45.33.32.156" in (tmp_path / "said-1").read_text())


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("folder", 66, "not a regular file"),
        ("text", 65, "none of its first lines is of a known format"),
        ("comma", 65, "a path with a comma"),
        ("closed", 66, "Permission denied"),
        ("guest", 69, "make it with `tocsin agent invite`"),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_starts(
    tmp_path: Path, what: str, code: int, says: str
) -> None:
    log = tmp_path / ("a,b.json" if what == "comma" else "x.log")
    more: list[str] = []
    if what == "folder":
        log.mkdir()
    elif what == "text":
        log.write_text("hello\nworld\n")
    elif what == "closed":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        log.touch(mode=0o000)
    elif what == "guest":
        more = ["--remote", "nats://127.0.0.1:4222"]
    done = subprocess.run(
        [*TOCSIN, "ingest", log, "--state", tmp_path / "state", *more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "state" / "broker").exists()
