"""Every family of errors has its status, and a problem tells what RFC 9457 wants told."""

from __future__ import annotations

import pytest

from tocsin.contracts.errors import (
    FAMILIES,
    DeniedError,
    ExhaustedError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
)
from tocsin.gateway.problems import STATUS, problem_of

EXPECTED = {
    "invalid_input": 400,
    "untrusted": 502,
    "denied": 403,
    "unavailable": 503,
    "exhausted": 429,
    "conflict": 409,
    "invariant_broken": 500,
}


def test_no_family_is_without_a_status() -> None:
    assert set(STATUS) == set(FAMILIES)


@pytest.mark.parametrize(("family", "status"), EXPECTED.items())
def test_the_family_decides_the_status(family: str, status: int) -> None:
    problem = problem_of(FAMILIES[family]("what was wrong", reason="why"), "/api/v1/x")
    assert problem.status == status == problem.body["status"]
    assert problem.body["family"] == family
    assert (problem.body["reason"], problem.body["instance"]) == ("why", "/api/v1/x")
    assert problem.body["type"] == "about:blank"
    assert problem.body["title"] == problem.status.phrase


@pytest.mark.parametrize("error", [UnavailableError("down"), ExhaustedError("full")])
def test_who_may_come_back_is_told_when(error: TocsinError) -> None:
    assert problem_of(error, "/").headers["Retry-After"] == "1"


def test_who_is_not_known_is_asked_for_a_token() -> None:
    problem = problem_of(DeniedError("no", reason="unauthenticated", advice="send one"), "/")
    assert problem.status == 401
    assert problem.headers["WWW-Authenticate"].startswith("Bearer")
    assert problem.body["advice"] == "send one"


def test_a_bug_shows_nothing_of_itself() -> None:
    assert "secret" not in str(problem_of(InvariantBrokenError("secret path"), "/").body)


def test_an_error_without_a_family_is_ours() -> None:
    assert problem_of(TocsinError("odd"), "/").status == 500
