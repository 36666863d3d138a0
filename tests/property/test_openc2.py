"""Any bytes are an OpenC2 command, or a response, or one of our errors; and so are the ledger's and nft's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.actuators.nftables import ids_of
from tocsin.agent.openc2 import (
    ACTIONS,
    MAX_COMMAND_ID,
    PAIRS,
    TARGETS,
    OpenC2Response,
    Status,
    command_of,
    parse_command,
    parse_response,
)
from tocsin.agent.protected import gateways_of, parse_address, parse_networks
from tocsin.agent.roles.ledger import Entry, Step, decode
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.response import Action, Command

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(sorted(ACTIONS)) | JSON,
        "target": st.dictionaries(st.sampled_from(sorted(TARGETS)), JSON | st.just("203.0.113.9"), max_size=2)
        | JSON,
        "args": st.dictionaries(st.sampled_from(["duration", "start_time", "slpf", "x"]), JSON, max_size=2)
        | JSON,
        "actuator": JSON,
        "command_id": st.text(max_size=40) | JSON,
        "status": st.sampled_from(list(Status)) | JSON,
        "results": JSON,
        "status_text": JSON,
    },
)
ANY = st.binary(max_size=200) | NEARLY.map(lambda body: json.dumps(body).encode())


X = TypeVar("X")
Y = TypeVar("Y")


def outcome(parse: Callable[[X], Y], data: X) -> Y | str:
    """Return the value, or the reason of our error."""
    try:
        return parse(data)
    except TocsinError as error:
        return error.reason


@given(ANY)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_command_or_refused(data: bytes) -> None:
    parsed = outcome(parse_command, data)
    if isinstance(parsed, str):
        assert parsed in {"too_large", "bad_json", "bad_command", "not_implemented"}
        return
    assert parsed.target in PAIRS[parsed.action]
    assert parsed.command_id is None or 0 < len(parsed.command_id) <= MAX_COMMAND_ID


@given(ANY)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_response_or_refused(data: bytes) -> None:
    parsed = outcome(parse_response, data)
    if isinstance(parsed, str):
        assert parsed in {"too_large", "bad_json", "bad_response"}
        return
    again = parse_response(parsed.encode())
    assert (again.status, again.status_text) == (parsed.status, parsed.status_text)


ADDRESSES = st.ip_addresses().map(str)
COMMANDS = st.builds(
    Command, action=st.sampled_from(Action), address=ADDRESSES, duration_s=st.integers(1, 30 * 86400)
)


@given(COMMANDS)
@settings(deadline=None)
def test_what_we_write_we_read(command: Command) -> None:
    assert command_of(parse_command(json.dumps(command.openc2()).encode())) == command


@given(
    st.binary(max_size=120) | st.binary(min_size=32, max_size=32) | NEARLY.map(lambda b: json.dumps(b).encode())
)
@settings(deadline=None)
def test_any_bytes_are_an_entry_of_the_ledger_or_refused(data: bytes) -> None:
    assert outcome(decode, data) == (data if len(data) == 32 else "bad_entry")


@given(COMMANDS, st.sampled_from(Step), st.binary(min_size=32, max_size=32))
@settings(deadline=None)
def test_an_entry_is_read_as_it_was_written(command: Command, step: Step, decision: bytes) -> None:
    entry = Entry(decision=decision, step=step, command=command, until_ns=7, ballots=3, quorum=2)
    assert decode(entry.encode()) == entry


@given(st.binary(max_size=100) | JSON.map(lambda body: json.dumps({"nftables": body}).encode()))
@settings(deadline=None)
def test_any_bytes_are_a_listing_or_refused(data: bytes) -> None:
    found = outcome(ids_of, data)
    assert isinstance(found, frozenset) or found == "bad_listing"


@given(st.text(max_size=60) | ADDRESSES, st.text(max_size=80))
@settings(deadline=None)
def test_any_text_is_an_address_a_network_or_refused(text: str, routes: str) -> None:
    gateways_of(f"head\n{routes}", routes)
    address = outcome(parse_address, text)
    assert not isinstance(address, str) or address == "bad_address"
    networks = outcome(parse_networks, text)
    assert isinstance(networks, tuple) or networks == "bad_network"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"[" * 60_000,
        b'{"action":"deny","action":"allow"}',
        b'{"status":200,"results":{"a":NaN}}',
        b"1" * 5000,
    ],
)
def test_what_breaks_readers_of_json_is_refused(data: bytes) -> None:
    for parse in (parse_command, parse_response):
        with pytest.raises(InvalidInputError):
            parse(data)


def test_a_response_has_only_what_it_says() -> None:
    assert OpenC2Response(Status.OK).encode() == b'{"status":200}'
