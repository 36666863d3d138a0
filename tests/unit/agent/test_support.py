"""The default ballot policy: grounds of one's own, from somebody else than the proposer."""

from __future__ import annotations

from tocsin.agent.support import MAX_WITNESSES, Support, choose
from tocsin.contracts.decisions import Option, Proposal
from tocsin.contracts.identifiers import Severity
from tocsin.contracts.observations import Finding, FindingKind, Incident, Technique
from tocsin.contracts.response import Action, Command
from tocsin.contracts.routing import Coordination, ThreatAlert

BAD = "10.0.0.66"


def finding(subject: str) -> Finding:
    return Finding(
        kind=FindingKind.SCAN,
        subject=subject,
        internal=True,
        targets=(),
        score=1.0,
        technique=Technique(id="T1046", name="Network Service Discovery"),
        evidence=(),
        source="s",
        first_s=0,
        last_s=1,
        connections=5,
    )


def alert(subject: str) -> ThreatAlert:
    return ThreatAlert(severity=Severity.HIGH, summary="", finding=finding(subject))


def proposal(*addresses: str | None) -> Proposal:
    options = tuple(
        Option(
            name=f"o{number}",
            command=None if address is None else Command(action=Action.CONTAIN, address=address, duration_s=60),
            text="",
        )
        for number, address in enumerate(addresses)
    )
    return Proposal(
        epoch=bytes(32),
        workflow=bytes(16),
        subject=BAD,
        evidence=(),
        assessment=bytes(32),
        options=options,
        deadline_ms=1000,
    )


def test_a_command_is_supported_by_another_agents_alert() -> None:
    support = Support()
    support.note(alert(BAD), sender="sentinel-01")
    index, reason = choose(proposal(None, BAD), support, proposer="admin-01")
    assert index == 1
    assert "sentinel-01" in reason


def test_the_proposers_own_word_is_no_support() -> None:
    support = Support()
    support.note(alert(BAD), sender="admin-01")
    assert choose(proposal(BAD, None), support, proposer="admin-01")[0] == 1


def test_an_alert_about_another_address_is_no_support() -> None:
    support = Support()
    support.note(alert("10.0.0.67"), sender="sentinel-01")
    assert choose(proposal(BAD, None), support, proposer="admin-01")[0] == 1


def test_without_grounds_and_without_doing_nothing_it_abstains() -> None:
    index, reason = choose(proposal(BAD, "10.0.0.67"), Support(), proposer="admin-01")
    assert index is None
    assert reason


def test_an_incident_accuses_all_that_it_names() -> None:
    support = Support()
    incident = Incident(incident=bytes(16), primary=finding(BAD), related=(finding("10.0.0.67"),), alerts=())
    support.note(Coordination(content=incident), sender="hunter-01")
    assert support.witnesses(BAD) == support.witnesses("10.0.0.67") == {"hunter-01"}


def test_the_memory_is_bounded_and_forgets_who_was_named_longest_ago() -> None:
    support = Support(max_subjects=2)
    for subject in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"):
        support.note(alert(subject), sender="s")
    assert len(support) == 2
    assert not support.witnesses("10.0.0.2")


def test_the_witnesses_of_one_address_are_bounded() -> None:
    support = Support()
    for number in range(MAX_WITNESSES + 5):
        support.note(alert(BAD), sender=f"s{number}")
    assert len(support.witnesses(BAD)) == MAX_WITNESSES


def test_where_options_are_words_it_abstains() -> None:
    index, reason = choose(proposal(None, None), Support(), proposer="admin-01")
    assert index is None
    assert "words" in reason
