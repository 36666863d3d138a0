"""Whatever is sent to a honeypot is answered or ends; whatever the order of alerts, the incident is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.roles.cases import finding, probe

from tocsin.agent.roles.correlation import MAX_ALERTS, MAX_RELATED, Correlation
from tocsin.agent.roles.dialogues import DIALOGUES, MAX_LINES, MAX_LOGINS, Dialogue
from tocsin.agent.roles.sources import Capture
from tocsin.contracts.catalogue import COORDINATION
from tocsin.contracts.errors import ConflictError
from tocsin.contracts.observations import Finding, FindingKind, Observations

VERBS = (b"USER ", b"PASS ", b"AUTH PLAIN ", b"AUTH LOGIN", b"EHLO", b"Authorization: Basic ", b"SSH-2.0-")
BITS = (b"\r\n", b"\n", b"\r\0", b"\xff\xfb\x01", b"\xff\xfa", b"\0", b"cm9vdA==", b"\x05\0\0\1")
WORDS = st.sampled_from([*VERBS, *BITS])
SAID = st.lists(st.one_of(WORDS, st.binary(max_size=40)), max_size=60)


@pytest.mark.parametrize(("_name", "make"), DIALOGUES)
@given(said=SAID)
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_answered_within_bounds(
    _name: str, make: Callable[[], Dialogue], said: list[bytes]
) -> None:
    dialogue = make()
    dialogue.greet()
    replied = logins = 0
    for data in said:
        turn = dialogue.feed(data)
        replied, logins = replied + len(turn.reply), logins + len(turn.logins)
        if turn.done:
            break
    assert logins <= MAX_LOGINS
    assert replied <= (MAX_LINES + 1) * 256


FINDINGS = st.builds(
    finding,
    st.sampled_from([f"203.0.113.{n}" for n in range(9)]),
    kind=st.sampled_from(FindingKind),
    score=st.floats(0, 1),
    source=st.sampled_from(["one", "two", "deception: honeypots"]),
    connections=st.integers(0, 99),
)


def gather(alerts: list[tuple[bytes, Finding]]) -> dict[bytes, tuple[Finding, tuple[Finding, ...]]]:
    correlation = Correlation()
    for alert, found in alerts:
        correlation.add(found, alert, now_s=0)
    incidents = correlation.complete(99)
    for incident in incidents:
        assert len(incident.related) <= MAX_RELATED
        assert len(incident.alerts) <= MAX_ALERTS
        assert len(incident.model_dump_json()) < COORDINATION.max_bytes - 16_384
    return {one.incident: (one.primary, one.related) for one in incidents}


@given(st.lists(FINDINGS, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_incidents_do_not_depend_on_the_order_of_alerts(findings: list[Finding], random: object) -> None:
    alerts = [(number.to_bytes(16, "big"), found) for number, found in enumerate(findings)]
    shuffled = list(alerts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis's Random
    first, second = gather(alerts), gather(shuffled)
    assert {key: primary.model_dump() for key, (primary, _) in first.items()} == {
        key: primary.model_dump() for key, (primary, _) in second.items()
    }


@given(st.lists(st.integers(0, 6), max_size=30))
@settings(max_examples=60, deadline=None)
def test_however_batches_are_repeated_each_counts_once_and_in_order(numbers: list[int]) -> None:
    capture = Capture("s")
    expected = 0
    for number in numbers:
        batch = Observations(source="s", sequence=number, flows=(probe(number),))
        if number > expected:
            with pytest.raises(ConflictError, match="expected is"):
                capture.take(batch)
            continue
        capture.take(batch)
        expected += number == expected
    assert capture.taken.flows == expected
