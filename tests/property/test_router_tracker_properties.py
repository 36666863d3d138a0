"""Whatever hosts say and whenever: accounts add up, and nobody missing is ever called delivered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Priority, Role, Severity, SpiffeId
from tocsin.contracts.policy import Audience, Reach, parse_audience
from tocsin.contracts.routing import Delivery, Receipt, ThreatAlert
from tocsin.router.policy import route
from tocsin.router.tracker import Emergency, Schedule, Tracker

ISSUED_NS = 1_800_000_000_000_000_000
HOSTS = ("h1", "h2", "h3")
AGENTS = tuple(f"a{number}" for number in range(8))
LEAVES = tuple(bytes([number]) * 32 for number in range(3))

dues = st.dictionaries(st.sampled_from(AGENTS), st.sampled_from(HOSTS), min_size=1)
receipts = st.tuples(
    st.sampled_from(HOSTS),
    st.builds(
        Receipt,
        leaf=st.sampled_from(LEAVES),
        agents=st.lists(st.sampled_from((*AGENTS, "stranger")), min_size=1, max_size=8).map(tuple),
        channel=st.sampled_from(("core", "stream")),
        taken_ns=st.integers(ISSUED_NS - 40_000_000_000, ISSUED_NS + 40_000_000_000),
    ),
)
moments = st.floats(0, 3)
steps = st.lists(st.one_of(receipts, moments), max_size=40)


def truthful(due: dict[str, str], heard: list[tuple[str, Receipt]], leaf: bytes) -> set[str]:
    """Who was confirmed, computed the slow way from everything that was heard."""
    return {
        agent
        for host, receipt in heard
        if receipt.leaf == leaf and abs(receipt.taken_ns - ISSUED_NS) <= 30_000_000_000
        for agent in receipt.agents
        if due.get(agent) == host
    }


@given(st.lists(dues, min_size=1, max_size=3), steps, st.lists(st.booleans(), min_size=3, max_size=3))
def test_accounts_add_up_whatever_is_received(
    due_of: list[dict[str, str]], script: list[tuple[str, Receipt] | float], pursued: list[bool]
) -> None:
    tracker = Tracker(Schedule(0.5, 2.0, 10.0, 1.0), max_tracked=3)
    open_dues = dict(zip(LEAVES, due_of, strict=False))
    for (leaf, due), pursue in zip(open_dues.items(), pursued, strict=False):
        new = Emergency(bytes(16), leaf, ISSUED_NS, "s", b"", Audience(Reach.ALL, ""), dict(due))
        tracker.begin(new, at_s=0, pursue=pursue)
    at_s = 0.0
    heard: list[tuple[str, Receipt]] = []
    accounts: dict[bytes, Delivery] = {}

    def ended(delivery: Delivery) -> None:
        assert delivery.leaf not in accounts, "an emergency ends once"
        accounts[delivery.leaf] = delivery
        delivered = truthful(open_dues[delivery.leaf], heard, delivery.leaf)
        due = set(open_dues[delivery.leaf])
        assert delivered <= due
        assert set(delivery.undelivered) == due - delivered
        assert delivery.delivered == len(delivered) == delivery.by_core + delivery.by_stream
        assert delivery.due == delivery.delivered + len(delivery.undelivered)
        assert delivery.complete is (delivered == due)
        assert (delivery.first_ms is None) is (not delivered)

    for step in script:
        if isinstance(step, float):
            at_s += step
            turn = tracker.advance(at_s=at_s)
            for emergency in turn.resend:
                assert not emergency.complete
                assert emergency.leaf not in accounts
            for delivery in turn.ended:
                ended(delivery)
        else:
            host, receipt = step
            outcome = tracker.confirm(host, receipt, at_s=at_s, now_ns=ISSUED_NS)
            if outcome.tracked:
                heard.append(step)
                told = outcome.counted + outcome.again + sum(outcome.refused.values())
                assert told == len(receipt.agents)
            if outcome.ended is not None:
                assert outcome.ended.complete
                ended(outcome.ended)
    for delivery in tracker.advance(at_s=1e6).ended:
        ended(delivery)
    assert set(accounts) == set(open_dues)


@given(
    st.text(max_size=40),
    st.sampled_from(list(Priority)),
    st.sampled_from(list(Severity)),
    st.sampled_from(list(Role)),
)
def test_any_audience_is_a_route_or_one_of_our_errors(
    audience: str, priority: Priority, severity: Severity, role: Role
) -> None:
    sender = SpiffeId.agent("test.tocsin", role, "x")
    alert = ThreatAlert(severity=severity, summary="")
    try:
        way = route("threat_alert", sender, audience, priority, alert, lambda _: None)
    except TocsinError:
        return
    assert way.subject.startswith("tocsin.v1.deliver.")
    assert way.audience == parse_audience(audience)
    assert (way.backup is not None) is (priority is Priority.CRITICAL) is (severity is Severity.CRITICAL)
