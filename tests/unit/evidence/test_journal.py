"""The local log: on the disk before it is said to be, torn tails cut off, damage refused."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tocsin.contracts.errors import ConflictError, InvariantBrokenError, UnavailableError
from tocsin.evidence.journal import HEADER, Journal, JournalWriter


def held(path: Path) -> list[bytes]:
    journal = Journal(path)
    try:
        return [entry for _, entry in journal.entries()]
    finally:
        journal.close()


def write(path: Path, *groups: list[bytes]) -> None:
    journal = Journal(path)
    for group in groups:
        places = journal.append(group)
        assert [journal.read(place) for place in places] == group
    journal.close()


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"
    write(path, [b"a"], [b"bb", b"", b"ccc"])
    write(path, [b"d"])
    assert held(path) == [b"a", b"bb", b"", b"ccc", b"d"]


@pytest.mark.parametrize("least", [1, 7, 30])
def test_what_the_disk_takes_piece_by_piece_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    pwrite = os.pwrite
    with monkeypatch.context() as short:
        short.setattr(os, "pwritev", lambda fd, parts, at: pwrite(fd, b"".join(parts)[:least], at))
        short.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:least], at))
        write(tmp_path / "log", [b"first" * 20], [b"second"])
    assert held(tmp_path / "log") == [b"first" * 20, b"second"]


def test_a_log_torn_anywhere_keeps_what_was_acknowledged_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, [b"first"])
    kept = path.stat().st_size
    write(path, [b"second", b"third"])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        expected = [b"first"] if length >= kept else []
        assert held(path) == expected
        write(path, [b"again"])
        assert held(path) == [*expected, b"again"]


def test_a_tail_of_zeros_is_torn(tmp_path: Path) -> None:
    """The file's length can reach the disk before its bytes."""
    path = tmp_path / "log"
    write(path, [b"first"])
    path.write_bytes(path.read_bytes() + bytes(5000))
    assert held(path) == [b"first"]


def test_damage_before_a_good_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, [b"first"], [b"second"])
    data = bytearray(path.read_bytes())
    for place in range(len(HEADER), data.index(b"first") + 5):
        broken = bytearray(data)
        broken[place] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(InvariantBrokenError) as caught:
            Journal(path)
        assert caught.value.reason == "damaged_log"


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"something of somebody else's")
    with pytest.raises(InvariantBrokenError):
        Journal(path)
    assert path.read_bytes() == b"something of somebody else's"


def test_one_log_has_one_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    with pytest.raises(ConflictError) as caught:
        Journal(tmp_path / "log")
    assert caught.value.reason == "log_in_use"
    journal.close()


def test_after_a_failed_fsync_nothing_more_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "log")

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UnavailableError):
        journal.append([b"x"])
    monkeypatch.undo()
    with pytest.raises(UnavailableError) as caught:
        journal.append([b"y"])
    assert caught.value.reason == "log_failed"
    journal.close()


async def test_appends_that_are_ready_together_share_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(Journal(tmp_path / "log"))
    synced = 0
    fsync = os.fsync

    def count(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    entries = [str(number).encode() for number in range(100)]
    places = await asyncio.gather(*(writer.append([entry]) for entry in entries))
    assert [writer.journal.read(place) for (place,) in places] == entries
    assert synced == 1
    writer.close()
    assert held(tmp_path / "log") == entries


async def test_a_caller_that_is_cancelled_does_not_undo_its_append(tmp_path: Path) -> None:
    writer = JournalWriter(Journal(tmp_path / "log"))
    first = asyncio.create_task(writer.append([b"first"]))
    second = asyncio.create_task(writer.append([b"second"]))
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    writer.close()
    assert held(tmp_path / "log") == [b"first", b"second"]
