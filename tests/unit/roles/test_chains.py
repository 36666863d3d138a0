"""Which findings are one case, when a case is an incident, and that a casebook loses none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.roles.casebook import Casebook, incident_of
from tocsin.agent.roles.chains import MEMORY_S, Chains
from tocsin.agent.roles.linefile import LineFile, recent_lines
from tocsin.agent.roles.logwatch import alert_line
from tocsin.analysis import techniques
from tocsin.analysis.hosts import is_internal
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, FindingKind, Incident, Technique

ATTACKER, SERVER, OTHER, COMMAND = "203.0.113.9", "10.0.0.5", "10.0.0.7", "198.51.100.4"


def found(
    kind: FindingKind,
    subject: str,
    target: str,
    technique: Technique,
    *,
    at_s: float,
    score: float = 0.4,
    source: str = "/var/log/conn.log",
) -> Finding:
    return Finding(
        kind=kind,
        subject=subject,
        internal=is_internal(subject),
        targets=(target,),
        score=score,
        technique=technique,
        evidence=(),
        source=source,
        first_s=at_s,
        last_s=at_s + 60,
        connections=9,
    )


def scan(at_s: float = 0.0, subject: str = ATTACKER, target: str = SERVER, score: float = 0.4) -> Finding:
    technique = techniques.NETWORK_SERVICE_DISCOVERY if is_internal(subject) else techniques.ACTIVE_SCANNING
    return found(FindingKind.SCAN, subject, target, technique, at_s=at_s, score=score)


def guessing(at_s: float = 600.0, subject: str = ATTACKER, target: str = SERVER) -> Finding:
    return found(FindingKind.BRUTE_FORCE, subject, target, techniques.BRUTE_FORCE, at_s=at_s)


def beacon(at_s: float = 7200.0, subject: str = OTHER) -> Finding:
    return found(FindingKind.BEACON, subject, COMMAND, techniques.NON_STANDARD_PORT, at_s=at_s)


def upload(at_s: float = 9000.0, subject: str = OTHER) -> Finding:
    technique = techniques.EXFILTRATION_OVER_ALTERNATIVE_PROTOCOL
    return found(FindingKind.EXFILTRATION, subject, COMMAND, technique, at_s=at_s)


INTRUSION = (scan(), guessing(), guessing(1800.0, SERVER, OTHER), beacon(), upload())


def gather(chains: Chains, *findings: Finding) -> list[Incident]:
    incidents = []
    for number, finding in enumerate(findings):
        if chains.add(finding, number.to_bytes(16, "big")):
            made = chains.incident(finding)
            incidents += [made[1]] if made else []
    return incidents


def test_an_intrusion_over_three_hosts_is_one_story_in_the_order_of_time() -> None:
    *_, last = gather(Chains(), *INTRUSION)
    assert [line.split(":")[0] for line in last.story] == [
        "reconnaissance",
        "credential-access",
        "lateral-movement",
        "command-and-control",
        "exfiltration",
    ]
    assert {one.subject for one in (last.primary, *last.related)} == {ATTACKER, SERVER, OTHER}
    assert len(last.alerts) == len(INTRUSION)


def test_one_weak_finding_is_no_incident_and_one_strong_one_is() -> None:
    assert not gather(Chains(), scan())
    assert len(gather(Chains(), scan(score=0.5))) == 1
    assert not gather(Chains(), scan(), scan(600.0, "203.0.113.10")), (
        "two strangers at one server are two cases"
    )


def test_tactics_in_the_wrong_order_and_too_far_apart_are_no_chain() -> None:
    assert not gather(Chains(), guessing(0.0), scan(600.0))
    assert not gather(Chains(), scan(), guessing(MEMORY_S + 3600.0))
    assert gather(Chains(), scan(), guessing(MEMORY_S))


def test_what_our_hosts_call_outside_ties_only_command_servers() -> None:
    both = gather(Chains(), beacon(0.0, SERVER), upload(60.0, OTHER))
    assert len(both) == 1, "one command server, two hosts"
    scans = gather(Chains(), scan(0.0, SERVER, COMMAND), scan(60.0, OTHER, COMMAND))
    assert not scans


def test_two_kinds_from_two_logs_corroborate_each_other() -> None:
    weak = found(FindingKind.TLS, OTHER, COMMAND, techniques.ASYMMETRIC_CRYPTOGRAPHY, at_s=0.0, score=0.49)
    same = found(
        FindingKind.BEACON, OTHER, COMMAND, techniques.APPLICATION_LAYER_PROTOCOL, at_s=9.0, score=0.49
    )
    other = same.model_copy(update={"source": "/var/log/ssl.log"})
    assert not gather(Chains(), weak, same), "one log"
    assert len(gather(Chains(), weak, other)) == 1


def test_an_incident_comes_again_only_with_something_new() -> None:
    chains = Chains()
    first = gather(chains, scan(), guessing())
    assert len(first) == 1
    assert not gather(chains, scan(), guessing())
    assert not gather(chains, scan(score=0.45))
    assert len(gather(chains, scan(score=0.9))) == 1
    assert len(gather(chains, found(FindingKind.IDS, SERVER, OTHER, techniques.BRUTE_FORCE, at_s=900.0))) == 1


def test_the_order_of_arrival_decides_nothing() -> None:
    forwards, backwards = Chains(), Chains()
    one = gather(forwards, *INTRUSION)[-1]
    other = gather(backwards, *reversed(INTRUSION))[-1]
    assert one.incident == other.incident
    assert one.story == other.story


FINDINGS = st.builds(
    found,
    st.sampled_from(FindingKind),
    st.sampled_from([ATTACKER, SERVER, OTHER, COMMAND]),
    st.sampled_from([ATTACKER, SERVER, OTHER, COMMAND]),
    st.sampled_from([techniques.ACTIVE_SCANNING, techniques.BRUTE_FORCE, techniques.NON_STANDARD_PORT]),
    at_s=st.floats(0, 1e6),
    score=st.floats(0, 1),
    source=st.sampled_from(["/a", "/b", "deception: honeypots"]),
)


@given(st.lists(FINDINGS, max_size=30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_chains_that_were_kept_go_on_as_if_nothing_had_been(findings: list[Finding], at: int) -> None:
    one = Chains()
    gather(one, *findings[:at])
    other = Chains()
    other.load(json.loads(json.dumps(one.dump())))
    assert gather(one, *findings[at:]) == gather(other, *findings[at:])
    assert one.dump() == other.dump()


@pytest.mark.parametrize("state", [{}, {"findings": [[{}, "00"]], "raised": []}, {"findings": 3, "raised": []}])
def test_a_damaged_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Chains().load(state)
    assert caught.value.reason == "bad_state"


# --- The casebook ---------------------------------------------------------------------------------


def complete(book: Casebook) -> list[Incident]:
    return book.complete(None, lambda _: True)


def test_a_casebook_that_was_killed_makes_no_incident_twice_and_loses_none(tmp_path: Path) -> None:
    book = Casebook.open(tmp_path, "hunter-01")
    alerts = LineFile(tmp_path / "sentinel-01.alerts.jsonl")
    for number, finding in enumerate(INTRUSION[:2]):
        alerts.append([alert_line(finding)])
        book.add(finding, number.to_bytes(16, "big"), now_s=0.0)
    (first,) = complete(book)
    assert [one.incident for one in book.pending()] == [first.incident]

    alerts.append([alert_line(one) for one in INTRUSION[2:]])  # it never heard of these
    again = Casebook.open(tmp_path, "hunter-01")
    assert [one.incident for one in again.pending()] == [first.incident]
    again.handed(first.incident)
    (second,) = complete(again)
    assert len(second.story) == len(INTRUSION)

    (tmp_path / "hunter-01" / "casebook.state").unlink()  # as if killed between the line and the state
    third = Casebook.open(tmp_path, "hunter-01")
    written = [incident_of(line) for line in recent_lines(tmp_path / "hunter-01.incidents.jsonl")]
    assert second in written
    assert all(one.incident not in {first.incident, second.incident} for one in complete(third))


def test_a_case_that_another_hunter_owns_is_remembered_and_not_told(tmp_path: Path) -> None:
    book = Casebook.open(tmp_path, "hunter-01")
    book.add(scan(score=0.9), bytes(16), now_s=0.0)
    assert book.complete(0.1, lambda _: True) == [], "not due"
    assert book.complete(9.0, lambda _: False) == []
    assert book.due_s() is None
    assert not recent_lines(tmp_path / "hunter-01.incidents.jsonl")
