"""A certificate holds as a whole or not at all, and says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from council import Council, ballot_body, proposal_body

from tocsin.contracts.catalogue import BALLOT, CONSENSUS_PROPOSAL
from tocsin.contracts.decisions import Step
from tocsin.contracts.errors import TocsinError
from tocsin.crypto import BatchVerifier
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import choice_digest, close_value, decide_value
from tocsin.evidence.reading import read
from tocsin.evidence.verification import CONSENSUS_AUDIENCE, VerifiedDecision, verify, verify_within


@pytest.fixture(scope="module")
def council() -> Council:
    return Council()


def check(council: Council, certificate: DecisionCertificate) -> VerifiedDecision:
    return verify(certificate.encode(), council.root.certificate_pem)


def test_a_certificate_verifies_with_the_root_alone(council: Council) -> None:
    decided = check(council, council.certificate())
    assert decided.option.name == "deny"
    assert decided.command is not None
    assert decided.voters == tuple(sorted(map(str, council.voters[:5])))
    assert (decided.participants, decided.quorum, decided.ballots_verified) == (7, 5, 5)
    assert (decided.instances_total, decided.instance_faults) == (1, 0)
    assert decided.byzantine_tolerant
    assert decided.revocation == "unknown"
    # The root's, the admin's proposal and ballot, two hosts with two ballots each, one vote.
    assert decided.signatures_verified == 6


def test_what_was_read_before_stands_in_for_its_own_bytes_only(council: Council) -> None:
    certificate, other = council.certificate(), council.certificate(option=1)
    was_read = [read(data, BALLOT, audience=CONSENSUS_AUDIENCE) for data in certificate.ballots]
    verified = partial(verify_within, epoch=council.epoch, was_read=was_read)
    plainly = verify_within(certificate.encode(), council.epoch)
    assert verified(certificate.encode()) == plainly
    assert verify_within(certificate.encode(), council.epoch, was_read=[None, *was_read, *was_read]) == plainly
    assert verified(other.encode()) == verify_within(other.encode(), council.epoch)
    for lie in (
        replace(certificate, ballots=(*certificate.ballots[:4], certificate.ballots[4][:-1] + b"\x00")),
        replace(certificate, ballots=certificate.ballots[:4]),
        replace(certificate, ballots=(*certificate.ballots[:4], other.ballots[4])),
    ):
        with pytest.raises(TocsinError) as caught:
            verify_within(lie.encode(), council.epoch)
        with pytest.raises(TocsinError) as same:
            verified(lie.encode())
        assert same.value.reason == caught.value.reason


def test_an_auditor_reads_it_as_json(council: Council) -> None:
    shown = json.loads(check(council, council.certificate()).json())
    assert shown["command"] == {
        "action": "deny",
        "target": {"ipv4_net": "203.0.113.9"},
        "args": {"duration": 3_600_000},
    }
    assert shown["quorum"] == 5
    assert len(shown["voters"]) == 5


def test_four_instances_need_three() -> None:
    council = Council(instances=4)
    certificate = council.certificate()
    assert len(check(council, certificate).instances) == 3
    with pytest.raises(TocsinError) as caught:
        check(council, replace(certificate, votes=certificate.votes[:2]))
    assert caught.value.reason == "no_commit"


def test_too_many_seats_of_one_key_are_said() -> None:
    council = Council(agents=7, per_host=3)
    decided = check(council, council.certificate())
    assert not decided.byzantine_tolerant
    assert "3 of 7 seats" in decided.why_not


def test_revocations_are_reported_and_change_nothing_else(council: Council) -> None:
    certificate = council.certificate()
    revoked = council.seat(council.voters[1])[1]
    data, root = certificate.encode(), council.root.certificate_pem
    assert verify(data, root, revocations=()).revocation == "none"
    decided = verify(data, root, revocations={revoked})
    assert decided.revocation == "revoked"
    assert decided.revoked == tuple(sorted(map(str, council.voters[1:3])))


def test_another_root_is_refused(council: Council) -> None:
    with pytest.raises(TocsinError) as caught:
        verify(council.certificate().encode(), Council().root.certificate_pem)
    assert caught.value.reason == "wrong_root"


def fewer(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(
        c, ballots=c.ballots[:-1], keys=council.public_keys([*council.voters[:4], *council.services])
    )


def twice(_: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, ballots=(*c.ballots[:-1], c.ballots[0]))


def wrong_key(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    body = ballot_body(council.epoch.digest, decision_of(council, c), 0)
    forged = council.sign([(council.voters[4], BALLOT, body)], key=council.keys[str(council.voters[5])])
    return replace(c, ballots=(*c.ballots[:4], *forged))


def stranger(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    other = Council(agents=9)
    council.keys[str(other.voters[8])] = other.keys[str(other.voters[8])]
    body = ballot_body(council.epoch.digest, decision_of(council, c), 0)
    return replace(c, ballots=(*c.ballots[:4], *council.sign([(other.voters[8], BALLOT, body)])))


def other_epoch(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, epoch=council.sign_epoch(council.epoch_record(1)))


def ballots_of_other_epoch(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    body = ballot_body(bytes(32), decision_of(council, c), 0)
    return replace(c, ballots=(*c.ballots[:4], *council.sign([(council.voters[4], BALLOT, body)])))


def other_decision(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    body = proposal_body(council.epoch.digest, subject="another")
    return replace(c, proposal=council.propose(body).data)


def other_round(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    body = ballot_body(council.epoch.digest, decision_of(council, c), 0, round_number=2)
    return replace(c, ballots=(*c.ballots[:4], *council.sign([(council.voters[4], BALLOT, body)])))


def other_choice(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(
        c, ballots=(*c.ballots[:4], *council.ballots(decision_of(council, c), [(council.voters[4], 1)]))
    )


def lying_digest(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    decision = decision_of(council, c)
    body = ballot_body(council.epoch.digest, decision, 1)
    body = body.model_copy(update={"value": choice_digest(decision, 1, 0)})
    return replace(c, ballots=(*c.ballots[:4], *council.sign([(council.voters[4], BALLOT, body)])))


def abstentions(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    decision = decision_of(council, c)
    return replace(c, ballots=tuple(council.ballots(decision, [(who, None) for who in council.voters[:5]])))


def vote_of_an_agent(_: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, votes=(c.ballots[0],))


def vote_of_no_instance(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    other = Council(instances=2)
    council.keys[str(other.services[1])] = other.keys[str(other.services[1])]
    decision = decision_of(council, c)
    value = decide_value(decision, 1, choice_digest(decision, 1, 0))
    return replace(c, votes=(council.vote(decision, value, other.services[1]),))


def vote_for_another(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    decision = decision_of(council, c)
    value = decide_value(decision, 1, choice_digest(decision, 1, 1))
    return replace(c, votes=(council.vote(decision, value),))


def vote_to_close(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    decision = decision_of(council, c)
    return replace(c, votes=(council.vote(decision, close_value(decision, 1)),))


def first_vote_only(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    decision = decision_of(council, c)
    value = decide_value(decision, 1, choice_digest(decision, 1, 0))
    return replace(c, votes=(council.vote(decision, value, step=Step.VOTE1),))


def vote_twice(_: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, votes=c.votes * 2)


def no_vote(_: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, votes=())


def unused_key(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, keys=(*c.keys, council.new_key().signer.public_key))


def missing_key(_: Council, c: DecisionCertificate) -> DecisionCertificate:
    return replace(c, keys=c.keys[1:])


def proposed_by_a_sentinel(council: Council, c: DecisionCertificate) -> DecisionCertificate:
    body = proposal_body(council.epoch.digest)
    proposal = council.sign([(council.voters[1], CONSENSUS_PROPOSAL, body)], audience="all")[0]
    return replace(c, proposal=proposal)


def decision_of(council: Council, c: DecisionCertificate) -> bytes:
    return check(council, c).decision


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fewer, "no_quorum"),
        (twice, "duplicate_participant"),
        (wrong_key, "wrong_key"),
        (stranger, "not_a_participant"),
        (other_epoch, "wrong_epoch"),
        (ballots_of_other_epoch, "wrong_epoch"),
        (other_decision, "wrong_decision"),
        (other_round, "wrong_round"),
        (other_choice, "several_choices"),
        (lying_digest, "bad_choice"),
        (abstentions, "abstention"),
        (vote_of_an_agent, "wrong_type"),
        (vote_of_no_instance, "not_an_instance"),
        (vote_for_another, "wrong_value"),
        (vote_to_close, "wrong_value"),
        (first_vote_only, "wrong_step"),
        (vote_twice, "duplicate_instance"),
        (no_vote, "no_commit"),
        (unused_key, "unused_key"),
        (missing_key, "missing_key"),
        (proposed_by_a_sentinel, "proposer_not_allowed"),
    ],
)
def test_a_certificate_that_lacks_something_is_refused(
    council: Council, change: Callable[[Council, DecisionCertificate], DecisionCertificate], reason: str
) -> None:
    broken = change(council, council.certificate())
    with pytest.raises(TocsinError) as caught:
        check(council, broken)
    assert caught.value.reason == reason


def test_a_signature_beyond_the_quorum_has_to_hold_too(council: Council) -> None:
    """Bogus signatures are not let in behind the ones that suffice."""
    certificate = council.certificate(voters=council.voters[:6])
    assert check(council, certificate).ballots_verified == 6
    forged = bytearray(certificate.ballots[-1])
    place = forged.rindex(b"\xc5\x09\x74") + 3  # the header of a 2,420 byte signature
    forged[place] ^= 1
    with pytest.raises(TocsinError) as caught:
        check(council, replace(certificate, ballots=(*certificate.ballots[:-1], bytes(forged))))
    assert caught.value.reason == "bad_signature"


def test_a_memory_of_batches_saves_work_and_accepts_nothing_else(council: Council) -> None:
    batches = BatchVerifier()
    certificate = council.certificate()
    verify(certificate.encode(), council.root.certificate_pem, backend=council.backend, batches=batches)
    before = council.backend.counters.verifications
    verify(certificate.encode(), council.root.certificate_pem, backend=council.backend, batches=batches)
    assert council.backend.counters.verifications == before
    forged = bytearray(certificate.ballots[0])
    forged[forged.rindex(b"\xc5\x09\x74") + 9] ^= 4
    with pytest.raises(TocsinError):
        verify(
            replace(certificate, ballots=(bytes(forged), *certificate.ballots[1:])).encode(),
            council.root.certificate_pem,
            backend=council.backend,
            batches=batches,
        )
