"""What became of alerts: two countings held against each other, and what faults did."""

from __future__ import annotations

from typing import Any

import pytest
from _alerts import Alert, Fault, Heard, SentAlert, Told, during, figures, join, told_of
from broadcast import check
from common import deviations

from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.routing import Delivery

MS = 1_000_000
PAUSE = 100 * MS


def sent(number: int, failure: str = "") -> SentAlert:
    leaf = "" if failure else bytes([number] * 32).hex()
    return SentAlert(number=number, begun_ns=number * PAUSE, took_ms=1.0, leaf_hex=leaf, failure=failure)


def heard(*arrivals: tuple[int, int, float], alerts: tuple[SentAlert, ...] = (), host: str = "h1") -> Heard:
    """Arrivals by alert, agent and milliseconds after the alert's sending."""
    return Heard(
        agents=(f"{host}-0", f"{host}-1"),
        arrivals=[(number, agent, number * PAUSE + round(ms * MS)) for number, agent, ms in arrivals],
        sent=list(alerts),
        counters={},
    )


def told(number: int, delivered: int, *, due: int = 4, after_ms: float = 9.0) -> Told:
    account = Delivery(
        message=bytes(16),
        leaf=bytes([number] * 32),
        due=due,
        delivered=delivered,
        by_core=delivered,
        by_stream=0,
        undelivered=tuple(f"x{index}" for index in range(due - delivered)),
        first_ms=1.0,
        last_ms=2.0,
        complete=delivered == due,
    )
    return Told(account, number * PAUSE + round(after_ms * MS))


def everywhere(number: int, *, last_ms: float = 4.0) -> tuple[Heard, Heard]:
    return (
        heard((number, 0, 1.0), (number, 1, 2.0), alerts=(sent(number),)),
        heard((number, 0, 3.0), (number, 1, last_ms), host="h2"),
    )


def test_an_alert_that_everyone_had() -> None:
    alerts = join(everywhere(0), [told(0, 4)])
    found = figures(alerts)
    assert (found["sent"], found["received"], found["twice"], found["lost"]) == (1, 4, 0, 0)
    assert (found["due"], found["delivered"], found["undelivered"]) == (4, 4, 0)
    assert (found["unaccounted"], found["overclaimed"]) == (0, 0)
    assert found["first_agent_ms"]["max"] == 1.0
    assert found["last_agent_ms"]["max"] == 4.0
    assert found["account_ms"]["max"] == 9.0
    assert list(deviations(found)) == []
    check(found)


def test_an_agent_that_had_it_twice_counts_once_and_from_the_first_time() -> None:
    first, second = everywhere(0)
    again = first.model_copy(update={"arrivals": [*first.arrivals, (0, 1, 50 * MS)]})
    (alert,) = join([again, second], [told(0, 4)])
    assert (alert.twice, len(alert.first_ns), alert.last_ns) == (1, 4, 4 * MS)
    with pytest.raises(InvariantBrokenError, match="twice 1"):
        check(figures([alert]))


def test_an_agent_that_missed_it_is_lost_and_listed() -> None:
    alerts = join(
        [heard((1, 0, 1.0), (1, 1, 1.0), alerts=(sent(1),)), heard((1, 0, 1.0), host="h2")], [told(1, 3)]
    )
    found = figures(alerts)
    assert (found["lost"], found["undelivered"], found["complete_accounts"]) == (1, 1, 0)
    assert found["last_agent_ms"]["max"] == 0.0  # of those that everyone had: none
    assert told_of(alerts[0]) == {
        "alert": 1,
        "had_by": 3,
        "accounted": True,
        "due": 4,
        "delivered": 3,
        "undelivered": ["x0"],
    }
    check(found)


def test_an_account_that_counts_more_than_had_it_is_false() -> None:
    alerts = join([heard((1, 0, 1.0), alerts=(sent(1),)), heard(host="h2")], [told(1, 4)])
    found = figures(alerts)
    assert found["overclaimed"] == 3
    with pytest.raises(InvariantBrokenError, match="overclaimed 3"):
        check(found)


def test_the_sender_was_told_or_a_router_says_or_it_is_unaccounted() -> None:
    alerts = join([heard(alerts=(sent(1, "buffer_full"), sent(2), sent(3))), heard(host="h2")], [told(3, 0)])
    found = figures(alerts)
    assert [alert.accounted for alert in alerts] == [True, False, True]
    assert (found["sent"], found["not_sent"], found["send_failures"]) == (2, 1, {"buffer_full": 1})
    assert (found["unaccounted"], found["lost"]) == (1, 8)
    assert told_of(alerts[0])["not_sent"] == "buffer_full"
    with pytest.raises(InvariantBrokenError) as caught:
        check(found)
    assert caught.value.reason == "alerts_unaccounted"


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_of_several_accounts_the_fullest_holds(order: tuple[int, int]) -> None:
    (alert,) = join(everywhere(0), [told(0, delivered) for delivered in order])
    assert alert.told is not None
    assert alert.told.account.delivered == 3


def test_an_account_of_nobody_we_know_is_left_out() -> None:
    assert [alert.told for alert in join(everywhere(0), [told(7, 4)])] == [None]


def test_faults_have_the_alerts_that_were_sent_meanwhile() -> None:
    alerts = [
        *join(everywhere(0), [told(0, 4)]),
        *join(everywhere(1, last_ms=160.0), [told(1, 4)]),
        *join([heard(alerts=(sent(2),)), heard()], []),
        *join(everywhere(3), [told(3, 4)]),
    ]
    (during_it,) = during([Fault("partition", 50 * MS, 250 * MS)], alerts)
    expected: dict[str, Any] = {
        "fault": "partition",
        "lasted_s": 0.2,
        "alerts": 2,
        "not_sent": 0,
        "complete": 1,
        "unaccounted": 1,
        "late": 1,
    }
    assert {name: during_it[name] for name in expected} == expected
    assert during_it["after_healing_ms"]["max"] == 10.0
    assert list(deviations({"faults": [during_it]})) == []


def test_an_alert_alone_has_no_agents() -> None:
    alert = Alert(sent(1), agents=0)
    assert (alert.complete, alert.last_ns, alert.overclaimed) == (True, 0, 0)
