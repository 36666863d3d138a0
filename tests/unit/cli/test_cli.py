"""The command line without a running system: exit codes, and one line for each error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tocsin.cli.exits import Exit
from tocsin.contracts.errors import FAMILIES

TOCSIN = [sys.executable, "-m", "tocsin.cli"]


def tocsin(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    done = subprocess.run([*TOCSIN, *arguments], input=given, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["demo", "--input", "no/such/file"], Exit.NO_INPUT, "cannot read no/such/file"),
        (["demo", "--input", "."], Exit.NO_INPUT, "cannot read ."),
        (["demo", "--agents", "2"], Exit.BAD_INPUT, "at least 3 are needed"),
        (["demo", "--agents", "5"], Exit.BAD_INPUT, "lack a role"),
        (["demo", "--hosts", "99"], Exit.BAD_INPUT, "99 hosts"),
        (["up", "--key-scope", "nobody"], Exit.BAD_INPUT, "host or agent"),
        (["decision", "verify", "none", "--root", "none"], Exit.NO_INPUT, "cannot read none"),
        (["envelope", "inspect", "none"], Exit.NO_INPUT, "cannot read none"),
        (["tail", "no.such.subject"], Exit.BAD_INPUT, "matches"),
        (["ca", "issue", "none", "--service", "router", "--out", "o"], Exit.UNAVAILABLE, "ca init"),
        (["ca", "init", "/dev/null/ca"], Exit.UNAVAILABLE, "cannot make the folder"),
        (["demo", "--port", "99999"], Exit.USAGE, "--port"),
        (["decision", "verify", "/dev/zero", "--root", "none"], Exit.BAD_INPUT, "more than"),
        (["no-such-command"], Exit.USAGE, "No such command"),
    ],
)
def test_an_error_is_one_documented_code_and_no_traceback(
    arguments: list[str], code: Exit, says: str, tmp_path: Path
) -> None:
    runs = ["--runs", str(tmp_path)] if arguments[0] == "demo" else []
    state = ["--state", str(tmp_path / "state")] if arguments[0] in {"up", "tail"} else []
    done = tocsin(*arguments, *runs, *state)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x00\xff", b"hello\n", b'{"a": 1}\n', b"[1,2]\n"])
def test_an_unknown_format_is_said_before_anything_starts(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(content)
    done = tocsin("demo", "--input", str(tmp_path / "input"), "--runs", str(tmp_path / "runs"))
    assert done.returncode == Exit.BAD_INPUT, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_ca_init_then_issue_makes_credentials_and_never_overwrites(tmp_path: Path) -> None:
    folder = str(tmp_path / "ca")
    assert tocsin("ca", "init", folder, "--domain", "soc.example").returncode == 0
    again = tocsin("ca", "init", folder)
    assert again.returncode == Exit.CONFLICT
    assert (tmp_path / "ca" / "root.key").stat().st_mode & 0o077 == 0
    issued = tocsin(
        "ca", "issue", folder, "--service", "router", "--instance", "a", "--out", str(tmp_path / "r")
    )
    assert issued.returncode == 0, issued.stderr
    assert "spiffe://soc.example/service/router/a" in issued.stdout
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"ca.pem", "router-a.key", "router-a.chain"}


def test_doctor_names_every_part_and_finds_nothing_missing_here() -> None:
    done = tocsin("doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {"signature backend", "nats-server", "qiskit", "sklearn"} <= {f["what"] for f in findings}
    assert all(f["ok"] is not False for f in findings)


def test_random_bytes_as_a_certificate_are_refused_in_one_line(tmp_path: Path) -> None:
    tocsin("ca", "init", str(tmp_path / "ca"))
    (tmp_path / "c").write_bytes(b"\x93\x01\x02\x03")
    done = tocsin("decision", "verify", str(tmp_path / "c"), "--root", str(tmp_path / "ca" / "root.pem"))
    assert done.returncode in {Exit.BAD_INPUT, Exit.UNTRUSTED}
    assert done.stderr.count("\n") == 1


def test_the_codes_of_the_error_families_are_documented() -> None:
    assert {family.exit_code for family in FAMILIES.values()} <= {int(code) for code in Exit}
