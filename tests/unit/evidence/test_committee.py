"""Who decides where a proposal asks only some."""

from __future__ import annotations

import pytest
from council import Council, ballot_body, proposal_body

from tocsin.contracts.catalogue import BALLOT
from tocsin.contracts.decisions import Option, Proposal, Scope
from tocsin.contracts.errors import InvalidInputError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import Role
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import choice_digest, decide_value
from tocsin.evidence.committee import committee_of
from tocsin.evidence.verification import VerifiedDecision, verify

QUESTION = (
    Option(name="yes", command=None, text="Look into it"),
    Option(name="no", command=None, text="Leave it"),
)


@pytest.fixture(scope="module")
def council() -> Council:
    return Council(agents=10, per_host=3)


def question(council: Council, scope: Scope, options: tuple[Option, ...] = QUESTION) -> Proposal:
    body = proposal_body(council.epoch.digest)
    return body.model_copy(update={"scope": scope, "options": options})


def test_all_of_the_epoch_decide_by_default(council: Council) -> None:
    committee = committee_of(proposal_body(council.epoch.digest), council.epoch)
    assert (committee.label, committee.quorum) == ("all", council.epoch.quorum)
    assert committee.why_not == council.epoch.why_not


def test_a_role_counts_by_its_own_number(council: Council) -> None:
    committee = committee_of(question(council, Scope(role=Role.SENTINEL)), council.epoch)
    assert (committee.label, committee.quorum.participants, committee.quorum.needed) == (
        "role sentinel",
        9,
        7,
    )
    with pytest.raises(UntrustedError) as caught:
        committee.seat(council.admin, council.seat(council.admin)[1])
    assert caught.value.reason == "not_a_participant"


def test_a_mission_is_who_the_proposal_names(council: Council) -> None:
    scope = Scope(mission="m-1", members=("s-1", "s-2", "s-5"))
    committee = committee_of(question(council, scope), council.epoch)
    assert committee.label == "mission m-1"
    assert [who.rsplit("/", 1)[-1] for who in committee.seats] == ["s-1", "s-2", "s-5"]
    assert "f = 0" in committee.why_not


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        (Scope(role=Role.HUNTER), "too_few_participants"),
        (Scope(mission="m-1", members=("s-1", "s-2")), "too_few_participants"),
        (Scope(mission="m-1"), "bad_scope"),
        (Scope(members=("s-1", "s-2", "s-3")), "bad_scope"),
        (Scope(role=Role.SENTINEL, mission="m-1", members=("s-1", "s-2", "s-3")), "bad_scope"),
        (Scope(mission="m-1", members=("s-2", "s-1", "s-3")), "bad_scope"),
        (Scope(mission="m-1", members=("s-1", "s-1", "s-2")), "bad_scope"),
        (Scope(mission="m-1", members=("s-1", "s-2", "stranger")), "unknown_member"),
    ],
)
def test_a_scope_that_names_no_committee_is_refused(council: Council, scope: Scope, reason: str) -> None:
    with pytest.raises(TocsinError) as caught:
        committee_of(question(council, scope), council.epoch)
    assert caught.value.reason == reason


def test_only_all_together_can_command(council: Council) -> None:
    options = proposal_body(council.epoch.digest).options
    with pytest.raises(InvalidInputError) as caught:
        committee_of(question(council, Scope(role=Role.SENTINEL), options), council.epoch)
    assert caught.value.reason == "committee_cannot_command"


def decided_by(council: Council, voters: int) -> VerifiedDecision:
    """Verify the certificate of a decision of all sentinels, with so many of their ballots."""
    proposal = council.propose(question(council, Scope(role=Role.SENTINEL)))
    chosen = council.voters[1 : voters + 1]
    ballots = [
        council.sign([(who, BALLOT, ballot_body(council.epoch.digest, proposal.leaf, 0))])[0] for who in chosen
    ]
    value = decide_value(proposal.leaf, 1, choice_digest(proposal.leaf, 1, 0))
    certificate = DecisionCertificate(
        epoch=council.epoch.data,
        proposal=proposal.data,
        ballots=tuple(ballots),
        votes=(council.vote(proposal.leaf, value),),
        keys=council.public_keys([council.admin, *chosen, council.services[0]]),
    )
    return verify(certificate.encode(), council.root.certificate_pem)


def test_a_committees_certificate_says_so(council: Council) -> None:
    decided = decided_by(council, 7)
    assert (decided.scope, decided.participants, decided.quorum, decided.command) == (
        "role sentinel",
        9,
        7,
        None,
    )
    assert decided.view_for_auditors()["scope"] == "role sentinel"


def test_a_committees_quorum_counts(council: Council) -> None:
    with pytest.raises(UntrustedError) as caught:
        decided_by(council, 6)
    assert caught.value.reason == "no_quorum"
