"""Who shares a key, and what the settings and token files may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tocsin.agent import HostSettings
from tocsin.agent.enrol import key_groups
from tocsin.bus.enrolment import HeldToken, read_tokens
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.fleet import AgentSpec
from tocsin.contracts.identifiers import Role

H1, H2 = AgentSpec(name="h1", role=Role.HUNTER), AgentSpec(name="h2", role=Role.HUNTER)
A1 = AgentSpec(name="a1", role=Role.ADMIN)


def held(*agents: str, called: str = "t", names_host: bool = True, host: str | None = None) -> HeldToken:
    return HeldToken(token_id=called, secret_hex="00" * 16, names_host=names_host, agents=agents, host=host)


def shares(*tokens: HeldToken, per_agent: bool = False) -> list[tuple[bool, list[str]]]:
    groups = key_groups("box", [H1, H2, A1], tokens, per_agent=per_agent)
    return [(group.names_host, [agent.name for agent in group.agents]) for group in groups]


def test_ordinary_agents_share_the_hosts_key_and_an_admin_has_its_own() -> None:
    expected = [(True, ["h1", "h2"]), (False, ["a1"])]
    assert shares(held("h1", "h2", "a1")) == expected
    assert shares(held("a1", called="u", names_host=False), held("h1", "h2")) == expected


def test_a_key_for_each_agent_leaves_the_host_alone_with_its_own() -> None:
    assert shares(held("h1", "h2", "a1"), per_agent=True) == [
        (True, []),
        (False, ["h1"]),
        (False, ["h2"]),
        (False, ["a1"]),
    ]


def test_the_host_itself_is_named_once() -> None:
    assert shares(held("h1"), held("h2", "a1", called="u")) == [
        (True, ["h1"]),
        (False, ["h2"]),
        (False, ["a1"]),
    ]


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        ([], "host box"),
        ([held("h1", "h2", "a1", names_host=False)], "host box"),
        ([held("h1", "h2")], "a1"),
        ([held("h1", "h2", "a1", host="another")], "host box"),
    ],
)
def test_whoever_has_no_token_is_named(tokens: list[HeldToken], missing: str) -> None:
    with pytest.raises(InvalidInputError, match=missing):
        shares(*tokens)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "null",
        "[{}]",
        "\x00\xff",
        json.dumps([{"token_id": "t", "secret_hex": "00", "agents": []}]),
        json.dumps([held("h1").model_dump(mode="json")] * 2),
    ],
)
def test_a_bad_tokens_file_is_one_of_our_errors_and_shows_no_secret(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(InvalidInputError) as caught:
        read_tokens(path, HeldToken)
    assert caught.value.reason == "bad_tokens_file"
    assert "0000" not in str(caught.value)


def test_a_missing_tokens_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(TocsinError) as caught:
        read_tokens(tmp_path / "none.json", HeldToken)
    assert caught.value.reason == "missing_file"


def test_a_token_does_not_show_its_secret() -> None:
    assert "0000" not in repr(held("h1"))


def test_the_agents_of_the_settings() -> None:
    settings = HostSettings(host_name="box", host_agents="h1:hunter,a1:admin")
    assert settings.carried() == (H1, A1)


@pytest.mark.parametrize("agents", ["", "h1", "h1:hunter,h1:hunter", "h1:boss", "H1:hunter", "h1:hunter,"])
def test_agents_that_make_no_sense_are_refused(agents: str) -> None:
    with pytest.raises(ValidationError):
        HostSettings(host_name="box", host_agents=agents)
