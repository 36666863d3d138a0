"""What a deception agent writes down, judges by itself, and bears."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import stat
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually

from tocsin.agent.roles.credentials import MAX_VALUE, MAX_WAITING, CredentialLog, escaped
from tocsin.agent.roles.dialogues import DIALOGUES, Login
from tocsin.agent.roles.honeypot import MAX_BYTES, Admission, Ending, Honeypot, Visit
from tocsin.agent.roles.solo import MIN_LOGINS, Solo
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import FindingKind

SALT = b"s" * 32
VISIT = Visit(
    at_s=1000.0,
    client=("203.0.113.9", 4000),
    server=("10.0.0.1", 21),
    imitates="ftp",
    duration_s=0.1,
    received_bytes=20,
    sent_bytes=60,
    ending=Ending.CLOSED,
    logins=(Login(b"root", b"toor"),),
)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


@given(st.binary(max_size=200))
def test_any_bytes_are_written_as_printable_ascii_and_can_be_told_apart(value: bytes) -> None:
    text = escaped(value)
    assert text.isascii()
    assert text.isprintable()
    assert text.encode().decode("unicode_escape").encode("latin-1") == value[:MAX_VALUE]


def test_logins_are_written_for_the_owner_only_and_escaped(tmp_path: Path) -> None:
    log = CredentialLog(tmp_path / "c.jsonl", SALT)
    log.put(replace(VISIT, logins=(Login(b"ro\x1b[2Jot\n", "pässword".encode() * 20),)))
    log.write()
    log.write()
    (line,) = lines(tmp_path / "c.jsonl")
    assert line["user"] == "ro\\x1b[2Jot\\x0a"
    assert (line["source"], line["imitates"], line["cut"]) == ("203.0.113.9", "ftp", True)
    assert stat.S_IMODE((tmp_path / "c.jsonl").stat().st_mode) == 0o600


def test_logins_are_hashed_if_asked(tmp_path: Path) -> None:
    log = CredentialLog(tmp_path / "c.jsonl", SALT, hashed=True)
    log.put(VISIT)
    log.put(VISIT)
    log.write()
    first, second = lines(tmp_path / "c.jsonl")
    assert first == second
    assert "toor" not in (tmp_path / "c.jsonl").read_text()


def test_the_file_and_what_waits_for_it_are_bounded(tmp_path: Path) -> None:
    log = CredentialLog(tmp_path / "c.jsonl", SALT, max_file_bytes=400_000)
    for _ in range(3):
        for _ in range(MAX_WAITING + 5):
            log.put(VISIT)
        log.write()
    assert log.dropped == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "c.jsonl.1"]
    (tmp_path / "folder").mkdir()
    lost = CredentialLog(tmp_path / "folder", SALT)
    lost.put(VISIT)
    with pytest.raises(UnavailableError):
        lost.write()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "elsewhere")
    log = CredentialLog(tmp_path / "c.jsonl", SALT)
    log.put(VISIT)
    with pytest.raises(UnavailableError):
        log.write()
    assert not (tmp_path / "elsewhere").exists()


def visits(count: int, *, logins: int = 0, port: int = 21, received: int = 0) -> list[Visit]:
    tried = (Login(b"root", b"toor"),) * logins
    return [
        replace(
            VISIT,
            at_s=1000.0 + number,
            server=("10.0.0.1", port + number),
            logins=tried,
            received_bytes=received,
        )
        for number in range(count)
    ]


def test_alone_it_finds_a_scan_and_says_so_once() -> None:
    solo = Solo("deception-01")
    (found,) = solo.judge(visits(7), now_s=1010)
    assert (found.kind, found.subject) == (FindingKind.SCAN, "203.0.113.9")
    assert solo.judge(visits(2), now_s=1010) == []


def test_alone_it_counts_logins_and_lets_a_mistake_pass() -> None:
    solo = Solo("deception-01")
    assert solo.judge(visits(1, logins=MIN_LOGINS - 1, received=9), now_s=1001) == []
    (found,) = solo.judge(visits(1, logins=1, received=9), now_s=1001)
    assert (found.kind, found.subject, found.score) == (FindingKind.BRUTE_FORCE, "203.0.113.9", 0.7)
    assert "3 logins at honeypots of deception-01" in found.evidence[0]
    assert solo.judge(visits(1, logins=3, received=9), now_s=1002) == [], "said once"


def test_logins_long_apart_are_no_alert() -> None:
    solo = Solo("deception-01")
    for number in range(5):
        late = [replace(one, at_s=1000.0 + 700 * number) for one in visits(1, logins=1, received=9)]
        assert solo.judge(late, now_s=1000.0 + 700 * number) == []


def test_one_source_cannot_take_all_the_room() -> None:
    admission = Admission(max_total=5, max_per_source=2)
    assert [admission.enter("a") for _ in range(3)] == [True, True, False]
    assert [admission.enter(name) for name in "bcde"] == [True, True, True, False]
    admission.leave("a")
    assert admission.enter("e")
    for name in "aebcd":
        admission.leave(name)
    assert admission.enter("a")


async def test_a_flood_of_random_bytes_is_borne_within_bounds() -> None:
    """A thousand sockets, each with more random bytes than are read, against all dialogues."""
    seen: list[int] = []
    admission = Admission(max_total=24, max_per_source=8)
    pots = [
        Honeypot(
            name,
            dialogue,
            lambda visit: seen.append(visit.received_bytes if visit.ending is not Ending.TURNED_AWAY else -1),
            now_s=lambda: 1000.0,
            max_seconds=2.0,
            admission=admission,
        )
        for name, dialogue in DIALOGUES
    ]
    for pot in pots:
        await pot.open("127.0.0.1")
    noise = random.Random(5)  # noqa: S311 - a flood, not a secret
    data = [noise.randbytes(3 * MAX_BYTES) for _ in range(16)]

    def knock(number: int) -> None:
        pot = pots[number % len(pots)]
        source = (f"127.0.{number % 3}.{1 + number % 7}", 0)
        try:
            with socket.create_connection(("127.0.0.1", pot.port), timeout=5, source_address=source) as client:
                client.sendall(data[number % len(data)])
        except OSError:
            pass  # turned away or cut off

    tracemalloc.start()
    try:
        await asyncio.gather(*(asyncio.to_thread(knock, number) for number in range(1000)))
        await eventually(lambda: len(seen) >= 1000, within_s=30)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(seen) <= MAX_BYTES
    assert peak < 16 * 1024 * 1024
    assert not any(pot._connections for pot in pots)
    # Afterwards everybody is served again.
    reader, writer = await asyncio.open_connection("127.0.0.1", pots[1].port)
    assert (await reader.readline()).startswith(b"220 ")
    writer.close()
    for pot in pots:
        await pot.close()
    assert admission._inside.total() == 0


async def test_who_holds_connections_open_keeps_others_out_only_for_a_while() -> None:
    ended: list[Ending] = []
    pot = Honeypot(
        "ssh",
        DIALOGUES[0][1],
        lambda visit: ended.append(visit.ending),
        now_s=lambda: 1000.0,
        max_seconds=0.5,
        admission=Admission(max_per_source=2),
    )
    port = await pot.open("127.0.0.1")
    holders = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(4)]
    await eventually(lambda: ended.count(Ending.TURNED_AWAY) == 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await reader.readline()).startswith(b"SSH-2.0-"), "another source comes in"
    await eventually(lambda: ended.count(Ending.TIMED_OUT) == 3)
    for _, one in [*holders, (reader, writer)]:
        one.close()
    await pot.close()
