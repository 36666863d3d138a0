from __future__ import annotations

import enum
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.operations import PingRequest, Pong
from tocsin.telemetry import configure_logging, get_logger
from tocsin.telemetry.fields import MAX_TEXT_BYTES, is_secret_name, make_safe
from tocsin.telemetry.logs import _LibraryHandler

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, config = root.level, structlog.get_config()
    yield
    structlog.configure(**config)
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(capture=False)
    root.setLevel(level)
    for handler in [one for one in root.handlers if isinstance(one, _LibraryHandler)]:
        root.removeHandler(handler)


@pytest.fixture
def lines() -> Lines:
    stream = io.StringIO()
    configure_logging("router-1", level="debug", stream=stream)

    def read() -> list[dict[str, Any]]:
        text = stream.getvalue()
        assert text.isascii()
        return [json.loads(line) for line in text.split("\n") if line]

    return read


def test_a_line_is_json_with_the_fields_that_every_line_has(lines: Lines) -> None:
    get_logger("tocsin.router").info("ballot_accepted", epoch=7, weight=0.5, ok=True)
    (line,) = lines()
    stamp = datetime.fromisoformat(line.pop("timestamp"))
    assert stamp.utcoffset() == timedelta(0)
    assert line == {
        "level": "info",
        "event": "ballot_accepted",
        "process": "router-1",
        "logger": "tocsin.router",
        "epoch": 7,
        "weight": 0.5,
        "ok": True,
    }


def test_a_logger_made_before_the_set_up_is_set_up_too() -> None:
    log = get_logger("early")
    stream = io.StringIO()
    configure_logging("a", level="warning", stream=stream)
    log.info("quiet")
    log.warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_setting_up_again_replaces_the_former_set_up() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("a", stream=first)
    configure_logging("b", stream=second)
    get_logger("x").info("event")
    logging.getLogger("nats").warning("words")
    assert first.getvalue() == ""
    assert [json.loads(line)["process"] for line in second.getvalue().splitlines()] == ["b", "b"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="loud"):
        configure_logging("a", level="loud")


def test_the_context_of_the_message_is_in_the_line(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(trace_id="ab12"):
        get_logger("x").info("inside")
    get_logger("x").info("outside")
    assert [line.get("trace_id") for line in lines()] == ["ab12", None]


def test_an_exception_is_rendered_with_its_reason_and_advice(lines: Lines) -> None:
    def connect() -> None:
        raise UnavailableError("no broker", reason="broker_down", advice="start it")

    try:
        connect()
    except UnavailableError:
        get_logger("x").exception("connect_failed")
    (line,) = lines()
    assert (line["level"], line["error_reason"], line["advice"]) == ("error", "broker_down", "start it")
    assert line["exception"].endswith("UnavailableError: no broker")
    assert "Traceback" in line["exception"]


def test_a_long_traceback_keeps_its_end(lines: Lines) -> None:
    get_logger("x").error("failed", exc_info=ValueError("x" * 50_000 + "the end"))
    (line,) = lines()
    assert line["exception"].startswith("[cut: ")
    assert line["exception"].endswith("the end")
    assert len(line["exception"]) < 9000


@pytest.mark.parametrize(
    "name",
    [
        *("secret", "client_secret", "token", "joinToken", "password", "Passphrase", "key", "signing_key"),
        *("api-key", "apiKey", "keys", "seed", "rng_seed", "Authorization", "cookie", "private_key", "k" * 200),
    ],
)
def test_secrets_are_masked_by_name_at_any_depth(name: str, lines: Lines) -> None:
    get_logger("x").info("event", fields=[{"inner": {name: "hunter2"}}], **{name: "hunter2"})
    (line,) = lines()
    assert "hunter2" not in json.dumps(line)
    assert "***" in line.values()


@pytest.mark.parametrize(
    "name",
    ["key_id", "claimed_key_id", "public_key", "key_path", "token_count", "monkey", "keyboard", "seedling"],
)
def test_what_only_looks_like_a_secret_is_shown(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_in_models_dataclasses_and_text_are_masked(lines: Lines) -> None:
    @dataclass
    class Login:
        user: str
        password: str

    get_logger("x").info(
        "event",
        login=Login("ann", "hunter2"),
        value=SecretStr("hunter2"),
        url="nats://ann:hunter2@host:4222",
        pem="-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n",
        cut_pem="-----BEGIN EC PRIVATE KEY-----\nhunter2" + "x" * 9000,
    )
    (line,) = lines()
    assert "hunter2" not in json.dumps(line)
    assert line["login"] == {"user": "ann", "password": "***"}
    assert line["url"] == "nats://***@host:4222"


def test_long_fields_are_cut_and_say_so(lines: Lines) -> None:
    log = get_logger("x")
    log.info("event", text="a" * 2048, long="a" * 2049, wide="é" * 2000, huge="a" * 100_000)
    log.info("event", raw=b"\x01" * 5000, items=list(range(1000)), number=1 << 4000)
    first, second = lines()
    assert first["text"] == "a" * 2048
    assert first["long"] == "a" * 2048 + "...[cut: 2049 characters]"
    assert first["wide"] == "é" * 1024 + "...[cut: 2000 characters]"
    assert first["huge"] == "a" * 2048 + "...[cut: 100000 characters]"
    assert len(second["raw"]) < 2200
    assert second["items"][-1] == "[cut: 936 more]"
    assert second["number"] == "[cut: 4001 bits]"


def test_a_big_structure_is_bounded_as_a_whole(lines: Lines) -> None:
    get_logger("x").info("event", tree=[[{"k": [[], {}]}, "y" * 5000] * 64] * 64)
    empty: list[object] = []
    for _ in range(8):
        empty = [empty] * 64
    get_logger("x").info("event", tree=empty)
    for line in lines():
        assert len(json.dumps(line)) < 4 * MAX_TEXT_BYTES


def test_text_from_outside_cannot_forge_a_line(lines: Lines) -> None:
    get_logger("x").info("event", name='x"}\n{"event":"forged"}\r\x1b[2J\u2028\u202e\ud800')
    (line,) = lines()
    assert line["event"] == "event"
    assert line["name"].startswith('x"}\n')


def test_values_of_many_types_are_written(lines: Lines) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    class Colour(enum.Enum):
        RED = "red"

    loop: list[object] = []
    loop.append(loop)
    get_logger("x").info(
        "event",
        broken=Broken(),
        loop=loop,
        colour=Colour.RED,
        path=Path("a/b"),
        ratio=float("nan"),
        model=Pong(process="p", version="1", signature_backend="openssl", name="n"),
        empty=PingRequest(),
        members=frozenset({"one"}),
        none=None,
        error=ValueError("bad"),
    )
    (line,) = lines()
    assert line["broken"] == "[Broken without a text]"
    assert (line["colour"], line["path"], line["ratio"], line["error"]) == ("red", "a/b", "nan", "bad")
    assert line["model"]["process"] == "p"
    assert (line["members"], line["none"]) == (["one"], None)


def test_other_libraries_go_the_same_way_from_warning_up(lines: Lines) -> None:
    logging.getLogger("nats.aio").info("chatter")
    logging.getLogger("nats.aio").warning("lost %s", "nats://u:hunter2@h")
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.error("failed", exc_info=ValueError("bad"))
    malformed = logging.LogRecord("nats", logging.ERROR, "", 0, "%d", ("not a number",), None)
    next(one for one in logging.getLogger().handlers if isinstance(one, _LibraryHandler)).emit(malformed)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    configured = lines()
    assert [line["event"] for line in configured] == [
        "library_log",
        "library_log",
        "library_log_unreadable",
        "library_log",
    ]
    assert configured[0]["message"] == "lost nats://***@h"
    assert (configured[0]["logger"], configured[0]["level"]) == ("nats.aio", "warning")
    assert "ValueError: bad" in configured[1]["exception"]
    assert configured[3]["logger"] == "py.warnings"


def test_a_closed_stream_does_not_stop_the_process() -> None:
    stream = io.StringIO()
    configure_logging("a", stream=stream)
    stream.close()
    get_logger("x").info("event")


def test_events_can_be_captured(lines: Lines) -> None:
    with capture_logs() as logs:
        get_logger("x").info("event", epoch=1)
    assert logs == [{"event": "event", "epoch": 1, "log_level": "info"}]
    assert lines() == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), ANYTHING))
def test_any_fields_become_strict_json(fields: dict[str, Any]) -> None:
    json.dumps(make_safe(None, "info", fields), allow_nan=False)
