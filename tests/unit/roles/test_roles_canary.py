"""Token files: put out, touched in every way, mended; by inotify and by looking."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually

from tocsin.agent.agent import HostView
from tocsin.agent.inotify import Inotify, Mask, Note, parse
from tocsin.agent.roles import canary as module
from tocsin.agent.roles.canary import Canary
from tocsin.agent.roles.tokenfiles import Record, TokenFile, decoy, place, read_record, write_record
from tocsin.agent.roles.touches import BURST_S, Bursts, Touch
from tocsin.contracts.base import Message
from tocsin.contracts.errors import ConflictError, InvalidInputError, UnavailableError
from tocsin.contracts.identifiers import Severity
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import Metrics

linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
BOTH = [pytest.param("inotify", marks=linux), "polling"]


@dataclass
class Perch:
    """The part of a host that a canary uses."""

    state_dir: Path
    metrics: Metrics = field(default_factory=Metrics)
    alerts: list[ThreatAlert] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    at_ns: int = 10**18

    def now_ns(self) -> int:
        return self.at_ns

    async def event(self, *_: object) -> None:
        """Nobody listens."""

    async def route(self, _agent: object, _kind: object, body: Message, **_: object) -> None:
        assert isinstance(body, ThreatAlert)
        self.alerts.append(body)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))

    def summaries(self) -> list[str]:
        return [one.summary for one in self.alerts]


@asynccontextmanager
async def canary_at(
    perch: Perch, *, files: tuple[Path, ...] = (), watch: str = "auto"
) -> AsyncIterator[Canary]:
    made = Canary("canary-01", files=files, watch=watch)
    made.host = cast("HostView", perch)
    await made.started()
    await asyncio.sleep(0.05)  # the watch begins
    try:
        yield made
    finally:
        await made.stopping()
        for task in perch.tasks:
            task.cancel()
        failed = [
            one
            for one in await asyncio.gather(*perch.tasks, return_exceptions=True)
            if isinstance(one, Exception)
        ]
        perch.tasks.clear()
    assert not failed


def read(path: Path) -> None:
    path.read_bytes()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("mine")
    other.replace(path)


def shows_reading(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_text("a")
    os.utime(probe, ns=(0, probe.stat().st_mtime_ns))
    probe.read_text()
    return probe.stat().st_atime_ns != 0


@pytest.mark.parametrize("watch", BOTH)
@pytest.mark.parametrize(
    ("touch", "word"),
    [
        (read, "read"),
        (lambda path: path.write_text("mine"), "changed"),
        (lambda path: path.chmod(0o600), "changed"),
        (lambda path: path.unlink(), "removed"),
        (lambda path: path.rename(path.with_name("gone")), "moved|removed"),
        (replace, "changed|removed|moved"),
    ],
)
async def test_a_touch_is_told_once_and_the_file_is_back(
    tmp_path: Path, watch: str, touch: Callable[[Path], None], word: str
) -> None:
    if watch == "polling" and word == "read" and not shows_reading(tmp_path):
        pytest.skip("this file system is mounted noatime")
    perch = Perch(tmp_path)
    path = tmp_path / "aws-credentials"
    async with canary_at(perch, files=(path,), watch=watch) as canary:
        content = path.read_bytes() if watch == "polling" else canary._files[path].content
        if watch == "polling":
            canary._watch.watch(path)  # that was this test's reading
        touch(path)
        await eventually(lambda: bool(perch.alerts))
        await eventually(lambda: not canary._touched)
        await asyncio.sleep(0.7 if watch == "polling" else 0.3)  # its own mending is no touch
        assert len(perch.alerts) == 1, perch.summaries()
        assert any(part in perch.summaries()[0] for part in word.split("|")), perch.summaries()
        assert canary._files[path].intact()
        assert content == canary._files[path].content
    assert perch.alerts[0].severity is Severity.HIGH
    assert "token file of canary canary-01" in perch.summaries()[0]


@linux
async def test_a_burst_is_one_alert_and_a_change_after_a_look_a_second(tmp_path: Path) -> None:
    perch = Perch(tmp_path)
    path = tmp_path / "canary-01.canary"
    async with canary_at(perch) as canary:
        for _ in range(20):
            read(path)
            await asyncio.sleep(0.05)
        await eventually(lambda: len(perch.alerts) == 1 and not canary._touched)
        path.write_text("mine")
        await eventually(lambda: len(perch.alerts) == 2 and not canary._touched)
        perch.at_ns += int((BURST_S + 1) * 1e9)
        read(path)
        await eventually(lambda: len(perch.alerts) == 3)
    assert [("read" in one, "changed" in one) for one in perch.summaries()] == [
        (True, False),
        (False, True),
        (True, False),
    ]


@linux
async def test_it_is_told_within_a_second(tmp_path: Path) -> None:
    perch = Perch(tmp_path)
    async with canary_at(perch):
        begun = asyncio.get_running_loop().time()
        read(tmp_path / "canary-01.canary")
        await eventually(lambda: bool(perch.alerts))
        # A quiet machine takes a quarter of a second; a loaded one may take its time.
        assert asyncio.get_running_loop().time() - begun < 5


async def test_a_folder_that_vanishes_is_told_and_the_file_comes_back_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVIVE_S", 0.05)
    perch = Perch(tmp_path)
    path = tmp_path / "share" / "passwords.csv"
    path.parent.mkdir()
    async with canary_at(perch, files=(path,)):
        shutil.move(path.parent, tmp_path / "stolen")
        await eventually(lambda: bool(perch.alerts))
        path.parent.mkdir()
        await eventually(path.exists)


async def test_a_change_while_it_is_away_is_told_when_it_is_back(tmp_path: Path) -> None:
    perch = Perch(tmp_path)
    path = tmp_path / "notes.txt"
    async with canary_at(perch, files=(path,)):
        token = path.read_bytes()
    perch.alerts.clear()
    async with canary_at(perch, files=(path,)):
        assert path.read_bytes() == token, "known again"
    perch.alerts.clear()
    path.write_text("mine")
    async with canary_at(perch, files=(path,)):
        await eventually(lambda: bool(perch.alerts))
        assert "while nobody watched" in perch.summaries()[0]
        assert path.read_bytes() == token


async def test_somebody_elses_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_text("important")
    canary = Canary("canary-01", files=(path,))
    canary.host = cast("HostView", Perch(tmp_path))
    with pytest.raises(ConflictError) as caught:
        await canary.started()
    assert caught.value.reason == "file_exists"
    assert path.read_text() == "important"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ConflictError):
        place(path, Record(), ours=False)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        place(tmp_path / "no" / "such", Record(), ours=False)
    assert caught.value.reason == "no_file"


@linux
async def test_without_inotify_it_looks_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up(*_: object) -> int:
        raise UnavailableError("no watch is left", reason="no_inotify")

    monkeypatch.setattr(Inotify, "add", used_up)
    perch = Perch(tmp_path)
    async with canary_at(perch):
        (tmp_path / "canary-01.canary").unlink()
        await eventually(lambda: bool(perch.alerts))
    strict = Canary("canary-02", watch="inotify")
    strict.host = cast("HostView", perch)
    with pytest.raises(UnavailableError):
        await strict.started()


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        Canary("c", watch="staring")
    with pytest.raises(InvalidInputError):
        Canary("c", files=[tmp_path / str(number) for number in range(65)])


@given(st.binary(max_size=100))
def test_any_bytes_are_a_record_or_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("record") / "tokens.json"
    path.write_bytes(data)
    assert isinstance(read_record(path), Record)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = TokenFile(tmp_path / "a", "t" * 40)
    write_record(tmp_path / "tokens.json", {made.path: made})
    assert read_record(tmp_path / "tokens.json").files[str(made.path)].sha256 == made.sha256


@pytest.mark.parametrize("name", ["aws-credentials", "db.ini", "prod.env", "pins.csv", "recovery.txt"])
def test_every_decoy_holds_its_token(name: str) -> None:
    token = "0123456789abcdef" * 3
    assert token[:16] in decoy(name, token).decode().lower()
    assert decoy(name, token) != decoy(name, token[::-1])


def test_touches_are_news_by_burst_and_kind() -> None:
    bursts, path = Bursts(), Path("a")
    said = [
        bursts.is_news(path, touches, at_s)
        for at_s, touches in (
            (0, {Touch.OPENED}),
            (5, {Touch.READ}),
            (14, {Touch.READ}),
            (15, {Touch.CHANGED}),
            (16, {Touch.READ}),
            (30, {Touch.READ}),
        )
    ]
    assert said == [True, False, False, True, False, True]


@given(st.binary(max_size=120))
def test_any_bytes_are_notes_or_refused(data: bytes) -> None:
    try:
        assert all(isinstance(note, Note) for note in parse(data))
    except InvalidInputError:
        assert data


def test_notes_are_read_with_their_names() -> None:
    data = struct.pack("iIII", 3, 0x20, 0, 4) + b"a\0\0\0" + struct.pack("iIII", -1, 0x4000, 0, 0)
    assert parse(data) == [Note(3, Mask.OPEN), Note(-1, Mask.Q_OVERFLOW)]


@linux
def test_the_kernel_tells_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a")
    notes = Inotify()
    watch = notes.add(path, Mask.OPEN | Mask.ACCESS | Mask.DELETE_SELF)
    assert notes.read() == []
    path.read_text()
    os.stat(path)  # noqa: PTH116 - not told
    path.unlink()
    told = {note.mask for note in notes.read() if note.watch == watch}
    assert told >= {Mask.OPEN, Mask.ACCESS, Mask.DELETE_SELF, Mask.IGNORED}
    with pytest.raises(UnavailableError):
        notes.add(tmp_path / "none", Mask.OPEN)
    notes.remove(watch)
    notes.close()
    notes.close()
    with pytest.raises(UnavailableError):
        notes.read()
