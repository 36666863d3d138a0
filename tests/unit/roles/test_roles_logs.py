"""A sentinel's log: what grows is judged, what was told is not told again, headers and rotation are no obstacle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import SHARED

from tocsin.agent.roles.logs import SentinelLog
from tocsin.contracts.observations import Finding, FindingKind

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the real captures are not beside this checkout")


def read_all(log: SentinelLog) -> list[Finding]:
    found: list[Finding] = []
    behind = True
    while behind:
        news, behind = log.read()
        found += news
    return found + log.look()


def said(findings: list[Finding]) -> set[tuple[FindingKind, str]]:
    return {(one.kind, one.subject) for one in findings}


@pytest.mark.parametrize("name", ["zeek/port-scan-vertical.conn.log", "suricata/malicious.eve.json"])
def test_a_log_that_is_restarted_in_the_middle_tells_all_and_nothing_twice(name: str, tmp_path: Path) -> None:
    lines = (DATA / name).read_bytes().splitlines(keepends=True)
    path = tmp_path / "the.log"
    path.write_bytes(b"".join(lines))
    whole = SentinelLog(path, tmp_path)
    expected = said(read_all(whole))
    assert expected
    whole.close()

    path.unlink()
    folder = tmp_path / "state"
    folder.mkdir()
    told: list[Finding] = []
    for start in range(0, len(lines), max(1, len(lines) // 4)):
        with path.open("ab") as file:
            file.writelines(lines[start : start + max(1, len(lines) // 4)])
        log = SentinelLog(path, folder)
        told += read_all(log)
        log.keep()
        log.close()
    assert said(told) == expected
    once_more = SentinelLog(path, folder)
    assert read_all(once_more) == []
    once_more.close()


def test_a_tab_separated_log_is_read_on_through_its_rotation(tmp_path: Path) -> None:
    data = (DATA / "zeek/port-scan-vertical.conn.log").read_bytes()
    header = b"".join(line for line in data.splitlines(keepends=True) if line.startswith(b"#"))
    records = [line for line in data.splitlines(keepends=True) if not line.startswith(b"#")]
    path = tmp_path / "conn.log"
    path.write_bytes(header + b"".join(records[: len(records) // 2]))
    log = SentinelLog(path, tmp_path)
    read_all(log)
    path.rename(tmp_path / "conn.log.1")
    path.write_bytes(header + b"".join(records[len(records) // 2 :]))
    read_all(log)
    assert log.counts["flows"] == len(records)
    assert log.counts["bad"] == 0
    assert log.counts["rotated"] == 1
    log.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x00\xff", b"[]", b"{}", b'{"position": 3, "headers": [], "told": []}', b'{"position": null, "headers": 7}',
     b'{"position": null, "headers": [], "told": [["no kind", "x", 1]]}'],
)  # fmt: skip
def test_a_state_that_cannot_be_read_means_from_the_start(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "eve.json"
    path.write_bytes((DATA / "suricata/malicious.eve.json").read_bytes()[:200_000])
    first = SentinelLog(path, tmp_path)
    expected = said(read_all(first))
    first.keep()
    first.close()
    (state,) = tmp_path.glob("log-*.json")
    assert json.loads(state.read_bytes())["told"]
    state.write_bytes(damage)
    again = SentinelLog(path, tmp_path)
    assert said(read_all(again)) == expected
    again.close()


def test_a_file_of_no_known_format_is_counted_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "odd.log"
    path.write_bytes(b"\x00\x01 nothing\n" * 100)
    log = SentinelLog(path, tmp_path)
    assert read_all(log) == []
    assert log.counts["bad"] == 100
    log.close()
