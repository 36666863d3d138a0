"""The alert journal on a disk: group commit, restarts, rewriting, and a disk that refuses."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tocsin.agent import journal as module
from tocsin.agent.accepted import CONFIRM_AGAIN_NS, KEPT_NS
from tocsin.agent.journal import AlertJournal
from tocsin.contracts.errors import ExhaustedError, UnavailableError

NOW_NS = 1_800_000_000_000_000_000


def leaf(number: int) -> bytes:
    return number.to_bytes(32, "big")


def journal_at(folder: Path, *, now_ns: int = NOW_NS) -> AlertJournal:
    return AlertJournal(folder / "alerts.journal", now_ns=now_ns)


def accept(journal: AlertJournal, number: int, *agents: str, data: bytes = b"envelope") -> asyncio.Future[None]:
    return journal.accept(leaf(number), data, "core", NOW_NS, list(agents))


async def test_what_was_accepted_and_not_handled_is_there_after_a_restart_in_order(tmp_path: Path) -> None:
    first = journal_at(tmp_path)
    await asyncio.gather(*(accept(first, number, "a", "b") for number in range(5)))
    first.handled(leaf(0), "a")
    first.handled(leaf(0), "b")
    first.handled(leaf(2), "a")
    await first.close()
    again = journal_at(tmp_path)
    assert [(one.leaf, list(one.waiting)) for one in again.unhandled()] == [
        (leaf(1), ["a", "b"]),
        (leaf(2), ["b"]),
        (leaf(3), ["a", "b"]),
        (leaf(4), ["a", "b"]),
    ]
    assert all(again.has(leaf(number), "a") for number in range(5))
    assert not again.has(leaf(0), "c")
    assert [one.receipt().agents for one in again.since(NOW_NS)] == [("a", "b")] * 5
    await again.close()


async def test_many_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_at(tmp_path)
    synced = 0
    truly = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        truly(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await asyncio.gather(*(accept(journal, number, "a") for number in range(100)))
    assert synced == 1
    journal.handled(leaf(1), "a")
    await journal.close()
    assert synced == 1, "a mark needs none"


async def test_it_is_written_anew_without_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REWRITE_BYTES", 10_000)
    journal = journal_at(tmp_path)
    for number in range(100):
        await accept(journal, number, "a", data=bytes(1000))
        if number != 7:
            journal.handled(leaf(number), "a")
    await journal.close()
    assert (tmp_path / "alerts.journal").stat().st_size < 60_000
    again = journal_at(tmp_path)
    assert [one.leaf for one in again.unhandled()] == [leaf(7)]
    assert all(again.has(leaf(number), "a") for number in range(100))
    await again.close()
    late = journal_at(tmp_path, now_ns=NOW_NS + KEPT_NS + 1)
    assert [one.leaf for one in late.since(0)] == [leaf(7)], "what cannot come again is forgotten"
    await late.close()


async def test_a_disk_that_refuses_confirms_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_at(tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", refuse)
        with pytest.raises(UnavailableError) as caught:
            await accept(journal, 1, "a")
    assert caught.value.reason == "journal_failed"
    with pytest.raises(UnavailableError):
        await accept(journal, 2, "a")
    assert journal.has(leaf(2), "a"), "no further copy goes to the agent"
    with pytest.raises(UnavailableError):
        await journal.durable(leaf(1))
    await journal.close()


async def test_a_full_journal_remembers_and_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_at(tmp_path)
    monkeypatch.setattr(module, "MAX_WAITING", 0)
    with pytest.raises(ExhaustedError):
        await accept(journal, 1, "a")
    assert journal.has(leaf(1), "a")
    with pytest.raises(ExhaustedError):
        await journal.durable(leaf(1))
    await journal.close()


async def test_what_is_done_and_old_keeps_no_names_unless_some_agent_waits_for_a_copy(tmp_path: Path) -> None:
    agents = [f"agent-{number:04d}" for number in range(800)]
    journal = journal_at(tmp_path)
    for number in range(4):
        await accept(journal, number, *agents)
        for agent in agents:
            journal.handled(leaf(number), agent)
    journal.missed(leaf(3))
    await journal.close()
    for _ in range(2):
        again = journal_at(tmp_path, now_ns=NOW_NS + CONFIRM_AGAIN_NS + 1)
        assert (tmp_path / "alerts.journal").stat().st_size < 12_000
        assert all(again.has(leaf(number), "agent-0001") for number in range(4))
        assert not again.unhandled()
        assert not again.has(leaf(3), "late"), "who had no room for it gets the next copy"
        await again.close()


async def test_a_full_journal_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_at(tmp_path)
    await accept(journal, 1, "a", data=bytes(2_000))
    await accept(journal, 2, "a", data=bytes(2_000))
    journal.handled(leaf(1), "a")
    monkeypatch.setattr(module, "MAX_BYTES", 3_000)
    monkeypatch.setattr(module, "REWRITE_FULL_S", 0)
    with pytest.raises(ExhaustedError):
        await accept(journal, 3, "a")
    async with asyncio.timeout(2):
        while journal._unwritten:
            await asyncio.sleep(0.01)
    assert journal._size <= 3_000
    await journal.durable(leaf(3))
    await accept(journal, 4, "a")
    await journal.close()
