"""The how-tos of the sidecar and of the roles in it, run as they stand on their pages, with real logs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PROGRAM = ".venv/bin/tocsin"

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs the real logs of ../shared/data")


@dataclass
class Page:
    """A page as it is worked through: `ingest` runs on in a terminal of its own, all else is waited for."""

    blocks: list[str]
    home: Path
    stack: ExitStack = field(default_factory=ExitStack)
    said: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.home / "state"

    def next(self) -> str:
        """Run the next block; return what it printed."""
        block = self.blocks.pop(0).strip()
        command = re.sub(rf"(?<!\S)(\$\()?{re.escape(PROGRAM)}", rf"\1{sys.executable} -m tocsin.cli", block)
        env = os.environ | {
            "DATA": str(SHARED),
            "STATE": str(self.state),
            "LOG": str(self.home / "eve.json"),
            "HOME": str(self.home),
        }
        if block.startswith(f"{PROGRAM} ingest"):
            self.said = self.home / "terminal"
            with self.said.open("wb") as out:
                self.process = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"], env=env, stdout=out, stderr=out, start_new_session=True
                )
            self.stack.callback(end, self.process)
            return ""
        done = subprocess.run(
            ["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sees(self, pattern: str, *, within_s: float = 90) -> str:
        """Wait until the terminal shows a match; return it."""
        assert self.said is not None
        assert self.process is not None
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            text = self.said.read_text(errors="replace")
            if match := re.search(pattern, text):
                return match.group()
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} not in:\n{self.said.read_text()}")

    def written(self, name: str) -> list[dict[str, object]]:
        path = self.state / "hosts" / "watch-1" / "state" / name
        return [json.loads(line) for line in path.read_text().splitlines()]


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


@contextmanager
def page(name: str, home: Path) -> Iterator[Page]:
    text = (HOW_TO / name).read_text(encoding="utf-8")
    made = Page(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL), home)
    made.state.mkdir()
    with made.stack:
        yield made
        assert not made.blocks, "every block of the page was run"


def test_a_log_is_watched_beside_a_sensor_and_kill_loses_nothing(tmp_path: Path) -> None:
    shutil.copy(SHARED / "suricata" / "malicious.eve.json", tmp_path / "eve.json")
    with page("watch-a-suricata-or-zeek-log.md", tmp_path) as watch:
        watch.next()
        watch.sees(r"alert     high        Outside address 193\.46\.255\.92 scans 192\.168\.1\.129")
        for subject in (r"193\.46\.255\.92", r"45\.143\.200\.10", r"45\.143\.203\.2", r"112\.249\.236\.129"):
            watch.sees(rf"report    malicious   {subject}: malicious.*classical alone")
        assert watch.next().strip() == "3"
        listed = watch.next()
        assert listed == "".join(
            line.removeprefix("    ") + "\n"
            for line in (HOW_TO / "watch-a-suricata-or-zeek-log.md").read_text().splitlines()
            if re.match(r"    [0-9a-f]{32}  malicious", line)
        )


def test_a_sentinel_alone_alerts_a_scan_and_password_guessing(tmp_path: Path) -> None:
    with page("roles/sentinel.md", tmp_path) as sentinel:
        sentinel.next()
        sentinel.sees(r"alert     high        Host 192\.168\.1\.9 scans 45\.33\.32\.156")
        sentinel.next()
        sentinel.sees(r"alert     high        Outside address 203\.0\.113\.9 guesses passwords.*T1078")
        evidence = sentinel.next()
        assert "9 failed log-ins to ssh" in evidence
        assert "and then logged in as root" in evidence
        assert not list((sentinel.state / "hosts/watch-1/state").glob("hunter*"))


def test_a_hunter_joins_what_three_logs_show(tmp_path: Path) -> None:
    with page("roles/hunter.md", tmp_path) as hunter:
        hunter.next()
        hunter.sees(r"incident  high .*\n(    command-and-control: .*\n){3}")
        assert hunter.next() == '"techniques": ["T1071", "T1573.002"]\n'


def test_an_analyst_reports_in_stix_without_workflow(tmp_path: Path) -> None:
    import stix2

    with page("roles/analyst.md", tmp_path) as analyst:
        analyst.next()
        analyst.sees(r"report    malicious   192\.168\.1\.107: malicious, confidence 0\.99 \(classical alone")
        analyst.sees(r"STIX 2\.1 in \S+\.stix\.json")
        assert len(analyst.next().splitlines()) == 1
        assert "advised  contain 192.168.1.107 for 60 min" in analyst.next()
        analyst.next()
        exported = (analyst.state / "incident.json").read_text()
        bundle = stix2.parse(exported)
        assert {one["type"] for one in bundle.objects} >= {"report", "indicator", "attack-pattern", "sighting"}
        (kept,) = (analyst.state / "hosts/watch-1/state/reports").glob("*.stix.json")
        assert kept.read_text() == exported
