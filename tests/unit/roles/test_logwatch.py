"""A log under watch, killed at any moment: every finding once, whatever is read again; and what the disk refuses."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SHARED
from unit.roles.cases import finding

from tocsin.agent import statefile
from tocsin.agent.roles.alerting import REMIND_S, News
from tocsin.agent.roles.linefile import LineFile, recent_lines
from tocsin.agent.roles.logwatch import LogWatch, finding_of
from tocsin.agent.roles.tail import Tail
from tocsin.analysis.lines import MAX_LINE_BYTES
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.observations import FindingKind

EVE = SHARED / "data" / "suricata" / "malicious.eve.json"


def start(folder: Path, log: Path) -> tuple[LogWatch, LineFile]:
    """Start as a sentinel does after it was killed."""
    alerts = LineFile(folder / "s.alerts.jsonl")
    said = [one for line in alerts.recent() if (one := finding_of(line)) is not None]
    return LogWatch(log, folder / "state", alerts, said=said, grace_s=0), alerts


def drain(watch: LogWatch) -> None:
    while watch.step(now_s=time.time()).more:
        pass


def alerted(folder: Path) -> list[tuple[str, FindingKind, str, float]]:
    lines = recent_lines(folder / "s.alerts.jsonl")
    found = [(str(line["alert"]), finding_of(line)) for line in lines if "alert" in line]
    return [(name, one.kind, one.subject, one.score) for name, one in found if one is not None]


@pytest.mark.skipif(not EVE.exists(), reason="needs ../shared")
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_every_host_is_alerted_and_nothing_twice(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)  # noqa: S311 - a choice that can be repeated
    lines = EVE.read_bytes().splitlines(keepends=True)
    whole, calm = tmp_path / "whole.json", tmp_path / "calm"
    calm.mkdir()
    whole.write_bytes(EVE.read_bytes())
    undisturbed, _ = start(calm, whole)
    drain(undisturbed)

    log, at = tmp_path / "eve.json", 0
    watch, _ = start(tmp_path, log)
    while at < len(lines):
        count = choose.randint(1, 400)
        with log.open("ab") as file:
            file.writelines(lines[at : at + count])
        at += count
        if choose.random() < 0.8:
            watch.step(now_s=time.time())
        if choose.random() < 0.3:
            watch.checkpoint()
        if choose.random() < 0.3:
            drain(watch)  # rotated when it was read, as the how-to has it
            log.rename(tmp_path / f"eve.json-{at:05d}")
        if choose.random() < 0.5:
            watch, _ = start(tmp_path, log)  # what was there is not closed: it was killed
    drain(watch)
    time.sleep(0.3)
    watch.step(now_s=time.time())
    got = alerted(tmp_path)
    assert {one[1:3] for one in got} >= {one[1:3] for one in alerted(calm)}
    assert len({one[0] for one in got}) == len(got), "the same alert twice"
    last: dict[tuple[FindingKind, str], float] = {}
    for _, kind, subject, score in got:
        assert score >= last.get((kind, subject), -1) + 0.1, "again, and not stronger"
        last[kind, subject] = score
    assert "loss" not in json.dumps([list(line) for line in recent_lines(tmp_path / "s.alerts.jsonl")])


def test_a_hundred_megabytes_without_a_line_end_are_not_held(tmp_path: Path) -> None:
    log = tmp_path / "eve.json"
    log.write_bytes(b"{}\n")
    os.truncate(log, 100 * 1024 * 1024)  # a hole reads as zeros, and takes no room
    tail = Tail(log, grace_s=0)
    lines = list(tail.poll(now_s=1.0).lines)
    for _ in range(200):
        lines += tail.poll(now_s=1.0).lines
    with log.open("ab") as file:
        file.write(b"\n{}\n")
    for _ in range(200):
        read = tail.poll(now_s=1.0)
        lines += read.lines
        if not read.more:
            break
    assert lines == [b"{}", None, b"{}"]
    assert MAX_LINE_BYTES < 100 * 1024 * 1024


def test_a_log_that_was_truncated_is_said_and_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "eve.json"
    log.write_bytes(b'{"event_type": "stats"}\n' * 3 + b'{"event')
    watch, _ = start(tmp_path, log)
    drain(watch)
    log.write_bytes(b"")
    drain(watch)
    (loss,) = recent_lines(tmp_path / "s.alerts.jsonl")
    assert (loss["loss"], loss["octets"]) == ("truncated", 7)
    log.write_bytes(b'{"event_type": "stats"}\n')
    assert watch.step(now_s=time.time()).lines == 1


def test_a_log_that_is_no_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "eve.json")
    watch, _ = start(tmp_path, tmp_path / "eve.json")
    assert watch.step(now_s=1.0).absent == "not a regular file"
    absent, _ = start(tmp_path, tmp_path / "nowhere" / "eve.json")
    assert absent.step(now_s=1.0).absent == "No such file or directory"


@pytest.mark.skipif(not EVE.exists(), reason="needs ../shared")
def test_a_damaged_state_begins_anew_and_still_says_nothing_twice(tmp_path: Path) -> None:
    watch, _ = start(tmp_path, EVE)
    drain(watch)
    watch.checkpoint()
    before = alerted(tmp_path)
    state = bytearray((tmp_path / "state").read_bytes())
    state[len(state) // 2] ^= 1
    (tmp_path / "state").write_bytes(state)
    again, _ = start(tmp_path, EVE)
    drain(again)
    assert again.parser.lines == 2500
    assert alerted(tmp_path) == before


@pytest.mark.skipif(not EVE.exists(), reason="needs ../shared")
def test_while_the_disk_refuses_nothing_more_is_read_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = start(tmp_path, EVE)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(UnavailableError) as caught:
                drain(watch)
            assert caught.value.reason == "lines_failed"
        assert alerted(tmp_path) == []
        read = watch.parser.lines
    drain(watch)
    assert read < watch.parser.lines == 2500
    assert len(alerted(tmp_path)) > 100


@given(st.binary(max_size=400))
def test_any_bytes_are_a_state_or_are_refused(data: bytes) -> None:
    for raw in (data, statefile.HEADER + data, statefile.encode({"a": 1})[:-1] + data[:1]):
        try:
            statefile.decode(raw)
        except InvalidInputError:
            continue


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_a_state_comes_back_as_it_was(state: object) -> None:
    assert statefile.decode(statefile.encode(state)) == state


@given(st.binary(max_size=200), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_torn_end_is_cut_off_and_lines_stay_whole(garbage: bytes, count: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        first = LineFile(path)
        first.append([{"n": n} for n in range(count)])
        first.close()
        with path.open("ab") as file:
            file.write(garbage)
        again = LineFile(path)
        again.append([{"n": 99}])
        again.close()
        lines = recent_lines(path)
        assert lines[:count] == [{"n": n} for n in range(count)]
        assert lines[-1] == {"n": 99}
        assert path.read_bytes().endswith(b'{"n": 99}\n')


def test_a_file_that_others_rotate_goes_on_under_its_name(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "x.jsonl")
    file.append([{"n": 1}])
    (tmp_path / "x.jsonl").rename(tmp_path / "x.jsonl.1")
    file.append([{"n": 2}])
    assert recent_lines(tmp_path / "x.jsonl") == [{"n": 1}, {"n": 2}]
    assert (tmp_path / "x.jsonl").read_text() == '{"n": 2}\n'


def test_what_was_said_is_said_again_after_a_day() -> None:
    news = News([finding(score=0.6)])
    assert not news.among([finding(score=0.6)])
    later = finding(score=0.6).model_copy(update={"first_s": 10.0 + REMIND_S, "last_s": 11.0 + REMIND_S})
    assert news.among([later]) == [later]
