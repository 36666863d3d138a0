"""``tocsin ingest``, by the page's own command: a real log that grows, the whole of it killed in the middle."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import SHARED

from tocsin.cli.exits import Exit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "roles" / "sentinel.md"
LOG = "/var/log/suricata/eve.json"
CAPTURE = SHARED / "data" / "suricata" / "malicious.eve.json"


def command(log: Path, state: Path) -> list[str]:
    """Return the page's command for programs, on another log."""
    found = re.search(rf"\.venv/bin/tocsin (ingest --json {re.escape(LOG)})", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    words = found.group(1).replace(LOG, str(log)).split()
    return [sys.executable, "-m", "tocsin.cli", *words, "--state", str(state)]


@contextmanager
def ingesting(log: Path, folder: Path, name: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command(log, folder / "state"), stdout=stdout, stderr=stderr)
    try:
        yield process, out
    finally:
        process.kill()
        process.wait()


Told = list[tuple[str, str, float]]


def told(lines: str) -> Told:
    found = [json.loads(line)["finding"] for line in lines.splitlines()]
    return [(one["kind"], one["subject"], one["score"]) for one in found]


def until(holds: Callable[[], bool], *, within_s: float = 90.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(not CAPTURE.exists(), reason="the real captures are not beside this checkout")
def test_a_log_that_grows_is_watched_through_a_kill_of_everything(tmp_path: Path) -> None:
    lines = CAPTURE.read_bytes().splitlines(keepends=True)
    log, written = tmp_path / "eve.json", tmp_path / "state" / "hosts" / "host-1" / "state" / "alerts.jsonl"
    log.write_bytes(b"".join(lines[:1200]))
    with ingesting(log, tmp_path, "first") as (process, out):
        until(lambda: len(told(out.read_text())) >= 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
    log.rename(tmp_path / "eve.json.1")
    log.write_bytes(b"".join(lines[1200:]))
    with ingesting(log, tmp_path, "second") as (process, _):
        # The last scan of the capture: everything before it was read.
        until(lambda: ("scan", "45.143.200.10") in {one[:2] for one in told(written.read_text())})
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == Exit.OK
    found = told(written.read_text())
    assert ("scan", "193.46.255.92") in {one[:2] for one in found}
    assert len(set(found)) == len(found), "told once"


def test_what_is_no_log_is_refused_before_anything_starts(tmp_path: Path) -> None:
    odd = tmp_path / "odd.log"
    odd.write_bytes(b"\x00 nothing\n" * 50)
    done = subprocess.run(command(odd, tmp_path / "state"), capture_output=True, timeout=60, check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert b"known format" in done.stderr
    assert not (tmp_path / "state").exists()
