"""``tocsin inventory`` as a user runs it: no broker, no system. In this process, except once: a start is slow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import SHARED
from unit.cli import test_cli
from unit.inventory.test_inventory_zeek import TSV_SSL, TSV_X509

from tocsin.cli import main
from tocsin.cli.exits import Exit

ZEEK = SHARED / "data/zeek"
needs_data = pytest.mark.skipif(not ZEEK.exists(), reason="the real data of ../shared is not here")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs the command as its entry point does."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        code = main._guarded(lambda: main.app(list(arguments), standalone_mode=False))
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)


@pytest.fixture
def tocsin(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@needs_data
def test_the_real_logs_make_a_table_a_document_and_a_cbom(tmp_path: Path, tocsin: Command) -> None:
    logs = ["--zeek-ssl", f"{ZEEK}/apt29-nashua.ssl.log", "--zeek-x509", f"{ZEEK}/apt29-nashua.x509.log"]
    common = ["inventory", *logs, "--at", "2026-01-01"]
    table = tocsin(*common, "--cbom", f"{tmp_path}/a.json")
    assert table.returncode == Exit.OK, table.stderr
    assert "192.168.0.4:8443" in table.stdout
    assert "ECDH-secp256r1" in table.stdout
    assert "ssl.log: 376 of 376 lines taken" in table.stdout
    again = tocsin(*common, "--cbom", f"{tmp_path}/b.json", "--json", "--sensitive", "192.168.0.4=25")
    document = json.loads(again.stdout)
    assert document["endpoints"][0]["level"] == "high"
    assert document["endpoints"][0]["broken_by_shor"][0]["logical_qubits"] == 2330
    assert document["assumptions"]["machine_in_years"] == 9.0
    third = tocsin(*common, "--cbom", f"{tmp_path}/c.json")
    assert third.returncode == Exit.OK
    assert (
        (tmp_path / "a.json").read_bytes()
        == (tmp_path / "c.json").read_bytes()
        != (tmp_path / "b.json").read_bytes()
    )
    assert {one.name for one in tmp_path.iterdir()} == {"a.json", "b.json", "c.json"}


def test_what_a_log_says_is_shown_without_control_characters(tmp_path: Path, tocsin: Command) -> None:
    evil = TSV_X509.replace(b"CN=leaf", "CN=\x1b[31mroot\u202e[bold]".encode())
    (tmp_path / "ssl.log").write_bytes(TSV_SSL)
    (tmp_path / "x509.log").write_bytes(evil)
    done = tocsin("inventory", "--zeek-ssl", f"{tmp_path}/ssl.log", "--zeek-x509", f"{tmp_path}/x509.log")
    assert done.returncode == Exit.OK, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "[31mroot" in done.stdout
    assert "X25519MLKEM768" in done.stdout


def test_an_endpoint_that_does_not_answer_leaves_the_inventory_incomplete(tocsin: Command) -> None:
    done = tocsin("inventory", "--probe", "127.0.0.1:1", "--own", "--json")
    assert done.returncode == Exit.INCOMPLETE, done.stderr
    document = json.loads(done.stdout)
    assert document["incomplete"][0]["reason"] == "unreachable"
    assert {one["endpoint"] for one in document["endpoints"]} == {
        "tocsin-broker:4222",
        "tocsin-sealed-bodies:4222",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], Exit.BAD_INPUT, "nothing to take an inventory of"),
        (["--zeek-ssl", "no/such.log"], Exit.NO_INPUT, "cannot read no/such.log"),
        (["--zeek-ssl", "."], Exit.NO_INPUT, "cannot read ."),
        (["--zeek-ssl", "/dev/null"], Exit.BAD_INPUT, "is one of Zeek's ssl.log"),
        (["--probe", "nonsense"], Exit.BAD_INPUT, "no endpoint"),
        (["--own", "--sensitive", "x"], Exit.BAD_INPUT, "NAME=YEARS"),
        (["--own", "--sensitive", "x=999"], Exit.BAD_INPUT, "0 to 200"),
        (["--own", "--at", "tomorrow"], Exit.BAD_INPUT, "no day"),
        (["--own", "--secrecy-years", "-1"], Exit.USAGE, "secrecy-years"),
        (["--own", "--cbom", "/no/such/folder/x.json"], Exit.BAD_INPUT, "is no folder"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_documented_code(
    arguments: list[str], code: Exit, says: str, tocsin: Command
) -> None:
    done = tocsin("inventory", *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_it_is_a_command_of_its_own_process_too() -> None:
    done = test_cli.tocsin("inventory", "--own", "--at", "2026-01-01")
    assert done.returncode == Exit.OK, done.stderr
    assert "tocsin-broker:4222" in done.stdout
