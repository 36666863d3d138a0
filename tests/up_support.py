"""A `tocsin up` as a user runs it, for tests of what stands on top of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOCSIN = [sys.executable, "-m", "tocsin.cli"]
START = [*TOCSIN, "up", "--agents", "12", "--hosts", "2"]


@dataclass
class Up:
    """A running `tocsin up`."""

    process: subprocess.Popen[str]
    state: Path
    said: Path

    def wait_for(self, pattern: str, *, within_s: float = 60) -> str:
        """Wait until the output has a match; return its first group, or all of it."""
        return wait_for(self.said, pattern, within_s=within_s, alive=lambda: self.process.poll() is None)


def wait_for(said: Path, pattern: str, *, within_s: float, alive: Callable[[], bool] = lambda: True) -> str:
    """Wait until a file has a match."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if match := re.search(pattern, said.read_text(errors="replace"), flags=re.DOTALL):
            return match.group(match.lastindex or 0)
        assert alive(), said.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{pattern!r} not in:\n{said.read_text()}")


@contextmanager
def running_up(tmp_path: Path) -> Iterator[Up]:
    """Run it in a folder, until the test is over."""
    said = tmp_path / "said"
    state = tmp_path / "state"
    with said.open("w") as out:
        process = subprocess.Popen([*START, "--state", str(state)], stdout=out, stderr=out, text=True)
    running = Up(process, state, said)
    try:
        running.wait_for("Ctrl-C ends it")
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        try:
            running.process.wait(30)
        finally:
            running.process.kill()
            running.process.wait()
