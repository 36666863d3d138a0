"""Ids and errors: what is read, what is refused, what each family means to the shell."""

from __future__ import annotations

import pytest

from tocsin.contracts.errors import FAMILIES, InvalidInputError, InvariantBrokenError, TocsinError, family_of
from tocsin.contracts.identifiers import Kind, Role, ServiceName, SpiffeId


@pytest.mark.parametrize(
    ("text", "kind", "token"),
    [
        ("spiffe://a.b/agent/hunter/h-1", Kind.AGENT, "agent.h-1"),
        ("spiffe://a/service/qpu-manager/0", Kind.SERVICE, "service.qpu-manager.0"),
        ("spiffe://a/host/h1", Kind.HOST, "host.h1"),
        ("spiffe://a/authority/root", Kind.AUTHORITY, "authority.root"),
    ],
)
def test_an_id_is_read_and_reads_the_same(text: str, kind: Kind, token: str) -> None:
    found = SpiffeId.parse(text)
    assert (found.kind, found.token, str(found)) == (kind, token, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe://a",
        "spiffe://a/host",
        "spiffe://a/host/",
        "spiffe://a/host/H1",
        "spiffe://a/host/h1/",
        "spiffe://a/host/h1\n",
        "spiffe://a/host/-h1",
        "spiffe://a/host/hunter/h1",
        "spiffe://a/agent/h1",
        "spiffe://a/agent/king/h1",
        "spiffe://a/service/king/0",
        "spiffe://a/robot/h1",
        "spiffe://A/host/h1",
        "spiffe://a..b/host/h1",
        "http://a/host/h1",
        "spiffe://a/host/" + "h" * 64,
        "spiffe://a/host/" + "h" * 600,
    ],
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SpiffeId.parse(text)
    assert caught.value.reason == "bad_identity"


def test_only_agents_have_a_role_and_only_services_a_service() -> None:
    agent = SpiffeId.agent("a", Role.CANARY, "c")
    service = SpiffeId.service("a", ServiceName.FLEET, "0")
    assert (agent.role, agent.service_name) == (Role.CANARY, None)
    assert (service.role, service.service_name) == (None, ServiceName.FLEET)


def test_families_have_exit_codes_of_their_own() -> None:
    codes = [family.exit_code for family in FAMILIES.values()]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: str(family.reason))
def test_an_error_keeps_its_family_whatever_its_reason(family: type[TocsinError]) -> None:
    error = family("text", reason="special", advice="do this")
    assert family_of(error) == family.reason
    assert (error.reason, error.advice(), str(error)) == ("special", "do this", "text")
    assert family("text").reason == family.reason


def test_an_error_of_no_family_is_a_bug_of_ours() -> None:
    assert family_of(TocsinError("odd")) == InvariantBrokenError.reason
