"""Tickets and tokens: what is written, what is read back, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tocsin.bus.enrolment import HeldToken, IssuedToken, read_tokens
from tocsin.cli import tokens
from tocsin.cli.containers import initialise
from tocsin.cli.installation import Installation
from tocsin.cli.invite import (
    Ticket,
    host_settings,
    issue_ticket,
    parse_agents,
    parse_duration,
    read_ticket,
    unpack,
    write_ticket,
)
from tocsin.cli.rotate import begin, under_way
from tocsin.cli.tokens import TokenState, TokenView
from tocsin.contracts.errors import ConflictError, InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.fleet import AgentSpec, Enrolment
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Authority

NOW_NS = 10**18


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    return initialise(tmp_path / "stack", "test.tocsin", agents=12, hosts=2, copies=1)


@pytest.fixture
def ticket(made: Installation) -> Ticket:
    agents = parse_agents(["w-1:hunter", "a-1:admin"], "branch-1")
    return issue_ticket(made, "nats://127.0.0.1:1", "branch-1", agents, expires_s=60, now_ns=NOW_NS)


def test_a_ticket_has_what_a_host_needs(made: Installation, ticket: Ticket, tmp_path: Path) -> None:
    write_ticket(ticket, tmp_path / "t")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError):
        write_ticket(ticket, tmp_path / "t")
    assert read_ticket(tmp_path / "t") == ticket
    env = unpack(ticket, tmp_path / "host")
    assert unpack(ticket, tmp_path / "host") == env, "run again, it goes on"
    found = host_settings(env)
    assert (found.host_name, found.host_agents) == ("branch-1", "w-1:hunter,a-1:admin")
    held = read_tokens(found.enrol_tokens_file, HeldToken)
    assert {token.expires_ns for token in held} == {NOW_NS + 60 * 10**9}
    issued = [token for token in made.issued() if token.host == "branch-1"]
    assert {token.token_id for token in held} == {token.token_id for token in issued}
    assert len(issued) == 2, "an admin has a token, hence a key, of its own"
    assert all(token.expires_ns is None for token in made.issued() if token.host != "branch-1")
    moved = unpack(ticket, tmp_path / "other", remote="nats://10.0.0.1:4222")
    assert host_settings(moved).nats_url == "nats://10.0.0.1:4222"


def test_a_folder_of_something_else_is_left_alone(ticket: Ticket, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    with pytest.raises(ConflictError) as caught:
        unpack(ticket, tmp_path / "host")
    assert caught.value.reason == "file_exists"
    with pytest.raises(UnavailableError):
        write_ticket(ticket, tmp_path / "nowhere" / "t")
    with pytest.raises(UnavailableError):
        read_ticket(tmp_path / "nowhere")


@given(st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_bytes_are_a_ticket_or_one_of_our_errors(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(TocsinError):
        read_ticket(tmp_path / "t")


def test_a_ticket_of_two_installations_is_refused(ticket: Ticket, tmp_path: Path) -> None:
    other = initialise(tmp_path / "other", "test.tocsin", agents=12, hosts=2, copies=1)
    mixed = ticket.model_copy(update={"root_pem": other.root_pem.decode()})
    write_ticket(mixed, tmp_path / "t")
    with pytest.raises(TocsinError) as caught:
        read_ticket(tmp_path / "t")
    assert caught.value.reason == "wrong_root"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("30d", 2_592_000)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=12))
def test_a_duration_is_one_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except InvalidInputError:
        return
    assert 1 <= seconds <= 30 * 86_400


@pytest.mark.parametrize("specs", [["w-1"], ["w-1:cook"], ["w-1:hunter", "w-1:sentinel"], ["w 1:hunter"]])
def test_agents_that_cannot_be(specs: list[str]) -> None:
    with pytest.raises(InvalidInputError):
        parse_agents(specs, "h")


def _enrolment(token_id: str, *, before: tuple[str, ...] = ()) -> Enrolment:
    return Enrolment(
        id="spiffe://d/host/h",
        token_id=token_id,
        used_before=before,
        key_id=bytes(32),
        generation=1,
        enrolled_ns=1,
    )


@pytest.mark.parametrize(
    ("enrolled", "change", "state"),
    [
        ((), {}, TokenState.OPEN),
        ((), {"expires_ns": 1}, TokenState.EXPIRED),
        ((), {"withdrawn_ns": 1, "expires_ns": 1}, TokenState.WITHDRAWN),
        (("host.h",), {}, TokenState.OPEN),
        (("host.h",), {"expires_ns": 1}, TokenState.EXPIRED),
        (("host.h", "agent.w"), {"expires_ns": 1, "withdrawn_ns": 1}, TokenState.USED),
    ],
)
def test_what_became_of_a_token(enrolled: tuple[str, ...], change: dict[str, int], state: TokenState) -> None:
    agents = (AgentSpec(name="w", role=Role.HUNTER),)
    token = IssuedToken(token_id="t", secret_hex="00" * 16, host="h", agents=agents).model_copy(update=change)  # noqa: S106
    ids = {SpiffeId.host("d", "h").token: "host.h", SpiffeId.agent("d", Role.HUNTER, "w").token: "agent.w"}
    held = {
        key: _enrolment("t") if short == "host.h" else _enrolment("later", before=("t",))
        for key, short in ids.items()
        if short in enrolled
    }
    seen = tokens.view(token, held, "d", now_ns=2)
    assert (seen.state, seen.used_for, seen.of) == (state, len(enrolled), 2)
    assert "00" * 16 not in "\n".join(tokens.as_text([seen]))


def test_tokens_are_withdrawn_and_forgotten(made: Installation, ticket: Ticket) -> None:
    first, second = (token.token_id for token in ticket.tokens)
    with pytest.raises(InvalidInputError):
        tokens.withdraw(made, ["nobody", first], now_ns=NOW_NS)
    assert all(token.withdrawn_ns is None for token in made.issued())
    tokens.withdraw(made, [first], now_ns=NOW_NS)
    tokens.withdraw(made, [first], now_ns=NOW_NS + 1)
    assert {token.token_id: token.withdrawn_ns for token in made.issued() if token.withdrawn_ns} == {
        first: NOW_NS
    }
    seen = [
        TokenView(first, "branch-1", (), None, TokenState.WITHDRAWN, 0, 2),
        TokenView(second, "branch-1", (), None, TokenState.EXPIRED, 1, 2),
    ]
    assert tokens.clean(made, seen) == 1, "one that was used is renewed with"
    assert second in {token.token_id for token in made.issued()}


def test_a_rotation_that_was_ended_half_way_goes_on(made: Installation) -> None:
    ca = made.folder / "ca"
    old = Authority.load(ca, "fleet")
    rotation = begin(made)
    assert rotation.old == old.signer.key_id
    assert under_way(made)
    assert begin(made) == rotation, "run again, it begins no other"
    new = Authority.load(made.tokens_file.parent, "fleet")
    assert new.signer.key_id == rotation.new
    assert new.certificate.not_before_ns > old.certificate.not_before_ns
    # As if it had been killed between the two renamings: the key is the new one, the certificate the old one.
    (ca / "fleet.pem").rename(ca / "fleet-next.pem")
    (ca / "fleet.pem").write_bytes((ca / "fleet-previous.pem").read_bytes())
    assert begin(made) == rotation
    assert Authority.load(ca, "fleet").signer.key_id == rotation.new
    # And before the successor was written whole.
    (ca / "fleet-previous.pem").write_bytes((ca / "fleet.pem").read_bytes())
    (ca / "fleet-next.key").write_bytes(b"torn")
    assert begin(made).old == rotation.new


def test_a_command_certifies_itself_anew_after_half_of_its_time(
    made: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = made.cli_credentials()
    assert made.cli_credentials().chain == held.chain
    late = time.time_ns() + 20 * 86_400 * 10**9
    monkeypatch.setattr("tocsin.cli.installation.time.time_ns", lambda: late)
    assert made.cli_credentials().chain != held.chain
    (made.folder / "ca" / "root.key").unlink()
    much_later = late + 40 * 86_400 * 10**9
    monkeypatch.setattr("tocsin.cli.installation.time.time_ns", lambda: much_later)
    with pytest.raises(TocsinError) as caught:
        made.cli_credentials()
    assert caught.value.reason == "certificate_expired"
    assert json.loads(made.tokens_file.read_text())
