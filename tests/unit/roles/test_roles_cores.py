"""The cores of sentinel, hunter and admin: sources, news, cases, the docket."""

from __future__ import annotations

import hashlib

import pytest
from unit.roles.cases import COMMAND, assessment, finding, probe

from tocsin.agent.agent import Agent
from tocsin.agent.roles import make
from tocsin.agent.roles.admin import Docket, proposal_of
from tocsin.agent.roles.alerting import MAX_ALERTS, News, alerts_of, severity_of
from tocsin.agent.roles.correlation import (
    LONGEST_S,
    MAX_CASES,
    MAX_RELATED,
    QUIET_S,
    Correlation,
    case_of,
)
from tocsin.agent.roles.correlation import (
    MAX_ALERTS as MAX_ALERT_IDS,
)
from tocsin.agent.roles.deception import Outbox
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.sensors import HONEYPOTS
from tocsin.agent.roles.sources import IDLE_S, MAX_OPEN, Capture, Captures, LiveSource
from tocsin.bus.envelope import decode_body, encode_body
from tocsin.contracts.analysis import Assessment
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, FindingKind, Observations


def batch(sequence: int, *, final: bool = False, probes: int = 0, source: str = "capture") -> Observations:
    flows = tuple(probe(number) for number in range(probes))
    return Observations(source=source, sequence=sequence, flows=flows, final=final)


# Making agents ---------------------------------------------------


def test_every_role_can_be_made_and_says_its_role() -> None:
    made: list[Agent] = [make(role, f"{role.value}-01") for role in Role]
    assert [agent.role for agent in made] == list(Role)


def test_an_option_that_a_role_does_not_know_is_refused() -> None:
    make(Role.DECEPTION, "d", ports=2)
    with pytest.raises(InvalidInputError, match="it has: address, credentials, ports"):
        make(Role.DECEPTION, "d", port=2)
    with pytest.raises(InvalidInputError, match="it has: none"):
        make(Role.HUNTER, "h", ports=2)


def test_a_memory_forgets_what_was_kept_longest_ago() -> None:
    memory: Memory[str, int] = Memory(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        memory.keep(key, value)
    assert (memory.get("a"), memory.get("b"), memory.get("c"), len(memory)) == (3, None, 4, 2)


# Sources ---------------------------------------------------


def test_a_capture_is_alerted_when_it_ends_and_counts_what_it_took() -> None:
    capture = Capture("capture")
    assert capture.take(batch(0, probes=20)) == []
    (found,) = capture.take(batch(1, final=True))
    assert (found.kind, found.subject) == (FindingKind.SCAN, "203.0.113.9")
    assert (capture.taken.sequence, capture.taken.flows, capture.taken.findings) == (1, 20, 1)


def test_a_repeated_batch_is_answered_without_effect() -> None:
    capture = Capture("capture")
    for _ in range(2):
        capture.take(batch(0, probes=20))
    assert capture.taken.flows == 20
    assert len(capture.take(batch(1, final=True))) == 1
    assert capture.take(batch(1, final=True)) == []
    assert capture.take(batch(0, probes=20)) == []
    assert capture.taken.findings == 1


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (batch(3), "out_of_order"),
        (batch(1, probes=1), "sequence_reused"),
    ],
)
def test_a_gap_or_another_content_is_refused(then: Observations, reason: str) -> None:
    capture = Capture("capture")
    capture.take(batch(0))
    capture.take(batch(1))
    with pytest.raises(ConflictError) as caught:
        capture.take(then)
    assert caught.value.reason == reason
    capture.take(batch(2))
    assert capture.taken.sequence == 2


def test_after_its_end_a_capture_takes_nothing_more_but_may_begin_anew() -> None:
    captures = Captures()
    for number in range(2):
        captures.find("cli", batch(number), now_s=0)[0].take(batch(number, final=number == 1))
    with pytest.raises(ConflictError, match="ended"):
        captures.find("cli", batch(2), now_s=0)[0].take(batch(2))
    again, _ = captures.find("cli", batch(0), now_s=0)
    again.take(batch(0, probes=3))
    assert again.taken.flows == 3


def test_two_readers_of_one_source_do_not_disturb_each_other() -> None:
    captures = Captures()
    first, _ = captures.find("a", batch(0), now_s=0)
    second, _ = captures.find("b", batch(0), now_s=0)
    assert first is not second
    assert captures.find("a", batch(1), now_s=0)[0] is first


def test_open_captures_are_bounded_and_an_idle_one_gives_way() -> None:
    captures = Captures()
    for number in range(MAX_OPEN):
        captures.find("cli", batch(0, source=f"s{number}"), now_s=float(number))
    with pytest.raises(ExhaustedError) as caught:
        captures.find("cli", batch(0, source="more"), now_s=IDLE_S)
    assert caught.value.reason == "too_many_sources"
    _, idle = captures.find("cli", batch(0, source="more"), now_s=IDLE_S + 0.5)
    assert [capture.source for capture in idle] == ["s0"]


def test_what_an_abandoned_capture_shows_is_still_found() -> None:
    capture = Capture("capture")
    capture.take(batch(0, probes=20))
    assert [found.kind for found in capture.close()] == [FindingKind.SCAN]
    assert capture.close() == []


def test_probes_that_several_honeypots_report_meet_in_one_finding() -> None:
    source = LiveSource(HONEYPOTS)
    for number in range(12):
        report = Observations(source=HONEYPOTS, sequence=7, flows=(probe(number),))
        source.take(f"deception-{number}", report)
    (found,) = source.look(now_s=101.0)
    assert (found.kind, found.connections) == (FindingKind.SCAN, 12)
    assert source.look(now_s=101.1) == [], "said once"


def test_a_live_report_counts_once_in_whatever_order_it_comes() -> None:
    source = LiveSource(HONEYPOTS)
    for sequence in (5, 4, 5, 4, 9):
        source.take(
            "d",
            Observations(
                source=HONEYPOTS, sequence=sequence, flows=(probe(sequence, at_s=100 - sequence / 100),)
            ),
        )
    assert source.look(now_s=101.0) == [], "three probes are no scan"
    for sequence in (10, 11, 12):
        source.take(
            "d",
            Observations(
                source=HONEYPOTS, sequence=sequence, flows=(probe(sequence, at_s=100 - sequence / 100),)
            ),
        )
    assert [found.connections for found in source.look(now_s=101.0)] == [6]


# Alerts ---------------------------------------------------


@pytest.mark.parametrize(
    ("score", "severity"),
    [
        (0.0, Severity.INFO),
        (0.3, Severity.LOW),
        (0.5, Severity.MEDIUM),
        (0.7, Severity.HIGH),
        (1.0, Severity.HIGH),
    ],
)
def test_severity_follows_the_score_and_is_never_critical(score: float, severity: Severity) -> None:
    assert severity_of(score) is severity


def test_a_finding_is_news_once_and_when_it_is_clearly_stronger() -> None:
    news = News()
    said = [len(news.among([finding(score=score)])) for score in (0.5, 0.5, 0.55, 0.61, 0.65, 0.72)]
    assert said == [1, 0, 0, 1, 0, 1]
    assert news.among([finding(kind=FindingKind.SCAN, score=0.1)])


def test_beyond_sixteen_alerts_the_last_one_says_how_many_more() -> None:
    alerts = alerts_of([finding(f"203.0.113.{number}") for number in range(MAX_ALERTS + 3)])
    assert len(alerts) == MAX_ALERTS
    assert "; 3 weaker findings" in alerts[-1].summary
    assert all(";" not in alert.summary for alert in alerts[:-1])
    assert "203.0.113.0 guesses passwords at 10.0.0.1" in alerts[0].summary


# Cases ---------------------------------------------------


def alert_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_capture_is_one_case_and_each_subject_at_the_honeypots_its_own() -> None:
    assert case_of(finding("203.0.113.1")) == case_of(finding("203.0.113.2"))
    first, second = (finding(f"203.0.113.{n}", source=HONEYPOTS) for n in (1, 2))
    assert case_of(first) != case_of(second)
    assert case_of(first) == case_of(finding("203.0.113.1", source="deception: canary-01"))


def test_a_case_is_complete_when_it_was_quiet_and_its_strongest_is_primary() -> None:
    correlation = Correlation()
    weak, strong = finding(score=0.5), finding("203.0.113.8", score=0.9)
    correlation.add(weak, alert_id(1), now_s=10.0)
    correlation.add(strong, alert_id(2), now_s=10.3)
    assert correlation.due_s() == 10.3 + QUIET_S
    assert correlation.complete(10.6) == []
    (incident,) = correlation.complete(10.3 + QUIET_S)
    assert (incident.primary, incident.related) == (strong, (weak,))
    assert incident.alerts == (alert_id(1), alert_id(2))
    assert correlation.due_s() is None


def test_an_attack_that_goes_on_does_not_put_off_its_incident() -> None:
    correlation = Correlation()
    completed_s = []
    for tick in range(25):
        correlation.add(finding(), alert_id(tick), now_s=tick / 10)
        completed_s += [tick / 10 for _ in correlation.complete(tick / 10)]
    assert completed_s == [LONGEST_S]


def test_what_can_be_scored_comes_before_what_is_stronger_and_cannot() -> None:
    correlation = Correlation()
    correlation.add(finding("203.0.113.1", score=0.9, features=None), alert_id(1), now_s=0)
    correlation.add(finding("203.0.113.2", score=0.4), alert_id(2), now_s=0)
    (incident,) = correlation.complete(9)
    assert incident.primary.subject == "203.0.113.2"


def test_two_hunters_with_the_same_alerts_name_the_same_incident() -> None:
    one, other = Correlation(), Correlation()
    findings = [finding(f"203.0.113.{n}", score=0.5 + n / 100) for n in range(5)]
    for number, found in enumerate(findings):
        one.add(found, alert_id(number), now_s=0)
    for number, found in reversed(list(enumerate(findings))):
        other.add(found, alert_id(number), now_s=50)
    ((first,), (second,)) = one.complete(9), other.complete(99)
    assert first.incident == second.incident
    assert (first.primary, first.related) == (second.primary, second.related)


def test_a_known_case_makes_another_incident_only_when_there_is_more_to_it() -> None:
    correlation = Correlation()

    def incidents(score: float, kind: FindingKind = FindingKind.SCAN) -> int:
        correlation.add(finding(score=score, kind=kind), alert_id(1), now_s=0)
        return len(correlation.complete(9))

    assert [incidents(0.6), incidents(0.6), incidents(0.65), incidents(0.7)] == [1, 0, 0, 1]
    assert incidents(0.5, FindingKind.BRUTE_FORCE) == 1


def test_cases_and_what_they_hold_are_bounded() -> None:
    correlation = Correlation()
    early = []
    for number in range(MAX_CASES + 1):
        early += correlation.add(finding(source=f"s{number}"), alert_id(number), now_s=number / 1000)
    assert [incident.primary.source for incident in early] == ["s0"]
    for number in range(200):
        correlation.add(
            finding(f"198.51.100.{number}", score=number / 1000, source="s9"), alert_id(number), now_s=0.5
        )
    (big,) = (one for one in correlation.complete(9) if one.primary.source == "s9")
    assert (len(big.related), len(big.alerts)) == (MAX_RELATED, MAX_ALERT_IDS)
    assert big.primary.score == 0.6
    assert min(one.score for one in big.related) > 0.16, "the weakest went"


# Proposals ---------------------------------------------------


def test_a_proposal_offers_the_command_and_doing_nothing_and_names_the_assessment() -> None:
    made = assessment()
    proposal = proposal_of(made, COMMAND, bytes(32))
    do, nothing = proposal.options
    assert (do.name, do.command, nothing.name, nothing.command) == ("deny", COMMAND, "observe", None)
    travelled = decode_body(Assessment, encode_body(made))
    assert proposal.assessment == hashlib.sha256(encode_body(travelled)).digest()
    assert proposal.evidence == made.evidence


def test_a_command_is_proposed_once_and_not_while_it_is_decided_or_in_force() -> None:
    docket = Docket()

    def ask(incident: bytes, now_s: float) -> str | None:
        return docket.open(incident, COMMAND, now_ns=int(now_s * 1e9), deadline_ms=1000)

    assert ask(b"1" * 16, 0) is None
    assert ask(b"1" * 16, 99) == "already_proposed"
    assert ask(b"2" * 16, 1) == "pending_or_in_force"
    docket.ended(COMMAND, COMMAND, now_ns=0)
    assert ask(b"2" * 16, 3599) == "pending_or_in_force"
    assert ask(b"2" * 16, 3600) is None
    docket.ended(COMMAND, None, now_ns=0)
    assert ask(b"3" * 16, 3601) is None
    docket.withdraw(b"3" * 16, COMMAND)
    assert ask(b"3" * 16, 3602) is None


def test_what_was_decided_instead_is_in_force_and_what_was_proposed_may_come_again() -> None:
    docket = Docket()
    other = COMMAND.model_copy(update={"address": "198.51.100.8", "duration_s": 60})
    assert docket.open(b"1" * 16, COMMAND, now_ns=0, deadline_ms=1000) is None
    docket.ended(COMMAND, other, now_ns=0)
    assert docket.open(b"2" * 16, COMMAND, now_ns=1, deadline_ms=1000) is None
    assert docket.open(b"2" * 16, other, now_ns=1, deadline_ms=1000) == "pending_or_in_force"
    assert docket.open(b"2" * 16, other, now_ns=60_000_000_000, deadline_ms=1000) is None


# Reports of deception agents ---------------------------------------------------


def test_an_outbox_repeats_what_was_not_sent_and_then_goes_on() -> None:
    outbox = Outbox(number=7)
    for number in range(MAX_FLOWS_PER_BATCH + 1):
        assert outbox.put(probe(number % 64))
    first = outbox.batch()
    assert first is not None
    assert outbox.batch() is first
    outbox.sent()
    second = outbox.batch()
    assert second is not None
    assert (first.sequence, len(first.flows), second.sequence, len(second.flows)) == (7, 256, 8, 1)
    outbox.sent()
    assert outbox.batch() is None
