"""The main job as a user runs it: real processes, real input, everything ended afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import SHARED

from tocsin.cli.exits import Exit

TOCSIN = [sys.executable, "-m", "tocsin.cli"]
DEMO_TIMEOUT_S = 150


def demo(runs: Path, *arguments: str, given: bytes | None = None) -> tuple[int, str, str]:
    """Run the demo; return its exit code and output."""
    done = subprocess.run(
        [*TOCSIN, "demo", "--runs", str(runs), *arguments],
        input=given,
        capture_output=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def report_of(runs: Path) -> tuple[Path, dict[str, object]]:
    """Return the one run's folder and its report."""
    (folder,) = runs.iterdir()
    return folder, json.loads((folder / "report.json").read_text())


def processes_of(folder: Path) -> list[psutil.Process]:
    """Find processes that belong to a run: by the folder in their arguments or settings."""
    found = []
    for process in psutil.process_iter():
        try:
            about = " ".join(process.cmdline()) + " ".join(
                value for key, value in process.environ().items() if key.startswith("TOCSIN_")
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if str(folder) in about:
            found.append(process)
    return found


def assert_nothing_left(folder: Path, *, within_s: float = 30.0) -> None:
    """Wait until no process of the run is left: whose broker is gone too may drain to its own deadlines first."""
    deadline = time.monotonic() + within_s
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, [process.cmdline() for process in left]


def assert_whole_story(folder: Path, report: dict[str, object]) -> None:
    """Check that the attack became a decided, delivered, verifiable response."""
    assert report["outcome"] == "responded"
    delivery, totals = report["delivery"], report["totals"]
    assert isinstance(delivery, dict)
    assert isinstance(totals, dict)
    assert delivery["complete"]
    assert delivery["due"] == delivery["delivered"] == 40
    assert delivery["undelivered"] == []
    # On a busy machine a request can be sent a second time, also to a process that started meanwhile: docs/adr/0003.
    assert set(totals["envelopes_rejected"]) <= {"replayed", "issued_before_start"}
    assert totals["handler_failures"] == 0
    actuations = report["actuations"]
    assert isinstance(actuations, dict)
    assert len(actuations) == 6
    assert {record["outcome"] for record in actuations.values()} == {"would_do"}
    verified = subprocess.run(
        [
            *TOCSIN,
            "decision",
            "verify",
            str(folder / "certificate.tocsin"),
            "--root",
            str(folder / "ca.pem"),
            "--json",
        ],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert verified.returncode == 0, verified.stderr
    decision = report["decision"]
    assert isinstance(decision, dict)
    assert json.loads(verified.stdout)["decision"] == decision["decision"]


def test_live_fire_becomes_a_decided_delivered_verifiable_response(tmp_path: Path) -> None:
    code, out, err = demo(tmp_path)
    assert code == Exit.OK, out + err
    folder, report = report_of(tmp_path)
    assert_whole_story(folder, report)
    assert not (folder / "state").exists()
    assert "certificate" in out
    assert "Traceback" not in "".join(log.read_text() for log in (folder / "logs").iterdir())
    assert "## Timeline" in (folder / "report.md").read_text()
    assert_nothing_left(folder)


INPUTS = {
    "suricata/malicious.eve.json": "responded",
    "zeek/ctu-sme-11-win.conn.log.labeled": "responded",
    "zeek/port-scan-vertical.conn.log": "responded",
    "zeek/port-scan-horizontal.conn.log": "responded",
    "zeek/apt29-nashua.conn.log": "responded",
    # Browsing, DNS and multicast of one host: an analyst finds nothing in it either.
    "zeek/mixed.conn.log": "no_anomalies",
}


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real captures are not beside this checkout")
@pytest.mark.parametrize(("name", "outcome"), INPUTS.items())
def test_each_real_capture_is_carried_to_its_end(name: str, outcome: str, tmp_path: Path) -> None:
    code, out, err = demo(tmp_path, "--input", str(SHARED / "data" / name))
    assert code == Exit.OK, out + err
    folder, report = report_of(tmp_path)
    assert report["outcome"] == outcome, out
    if outcome == "responded":
        assert_whole_story(folder, report)
    if name.endswith("labeled"):
        assert isinstance(report["labels"], dict)
    assert_nothing_left(folder)


@pytest.mark.skipif(not (SHARED / "data").exists(), reason="the real captures are not beside this checkout")
def test_bad_lines_are_counted_with_their_numbers_and_skipped(tmp_path: Path) -> None:
    good = (SHARED / "data" / "zeek" / "port-scan-vertical.conn.log").read_bytes()
    bad = good + b"\n\xff\xfe\x00 binary\n" + b"x" * (2 << 20) + b'\n{"ts": 17, "id.orig_h'
    code, out, err = demo(tmp_path, "--input", "-", given=bad)
    assert code == Exit.OK, out + err
    _, report = report_of(tmp_path)
    seen = report["input"]
    assert isinstance(seen, dict)
    assert seen["bad"] >= 3
    assert len(seen["first_bad"]) >= 3
    assert report["outcome"] == "responded"


def test_an_input_without_a_readable_line_is_no_all_clear(tmp_path: Path) -> None:
    code, out, err = demo(
        tmp_path, "--agents", "8", "--hosts", "1", "--input", "-", given=b'{"event_type":"flow"}\n'
    )
    assert code == Exit.BAD_INPUT, out + err
    _, report = report_of(tmp_path)
    assert "No line of the input could be read" in str(report["verdict"])


def test_an_input_that_never_comes_can_be_interrupted(tmp_path: Path) -> None:
    """A pipe without a writer: the demo starts, waits for it, and ends when it is told to."""
    os.mkfifo(tmp_path / "pipe")
    runs = tmp_path / "runs"
    with subprocess.Popen(
        [
            *TOCSIN,
            "demo",
            "--runs",
            str(runs),
            "--agents",
            "8",
            "--hosts",
            "1",
            "--input",
            str(tmp_path / "pipe"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert any("quorum" in line for line in running.stdout)
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == Exit.INTERRUPTED
    assert_nothing_left(runs)


def test_a_port_in_use_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = demo(tmp_path, "--port", str(taken.getsockname()[1]))
    assert code == Exit.UNAVAILABLE
    assert "address already in use" in err
    assert "Traceback" not in err
    assert_nothing_left(tmp_path)


KILLS = [
    ("state/broker/nats.log", signal.SIGTERM, 0.0),
    ("logs/router.log", signal.SIGKILL, 0.0),
    ("logs/host-4.log", signal.SIGINT, 0.2),
    ("logs/host-4.log", signal.SIGKILL, 4.0),
    ("logs/host-4.log", signal.SIGTERM, 9.0),
]
"""When (a log that has appeared, and seconds after that) and how the demo is killed."""


@pytest.mark.parametrize(("appears", "number", "after_s"), KILLS)
def test_a_killed_demo_leaves_no_process_behind(
    appears: str, number: signal.Signals, after_s: float, tmp_path: Path
) -> None:
    running = subprocess.Popen(
        [*TOCSIN, "demo", "--runs", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(f"*/{appears}")) and time.monotonic() < deadline:
            assert running.poll() is None, running.communicate()
            time.sleep(0.01)
        time.sleep(after_s)
        running.send_signal(number)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait()
    if number is not signal.SIGKILL:
        assert running.returncode == Exit.INTERRUPTED
        assert b"Traceback" not in err
    assert_nothing_left(tmp_path)
