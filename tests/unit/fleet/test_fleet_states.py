"""The state machine as a table, and the book that drives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.fleet import AgentRecord, AgentState, RosterRequest
from tocsin.contracts.identifiers import Role
from tocsin.fleet.health import HealthBook
from tocsin.fleet.states import MEANING, STATES, TRANSITIONS, UNFIT, Happening, after

S = 1_000_000_000
_S, _H = AgentState, Happening


def record(name: str, host: str = "h1", key: bytes = bytes(32)) -> AgentRecord:
    return AgentRecord(name=name, role=Role.HUNTER, host=host, key_id=key, enrolled_ns=0)


def book(*names: str) -> HealthBook:
    made = HealthBook(silent_after_ns=30 * S)
    for name in names or ("a",):
        made.enrol(record(name))
    return made


def test_every_state_and_happening_is_explained_and_leads_somewhere() -> None:
    assert set(STATES) == set(AgentState)
    assert set(MEANING) == set(Happening)
    assert {state for state, _ in TRANSITIONS} == set(AgentState)
    assert {happening for _, happening in TRANSITIONS} == set(Happening)


@given(st.lists(st.sampled_from([one for one in Happening if one not in {_H.RELEASED, _H.REVOKED}])))
def test_nobody_leaves_quarantine_but_by_an_operator_or_a_revocation(happenings: list[Happening]) -> None:
    state = _S.QUARANTINED
    for happening in happenings:
        state = after(state, happening)
    assert state is _S.QUARANTINED


@given(st.lists(st.sampled_from([one for one in Happening if one is not _H.ENROLLED])))
def test_nobody_leaves_revoked_but_by_another_key(happenings: list[Happening]) -> None:
    state = _S.REVOKED
    for happening in happenings:
        state = after(state, happening)
    assert state is _S.REVOKED


@given(st.sampled_from(AgentState), st.lists(st.sampled_from(Happening)))
def test_healthy_is_only_who_was_heard_or_cleared(state: AgentState, happenings: list[Happening]) -> None:
    for happening in happenings:
        before, state = state, after(state, happening)
        if state is _S.HEALTHY and before is not _S.HEALTHY:
            assert happening in {_H.HEARD, _H.CLEARED}


def test_a_host_that_is_gone_takes_its_own_agents_with_it_at_once() -> None:
    health = book("a", "b")
    health.enrol(record("c", "h2"))
    for host, names in (("h1", ["a", "b"]), ("h2", ["c"])):
        health.beat(host, names, at_ns=100 * S)
    changes = health.lose("h1", at_ns=101 * S)
    assert {one.agent for one in changes} == {"a", "b"}
    assert all(one.after is _S.GONE and one.after in UNFIT for one in changes)
    assert health.state("c", now_ns=101 * S) is _S.HEALTHY
    assert health.lose("h1", at_ns=102 * S) == []


@pytest.mark.parametrize(
    ("sent_s", "at_s", "becomes"),
    [(100.9, 101.2, _S.GONE), (101.1, 101.2, _S.HEALTHY), (90.0, 102.0, _S.HEALTHY)],
    ids=["sent before it was gone", "sent afterwards", "a clock that is behind"],
)
def test_a_heartbeat_that_was_under_way_brings_nobody_back(
    sent_s: float, at_s: float, becomes: AgentState
) -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    health.lose("h1", at_ns=101 * S)
    health.beat("h1", ["a"], at_ns=int(at_s * S), sent_ns=int(sent_s * S))
    assert health.state("a", now_ns=int(at_s * S)) is becomes


def test_a_doubt_outlives_silence_and_is_cleared_by_whoever_has_it_alone() -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    assert [one.after for one in health.doubt("attestation", {"a": "wrong_measurement"})] == [_S.SUSPECT]
    assert health.doubt("score", {"a": "score", "nobody": "score"}) == []
    assert [one.after for one in health.lose("h1", at_ns=101 * S)] == [_S.GONE]
    assert [one.after for one in health.beat("h1", ["a"], at_ns=105 * S)[1]] == [_S.SUSPECT]
    assert health.clear("score", ["a", "nobody"]) == []
    assert health.doubted("attestation") == ("a",)
    assert [one.after for one in health.clear("attestation", ["a"])] == [_S.HEALTHY]
    assert health.doubts("a") == {}


def test_who_is_not_heard_is_silent_once() -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    assert health.sweep(now_ns=130 * S) == []
    assert [one.after for one in health.sweep(now_ns=131 * S)] == [_S.SILENT]
    assert health.sweep(now_ns=132 * S) == []
    assert health.living_hosts(now_ns=132 * S) == ()
    assert health.living_hosts(now_ns=110 * S) == ("h1",)


def test_another_key_starts_anew_but_not_out_of_quarantine() -> None:
    health = book("a", "b")
    health.happen(_H.CONDEMNED, ["a"])
    health.happen(_H.REVOKED, ["b", "nobody"])
    assert health.enrol(record("a", key=b"k" * 32)) == []
    assert [one.after for one in health.enrol(record("b", key=b"k" * 32))] == [_S.ENROLLED]
    assert {one.name for one in health.speaking(b"k" * 32)} == {"a", "b"}
    assert health.speaking(bytes(32)) == ()


@given(st.integers(0, 40), st.integers(1, 7))
def test_pages_hold_everybody_once(agents: int, limit: int) -> None:
    health = HealthBook(silent_after_ns=S)
    for number in range(agents):
        health.enrol(record(f"a{number}", f"h{number % 3}"))
    found: list[str] = []
    after_name = None
    while True:
        asked = RosterRequest(after=after_name, limit=limit)
        page = health.page(asked, now_ns=0, score=lambda _: 100.0)
        found += [entry.agent.name for entry in page.entries]
        assert (page.total, sum(page.states.values())) == (agents, agents)
        if not page.more:
            break
        after_name = found[-1]
    assert found == sorted(f"a{number}" for number in range(agents))
