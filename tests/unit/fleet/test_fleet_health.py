"""Who lives, with the time passed in."""

from __future__ import annotations

from tocsin.contracts.fleet import AgentRecord, AgentState
from tocsin.contracts.identifiers import Role
from tocsin.fleet.health import HealthBook

S = 1_000_000_000


def record(name: str, host: str = "h1") -> AgentRecord:
    return AgentRecord(name=name, role=Role.HUNTER, host=host, key_id=bytes(32), enrolled_ns=0)


def book() -> HealthBook:
    made = HealthBook(silent_after_ns=30 * S)
    made.enrol(record("a"))
    return made


def test_an_agent_that_was_never_heard_is_enrolled() -> None:
    assert book().state("a", now_ns=0) is AgentState.ENROLLED


def test_an_agent_is_healthy_for_thirty_seconds_and_no_longer() -> None:
    health = book()
    assert health.beat("h1", ["a"], at_ns=100 * S)[0] == 1
    assert health.state("a", now_ns=130 * S) is AgentState.HEALTHY
    assert health.state("a", now_ns=130 * S + 1) is AgentState.SILENT


def test_only_its_own_host_speaks_for_an_agent() -> None:
    health = book()
    assert health.beat("h2", ["a"], at_ns=100 * S) == (0, [])
    assert health.state("a", now_ns=100 * S) is AgentState.ENROLLED


def test_nobody_is_made_up_by_a_heartbeat() -> None:
    health = book()
    assert health.beat("h1", ["a", "nobody"], at_ns=100 * S)[0] == 1
    assert [entry.agent.name for entry in health.roster(now_ns=100 * S)] == ["a"]


def test_a_late_heartbeat_takes_nothing_back() -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    health.beat("h1", ["a"], at_ns=50 * S)
    assert health.roster(now_ns=120 * S)[0].last_seen_ns == 100 * S


def test_an_agent_that_moves_must_be_heard_from_its_new_host() -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    health.enrol(record("a", "h2"))
    assert health.state("a", now_ns=100 * S) is AgentState.ENROLLED
    assert health.beat("h1", ["a"], at_ns=101 * S)[0] == 0
    assert health.beat("h2", ["a"], at_ns=101 * S)[0] == 1


def test_a_record_that_comes_again_keeps_the_health() -> None:
    health = book()
    health.beat("h1", ["a"], at_ns=100 * S)
    health.enrol(record("a"))
    assert health.state("a", now_ns=100 * S) is AgentState.HEALTHY
