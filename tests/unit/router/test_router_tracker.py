"""The tracker, its accounts and the budget: who was due, who confirmed, who acts when, what happens at each bound."""

from __future__ import annotations

import pytest

from tocsin.bus.envelope import encode_body
from tocsin.contracts.errors import ExhaustedError, InvalidInputError
from tocsin.contracts.fleet import AgentRecord
from tocsin.contracts.identifiers import Role
from tocsin.contracts.policy import Audience, Reach
from tocsin.contracts.routing import Receipt
from tocsin.router.accounts import account, who_is_due
from tocsin.router.budget import Budget
from tocsin.router.early import KEPT_S, MAX_EARLY, MAX_OF_HOST, EarlyReceipts
from tocsin.router.tracker import Emergency, Schedule, Tracker

ISSUED_NS = 1_800_000_000_000_000_000
DUE = {"a1": "h1", "a2": "h1", "b1": "h2"}
ALL = Audience(Reach.ALL, "")


def leaf(number: int = 0) -> bytes:
    return number.to_bytes(32, "big")


def emergency(
    number: int = 0, due: dict[str, str] | None = None, *, deadline_s: float | None = None
) -> Emergency:
    to = dict(DUE) if due is None else due
    return Emergency(bytes(16), leaf(number), ISSUED_NS, "s", b"bytes", ALL, to, deadline_s)


def receipt(*agents: str, number: int = 0, channel: str = "core", after_ms: float = 5) -> Receipt:
    taken_ns = ISSUED_NS + int(after_ms * 1e6)
    return Receipt(leaf=leaf(number), agents=agents, channel=channel, taken_ns=taken_ns)


def record(name: str, host: str = "h3", *, enrolled_ns: int = 0, role: Role = Role.GUARDIAN) -> AgentRecord:
    return AgentRecord(name=name, role=role, host=host, key_id=bytes(32), enrolled_ns=enrolled_ns)


def tracker(max_tracked: int = 4) -> Tracker:
    return Tracker(Schedule(0.5, 2.0, 10.0, 3.0), max_tracked=max_tracked)


def test_an_emergency_is_complete_with_the_last_receipt_and_its_account_adds_up() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=True)
    first = them.confirm("h1", receipt("a1", "a2", after_ms=3), at_s=100.1, now_ns=ISSUED_NS)
    assert (first.counted, first.ended) == (2, None)
    last = them.confirm("h2", receipt("b1", channel="stream", after_ms=8), at_s=100.1, now_ns=ISSUED_NS).ended
    assert last is not None
    assert (last.due, last.delivered, last.by_core, last.by_stream) == (3, 3, 2, 1)
    assert (last.first_ms, last.last_ms, last.undelivered, last.complete) == (3.0, 8.0, (), True)
    assert them.next_s() is None
    again = them.confirm("h2", receipt("b1"), at_s=100.1, now_ns=ISSUED_NS)
    assert (again.tracked, again.late) == (False, True)


def test_a_host_confirms_its_own_agents_only_and_only_those_due() -> None:
    them = tracker()
    them.begin(emergency(), at_s=0, pursue=True)
    forged = them.confirm("h2", receipt("a1", "b1", "stranger"), at_s=100.1, now_ns=ISSUED_NS)
    assert forged.refused == {"not_its_agent": 1, "not_due": 1}
    assert forged.counted == 1
    told = them.advance(at_s=1e6).ended[0]
    assert told.undelivered == ("a1", "a2")
    assert told.complete is False


def test_the_first_receipt_of_an_agent_counts() -> None:
    them = tracker()
    them.begin(emergency(), at_s=0, pursue=True)
    them.confirm("h1", receipt("a1", after_ms=2), at_s=100.1, now_ns=ISSUED_NS)
    second = them.confirm("h1", receipt("a1", channel="stream", after_ms=90), at_s=100.1, now_ns=ISSUED_NS)
    assert (second.counted, second.again) == (0, 1)
    told = them.advance(at_s=1e6).ended[0]
    assert (told.by_core, told.by_stream, told.last_ms) == (1, 0, 2.0)


@pytest.mark.parametrize("after_ms", [-31_000, 31_001])
def test_a_receipt_of_an_impossible_time_is_refused(after_ms: float) -> None:
    them = tracker()
    them.begin(emergency(), at_s=0, pursue=True)
    outcome = them.confirm("h1", receipt("a1", "a2", after_ms=after_ms), at_s=100.1, now_ns=ISSUED_NS)
    assert outcome.refused == {"bad_time": 2}


def test_a_receipt_for_anothers_message_is_nobodys_business() -> None:
    outcome = tracker().confirm("h1", receipt("a1", number=9), at_s=100.1, now_ns=ISSUED_NS)
    assert (outcome.tracked, outcome.late) == (False, False)


def test_retries_back_off_until_the_deadline_lists_the_missing() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=True)
    them.confirm("h1", receipt("a1"), at_s=100.1, now_ns=ISSUED_NS)
    sent_at = []
    while (at_s := them.next_s()) is not None:
        turn = them.advance(at_s=at_s)
        sent_at += [at_s] * len(turn.resend)
    assert sent_at == [100.5, 101.5, 103.5, 105.5, 107.5, 109.5]
    assert turn.ended[0].undelivered == ("a2", "b1")


def test_advance_before_its_time_does_nothing() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=True)
    turn = them.advance(at_s=100.49)
    assert (turn.resend, turn.ended) == ((), ())


def test_a_full_tracker_refuses_and_forgets_nobody() -> None:
    them = tracker(max_tracked=2)
    them.begin(emergency(1), at_s=0, pursue=True)
    them.begin(emergency(2), at_s=0, pursue=True)
    with pytest.raises(ExhaustedError) as caught:
        them.begin(emergency(3), at_s=0, pursue=True)
    assert caught.value.reason == "tracker_full"
    assert them.is_running(leaf(1))
    assert len(them) == 2


def test_an_emergency_for_nobody_is_not_tracked_and_not_complete() -> None:
    nobody = emergency(due={})
    with pytest.raises(InvalidInputError) as caught:
        tracker().begin(nobody, at_s=0, pursue=True)
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
    roster = [record(name, host, role=roles[name]) for name, host in DUE.items()]
    roster.append(record("later", enrolled_ns=ISSUED_NS + 1))
    assert who_is_due(audience, roster, issued_at_ns=ISSUED_NS) == due


def test_an_agent_whose_record_comes_late_is_due_if_it_was_enrolled_then() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=True)
    them.learn(record("c1", enrolled_ns=ISSUED_NS))
    them.learn(record("c2", enrolled_ns=ISSUED_NS + 1))
    closed = them.advance(at_s=110).ended[0]
    assert closed.undelivered == ("a1", "a2", "b1", "c1")


def test_who_stands_by_leaves_it_to_the_other_for_the_grace_and_then_takes_over() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=False)
    sent_at = []
    while (at_s := them.next_s()) is not None:
        turn = them.advance(at_s=at_s)
        sent_at += [at_s] * len(turn.resend)
    assert sent_at == [103.5, 104.5, 106.5, 108.5, 110.5, 112.5]
    assert turn.ended[0].undelivered == ("a1", "a2", "b1")


def test_who_stands_by_says_nothing_of_what_the_other_has_accounted_for() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=False)
    them.accounted(leaf())
    assert them.next_s() is None
    assert them.has_ended(leaf())
    assert them.confirm("h1", receipt("a1"), at_s=101, now_ns=ISSUED_NS).late


def test_who_stands_by_closes_a_complete_one_if_the_other_died_before_it_said_so() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=False)
    them.confirm("h1", receipt("a1", "a2"), at_s=100.1, now_ns=ISSUED_NS)
    assert them.confirm("h2", receipt("b1"), at_s=100.2, now_ns=ISSUED_NS).ended is None
    assert them.advance(at_s=103.1).ended == ()
    assert them.next_s() == pytest.approx(103.2)
    closed = them.advance(at_s=103.3)
    assert closed.resend == ()
    assert closed.ended[0].complete


def test_a_sender_that_hands_it_in_again_makes_its_new_router_pursue_it() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=False)
    them.pursue(leaf())
    assert them.next_s() == 100.5
    assert them.advance(at_s=110).ended


def test_what_a_stream_held_for_long_is_closed_when_it_would_have_been() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=False, age_s=60)
    assert them.advance(at_s=100).ended[0].undelivered == ("a1", "a2", "b1")


def test_nothing_is_closed_before_the_streams_have_been_read() -> None:
    them = tracker()
    them.begin(emergency(), at_s=100, pursue=True)
    assert them.advance(at_s=111, close=False).ended == ()
    them.confirm("h1", receipt("a1", "a2"), at_s=111, now_ns=ISSUED_NS)
    ended = them.confirm("h2", receipt("b1"), at_s=111, now_ns=ISSUED_NS).ended
    assert ended is not None
    assert ended.complete


def test_an_alert_may_name_its_own_deadline() -> None:
    them = tracker()
    them.begin(emergency(deadline_s=1), at_s=100, pursue=True)
    assert them.advance(at_s=100.9).ended == ()
    assert them.advance(at_s=101).ended


def test_an_account_names_every_agent_once() -> None:
    together = receipt("a1", "a2", after_ms=3)
    told = account(bytes(16), leaf(), ISSUED_NS, DUE, {"a1": together, "a2": together})
    assert [(group.host, group.channel, group.ms, group.agents) for group in told.confirmed] == [
        ("h1", "core", 3.0, ("a1", "a2"))
    ]
    assert (told.undelivered, told.unlisted) == (("b1",), 0)


@pytest.mark.parametrize("per_host", [1, 64])
def test_an_account_of_thousands_fits_its_event_and_counts_whom_it_cannot_name(per_host: int) -> None:
    due = {f"{number:063}": f"h{number // per_host}" for number in range(6000)}
    confirmed = {
        name: receipt(name, after_ms=float(due[name][1:])) for number, name in enumerate(due) if number % 2
    }
    told = account(bytes(16), leaf(), ISSUED_NS, due, confirmed)
    named = len(told.undelivered) + sum(len(group.agents) for group in told.confirmed)
    assert named + told.unlisted == told.due == 6000
    assert told.delivered == 3000
    assert told.unlisted > 0
    assert len(encode_body(told)) < 250 * 1024


def test_an_account_of_some_thousand_agents_names_them_all() -> None:
    due = {f"specialist-{number:04}": f"host-{number // 64}" for number in range(4000)}
    confirmed = {name: receipt(name, after_ms=float(due[name][5:])) for name in due}
    told = account(bytes(16), leaf(), ISSUED_NS, due, confirmed)
    assert told.unlisted == 0
    assert told.complete


def test_a_flood_uses_up_its_own_budget_only_and_for_a_second_only() -> None:
    budget = Budget(2)
    assert [budget.take("a", at_s=5.1) for _ in range(3)] == [True, True, False]
    assert budget.take("b", at_s=5.2)
    assert budget.take("a", at_s=6.0)


def test_receipts_that_come_before_their_emergency_count_once_it_is_known() -> None:
    them = tracker()
    for host, agents in (("h1", ("a1", "a2")), ("h1", ("a1", "a2")), ("h2", ("a1", "b1"))):
        early = them.confirm(host, receipt(*agents, after_ms=3), at_s=99, now_ns=ISSUED_NS)
        assert (early.tracked, early.early) == (False, True)
    known = emergency()
    told = them.begin(known, at_s=100, pursue=True)
    assert told is not None
    assert (told.delivered, told.undelivered, len(them)) == (3, (), 0)
    partly = tracker()
    partly.confirm("h2", receipt("b1"), at_s=99, now_ns=ISSUED_NS)
    assert partly.begin(emergency(), at_s=100, pursue=True) is None
    assert partly.advance(at_s=1e6).ended[0].undelivered == ("a1", "a2")


def test_who_stands_by_leaves_an_emergency_that_is_confirmed_already_to_who_pursues_it() -> None:
    them = tracker()
    for host, agents in (("h1", ("a1", "a2")), ("h2", ("b1",))):
        them.confirm(host, receipt(*agents), at_s=99, now_ns=ISSUED_NS)
    assert them.begin(emergency(), at_s=100, pursue=False) is None
    assert not them.advance(at_s=102).ended
    assert them.advance(at_s=104).ended[0].complete


def test_early_receipts_are_bounded_by_host_in_all_and_by_time() -> None:
    early = EarlyReceipts()
    kept = [early.keep("h1", receipt("a", number=n), at_s=0, now_ns=0) for n in range(MAX_OF_HOST + 1)]
    assert kept == [True] * MAX_OF_HOST + [False]
    for n in range(MAX_EARLY):
        early.keep(f"host-{n}", receipt("a", number=n), at_s=1, now_ns=0)
    assert len(early) <= MAX_EARLY
    assert early.keep("h1", receipt("a", number=0), at_s=2, now_ns=0), "the oldest made room"
    early.keep("h3", receipt("a", number=99_999), at_s=3 + KEPT_S, now_ns=0)
    assert len(early) == 1
