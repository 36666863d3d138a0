"""The tracker and the budget: who was due, who confirmed, and what happens at each bound."""

from __future__ import annotations

import pytest

from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role
from tocsin.contracts.policy import Audience, Reach
from tocsin.contracts.routing import Receipt
from tocsin.router.budget import Budget
from tocsin.router.tracker import Emergency, Schedule, Tracker, who_is_due

ISSUED_NS = 1_800_000_000_000_000_000
DUE = {"a1": "h1", "a2": "h1", "b1": "h2"}


def leaf(number: int = 0) -> bytes:
    return number.to_bytes(32, "big")


def emergency(number: int = 0, due: dict[str, str] | None = None) -> Emergency:
    return Emergency(bytes(16), leaf(number), ISSUED_NS, "s", b"bytes", DUE if due is None else due)


def receipt(*agents: str, number: int = 0, channel: str = "core", after_ms: float = 5) -> Receipt:
    taken_ns = ISSUED_NS + int(after_ms * 1e6)
    return Receipt(leaf=leaf(number), agents=agents, channel=channel, taken_ns=taken_ns)


def tracker(max_tracked: int = 4) -> Tracker:
    return Tracker(Schedule(0.5, 2.0, 10.0), max_tracked=max_tracked)


def test_an_emergency_is_complete_with_the_last_receipt_and_its_account_adds_up() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100)
    first = them.confirm("h1", receipt("a1", "a2", after_ms=3), now_ns=ISSUED_NS)
    assert (first.counted, first.ended) == (2, None)
    last = them.confirm("h2", receipt("b1", channel="stream", after_ms=8), now_ns=ISSUED_NS).ended
    assert last is not None
    assert (last.due, last.delivered, last.by_core, last.by_stream) == (3, 3, 2, 1)
    assert (last.first_ms, last.last_ms, last.undelivered, last.complete) == (3.0, 8.0, (), True)
    assert them.next_s() is None
    again = them.confirm("h2", receipt("b1"), now_ns=ISSUED_NS)
    assert (again.tracked, again.late) == (False, True)


def test_a_host_confirms_its_own_agents_only_and_only_those_due() -> None:
    them = tracker()
    them.begin(emergency(), at_s=0)
    forged = them.confirm("h2", receipt("a1", "b1", "stranger"), now_ns=ISSUED_NS)
    assert forged.refused == {"not_its_agent": 1, "not_due": 1}
    assert forged.counted == 1
    account = them.close()[0]
    assert account.undelivered == ("a1", "a2")
    assert account.complete is False


def test_the_first_receipt_of_an_agent_counts() -> None:
    them = tracker()
    them.begin(emergency(), at_s=0)
    them.confirm("h1", receipt("a1", after_ms=2), now_ns=ISSUED_NS)
    second = them.confirm("h1", receipt("a1", channel="stream", after_ms=90), now_ns=ISSUED_NS)
    assert (second.counted, second.again) == (0, 1)
    account = them.close()[0]
    assert (account.by_core, account.by_stream, account.last_ms) == (1, 0, 2.0)


@pytest.mark.parametrize("after_ms", [-31_000, 31_001])
def test_a_receipt_of_an_impossible_time_is_refused(after_ms: float) -> None:
    them = tracker()
    them.begin(emergency(), at_s=0)
    outcome = them.confirm("h1", receipt("a1", "a2", after_ms=after_ms), now_ns=ISSUED_NS)
    assert outcome.refused == {"bad_time": 2}


def test_a_receipt_for_anothers_message_is_nobodys_business() -> None:
    outcome = tracker().confirm("h1", receipt("a1", number=9), now_ns=ISSUED_NS)
    assert (outcome.tracked, outcome.late) == (False, False)


def test_retries_back_off_until_the_deadline_lists_the_missing() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100)
    them.confirm("h1", receipt("a1"), now_ns=ISSUED_NS)
    sent_at = []
    while (at_s := them.next_s()) is not None:
        turn = them.advance(at_s=at_s)
        sent_at += [at_s] * len(turn.resend)
    assert sent_at == [100.5, 101.5, 103.5, 105.5, 107.5, 109.5]
    assert turn.ended[0].undelivered == ("a2", "b1")


def test_advance_before_its_time_does_nothing() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100)
    turn = them.advance(at_s=100.49)
    assert (turn.resend, turn.ended) == ((), ())


def test_a_full_tracker_refuses_and_forgets_nobody() -> None:
    them = tracker(max_tracked=2)
    them.begin(emergency(1), at_s=0)
    them.begin(emergency(2), at_s=0)
    with pytest.raises(ExhaustedError) as caught:
        them.begin(emergency(3), at_s=0)
    assert caught.value.reason == "tracker_full"
    assert them.is_running(leaf(1))
    assert len(them) == 2


def test_an_emergency_for_nobody_is_not_tracked_and_not_complete() -> None:
    nobody = emergency(due={})
    with pytest.raises(InvalidInputError) as caught:
        tracker().begin(nobody, at_s=0)
    assert caught.value.reason == "nobody_due"
    assert nobody.account().complete is False


@pytest.mark.parametrize(
    ("audience", "due"),
    [
        (Audience(Reach.ALL, ""), {"a1": "h1", "a2": "h1", "b1": "h2"}),
        (Audience(Reach.ROLE, "guardian"), {"a1": "h1", "b1": "h2"}),
        (Audience(Reach.AGENT, "a2"), {"a2": "h1"}),
        (Audience(Reach.AGENT, "nobody"), {}),
        (Audience(Reach.MISSION, "a1"), {}),
    ],
)
def test_the_audience_says_who_is_due(audience: Audience, due: dict[str, str]) -> None:
    roles = {"a1": Role.GUARDIAN, "a2": Role.HUNTER, "b1": Role.GUARDIAN}
    roster = [
        AgentRecord(name=name, role=roles[name], host=host, key_id=bytes(32), enrolled_ns=0)
        for name, host in DUE.items()
    ]
    assert who_is_due(audience, roster) == due


def test_a_flood_uses_up_its_own_budget_only_and_for_a_second_only() -> None:
    budget = Budget(2)
    assert [budget.take("a", at_s=5.1) for _ in range(3)] == [True, True, False]
    assert budget.take("b", at_s=5.2)
    assert budget.take("a", at_s=6.0)
