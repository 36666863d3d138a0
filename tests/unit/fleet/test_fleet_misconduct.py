"""What is held against agents: who counts, how far, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.fleet import misconduct
from tocsin.fleet.misconduct import (
    DOUBTFUL,
    HALF_LIFE_S,
    HOSTS,
    NS_PER_S,
    THRESHOLD,
    WEIGHTS,
    Ledger,
    Reporter,
    Worth,
)
from tocsin.fleet.population import COUNTED_NS, THERE_NS, Population
from tocsin.fleet.reports import accused_by, reporter_of

ROUTER = Reporter("service.router.0", "router")
WITNESSED = [reason for reason, weight in WEIGHTS.items() if weight.worth is Worth.WITNESSED]
UNATTRIBUTED = [reason for reason, weight in WEIGHTS.items() if weight.worth is Worth.UNATTRIBUTED]


def hosts(count: int) -> list[Reporter]:
    return [Reporter(f"host.h{number}", HOSTS) for number in range(count)]


@given(
    st.integers(1, 40),
    st.data(),
)
def test_fewer_than_a_third_of_the_hosts_cannot_lower_a_score_by_what_nobody_can_check(
    population: int, data: st.DataObject
) -> None:
    liars = data.draw(st.integers(0, max(0, (population - 1) // 3)))
    claims = data.draw(
        st.lists(
            st.tuples(st.integers(0, max(0, liars - 1)), st.sampled_from(WITNESSED), st.integers(1, 10**6))
        )
    )
    ledger = Ledger()
    for who, reason, count in claims if liars else []:
        ledger.claim("victim", reason, hosts(liars)[who], count=count, at_ns=0)
    assert ledger.score("victim", {HOSTS: population}, now_ns=0) == 100


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(UNATTRIBUTED), st.integers(1, 10**6))))
def test_what_proves_nothing_makes_nobody_suspect(claims: list[tuple[int, str, int]]) -> None:
    ledger = Ledger()
    for who, reason, count in claims:
        ledger.claim("victim", reason, hosts(10)[who], count=count, at_ns=0)
        ledger.claim("victim", reason, ROUTER, count=count, at_ns=0)
    assert ledger.score("victim", {HOSTS: 10, "router": 1}, now_ns=0) >= DOUBTFUL


def test_more_than_a_third_are_believed_and_no_further_than_the_mildest_of_them() -> None:
    ledger = Ledger()
    for host, count in zip(hosts(4), (100, 100, 100, 2), strict=True):
        ledger.claim("a", "bad_body", host, count=count, at_ns=0)
    assert ledger.score("a", {HOSTS: 9}, now_ns=0) == 80
    assert ledger.score("a", {HOSTS: 8}, now_ns=0) < THRESHOLD


def test_the_only_router_is_believed_and_one_of_four_is_not() -> None:
    ledger = Ledger()
    ledger.claim("a", "order_not_allowed", ROUTER, count=4, at_ns=0)
    assert ledger.score("a", {"router": 1}, now_ns=0) < THRESHOLD
    assert ledger.score("a", {"router": 4}, now_ns=0) == 100


def test_a_proof_is_enough_whoever_brings_it() -> None:
    ledger = Ledger()
    ledger.claim("a", "equivocation", Reporter("service.consensus.0", "consensus"), at_ns=0)
    assert ledger.score("a", {}, now_ns=0) == 0
    ledger.forgive("a")
    assert ledger.score("a", {}, now_ns=0) == 100


def test_a_score_recovers_by_half_in_every_half_life_and_is_forgotten_in_the_end() -> None:
    ledger = Ledger()
    ledger.claim("a", "order_not_allowed", ROUTER, count=2, at_ns=0)
    after = int(HALF_LIFE_S * NS_PER_S)
    assert [ledger.score("a", {}, now_ns=n * after) for n in range(3)] == [60, 80, 90]
    ledger.carry("b", 60, at_ns=0)
    assert ledger.score("b", {}, now_ns=after) == 70
    ledger.tidy(now_ns=20 * after)
    assert ledger.agents() == ()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misconduct, "MAX_ENTRIES", 3)
    ledger = Ledger()
    for number in range(5):
        ledger.claim(f"a{number}", "bad_body", ROUTER, at_ns=0)
    assert (len(ledger.agents()), ledger.left_out) == (3, 2)
    ledger.forgive("a0")
    assert ledger.claim("a9", "bad_body", ROUTER, at_ns=0)


def test_reasons_without_a_weight_cost_nothing() -> None:
    ledger = Ledger()
    assert not ledger.claim("a", "expired", ROUTER, at_ns=0)
    assert ledger.score("a", {}, now_ns=0) == 100


def test_a_reporter_counts_while_it_is_there() -> None:
    population = Population()
    for number, host in enumerate(hosts(3)):
        population.seen(host, at_ns=number)
    assert population.sizes(now_ns=THERE_NS) == {HOSTS: 3}
    population.seen(Reporter("host.h3", HOSTS), at_ns=THERE_NS)
    assert population.sizes(now_ns=THERE_NS + COUNTED_NS - 1) == {HOSTS: 3}
    assert population.sizes(now_ns=THERE_NS + COUNTED_NS) == {HOSTS: 1}


def agent(name: str, host: str) -> AgentRecord:
    return AgentRecord(name=name, role=Role.HUNTER, host=host, key_id=b"k" * 32, enrolled_ns=0)


SHARING = (agent("a", "h1"), agent("b", "h1"))


@pytest.mark.parametrize(
    ("by", "reason", "subject", "key", "accused"),
    [
        ("host.h2", "bad_body", "tocsin.v1.deliver.all", b"k" * 32, ("a", "b")),
        ("host.h1", "bad_body", "tocsin.v1.deliver.all", b"k" * 32, ()),
        ("host.h2", "bad_body", "tocsin.v1.route.discovery.high.a", b"k" * 32, ("a",)),
        ("host.h2", "bad_body", "tocsin.v1.route.discovery.high.c", b"k" * 32, ()),
        ("host.h2", "bad_body", "tocsin.v1.deliver.all", None, ()),
        ("host.h2", "bad_signature", "tocsin.v1.deliver.all", b"k" * 32, ()),
        ("host.h2", "bad_signature", "tocsin.v1.route.discovery.high.a", b"k" * 32, ("a",)),
        ("host.h2", "equivocation", "tocsin.v1.deliver.all", b"k" * 32, ()),
        ("host.h2", "expired", "tocsin.v1.deliver.all", b"k" * 32, ()),
        ("service.router.0", "content_not_allowed", "tocsin.v1.route.discovery.high.a", b"k" * 32, ()),
        ("service.router.0", "bad_body", "tocsin.v1.route.discovery.high.a", b"k" * 32, ("a",)),
        ("service.monitor.0", "bad_body", "tocsin.v1.deliver.all", b"k" * 32, ()),
    ],
)
def test_only_who_can_know_accuses_and_only_those_that_it_can_mean(
    by: str, reason: str, subject: str, key: bytes | None, accused: tuple[str, ...]
) -> None:
    kind, *rest = by.split(".")
    sender = (
        SpiffeId.host("t", rest[0]) if kind == "host" else SpiffeId.service("t", ServiceName(rest[0]), rest[1])
    )
    reporter = reporter_of(sender)
    rejected = RejectedEnvelope(by=by, reason=reason, subject=subject, claimed_key_id=key, count=1)
    found = accused_by(rejected, reporter, lambda _: SHARING) if reporter is not None else ()
    assert found == accused
