"""A decision of a later round: what it asked is proven by the round before, or the certificate does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from council import DENY, OPTIONS, Council, ballot_in, proposal_body

from tocsin.bus.envelope import encode_body
from tocsin.contracts.catalogue import BALLOT, VOTE
from tocsin.contracts.decisions import Ballot, Choice, Option, RoundOpened, Scope, Step, Vote
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import BatchVerifier
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import Question, check_ballot
from tocsin.evidence.rounds import verify_opened
from tocsin.evidence.verification import VerifiedDecision, verify

WATCH = Option(name="watch", command=None, text="Watch it")
V2 = (WATCH, *OPTIONS)
OTHER = Option(name="limit", command=DENY.model_copy(update={"duration_s": 60}), text="Block it for a minute")


@pytest.fixture(scope="module")
def council() -> Council:
    """Seven agents, and four instances: Q = 3."""
    return Council(instances=4)


def votes(
    council: Council, question: Question, value: bytes, *, view: int = 1, who: slice = slice(3)
) -> tuple[bytes, ...]:
    body = Vote(
        step=Step.VOTE2,
        epoch=council.epoch.digest,
        decision=question.decision,
        round=question.round,
        view=view,
        value=value,
    )
    return tuple(council.sign([(one, VOTE, body)])[0] for one in council.services[who])


def ballots(council: Council, question: Question, choice: int | Option | None) -> tuple[bytes, ...]:
    body = ballot_in(council.epoch.digest, question, choice)
    return tuple(council.sign([(who, BALLOT, body)])[0] for who in council.voters[:5])


def made(council: Council, options: tuple[Option, ...] = V2, rounds: int = 3) -> DecisionCertificate:
    """Return the certificate of a decision for the first option of the second round."""
    proposal = council.propose(proposal_body(council.epoch.digest, rounds=rounds))
    first = Question.first(proposal.leaf, proposal.body)
    second = Question(proposal.leaf, 2, options)
    return DecisionCertificate(
        epoch=council.epoch.data,
        chain=council.epoch.chain,
        proposal=proposal.data,
        options=tuple(map(encode_body, options)),
        before=votes(council, first, first.next(options)),
        ballots=ballots(council, second, 0),
        votes=votes(council, second, second.decide(0)),
        keys=council.public_keys([*council.voters[:5], *council.services[:3]]),
    )


def question_of(council: Council, number: int, options: tuple[Option, ...]) -> Question:
    return Question(council.propose(proposal_body(council.epoch.digest, rounds=3)).leaf, number, options)


def check(council: Council, certificate: DecisionCertificate) -> VerifiedDecision:
    return verify(certificate.encode(), council.root.certificate_pem)


def test_a_decision_of_the_second_round_verifies_with_the_root_alone(council: Council) -> None:
    decided = check(council, made(council))
    assert (decided.round, decided.option) == (2, WATCH)
    assert decided.proposal.options == OPTIONS


def reordered(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001 - all have one form
    return replace(made, options=made.options[::-1])


def other_option(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, options=(encode_body(OTHER), *made.options[1:]))


def one_option(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, options=made.options[:1])


def no_options(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, options=())


def other_encoding(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    """The same map with a length of three bytes, where one does."""
    first = made.options[0]
    return replace(made, options=(b"\xde\x00" + bytes((first[0] & 0x0F,)) + first[1:], *made.options[1:]))


def unproven(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, before=())


def too_few(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, before=made.before[:2])


def one_twice(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, before=(*made.before[:2], made.before[0]))


def of_the_round_itself(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, before=made.votes)


def of_two_views(c: Council, made: DecisionCertificate) -> DecisionCertificate:
    decision = verify(made.encode(), c.root.certificate_pem).decision
    first = Question(decision, 1, OPTIONS)
    later = votes(c, first, first.next(V2), view=2, who=slice(2, 3))
    return replace(made, before=(*made.before[:2], *later))


def of_an_agent(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    return replace(made, before=(*made.before[:2], made.ballots[0]))


def of_the_first_round(c: Council, made: DecisionCertificate) -> DecisionCertificate:
    """What proves a later round proves nothing where there is none before."""
    first = c.certificate()
    return replace(first, options=made.options, before=made.before)


def tampered(c: Council, made: DecisionCertificate) -> DecisionCertificate:  # noqa: ARG001
    broken = bytearray(made.before[-1])
    broken[len(broken) // 2] ^= 1  # within the signature, which is most of it
    return replace(made, before=(*made.before[:-1], bytes(broken)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (reordered, "wrong_options"),
        (other_option, "wrong_options"),
        (one_option, "malformed"),
        (no_options, "malformed"),
        (other_encoding, "malformed"),
        (unproven, "no_quorum_cert"),
        (too_few, "no_quorum_cert"),
        (one_twice, "duplicate_instance"),
        (of_the_round_itself, "bad_quorum_cert"),
        (of_two_views, "bad_quorum_cert"),
        (of_an_agent, "wrong_type"),
        (of_the_first_round, "wrong_options"),
        (tampered, "bad_signature"),
    ],
)
def test_what_a_round_asked_has_to_be_proven(
    council: Council, change: Callable[[Council, DecisionCertificate], DecisionCertificate], reason: str
) -> None:
    with pytest.raises(TocsinError) as caught:
        check(council, change(council, made(council)))
    assert caught.value.reason == reason


def test_a_round_that_the_proposal_does_not_allow_is_refused(council: Council) -> None:
    with pytest.raises(TocsinError) as caught:
        check(council, made(council, rounds=1))
    assert caught.value.reason == "wrong_round"


def test_a_ballot_for_one_list_of_options_is_none_for_another() -> None:
    """Even if every instance lies about what the round asks, q ballots are for one and the same option."""
    one, other = (Question(bytes(32), 2, options) for options in (V2, V2[::-1]))
    ballot = ballot_in(bytes(32), one, 1)
    assert check_ballot(ballot, one) == 1
    with pytest.raises(InvalidInputError) as caught:
        check_ballot(ballot, other)
    assert caught.value.reason == "bad_choice"


@pytest.mark.parametrize(
    "change",
    [
        {"choice": Choice.OPTION},
        {"choice": Choice.ABSTAIN},
        {"option": 0},
        {"counter": None},
        {"counter": OTHER},
        {"choice": Choice.OPTION, "counter": None, "option": 3},
    ],
    ids=["as_option", "as_abstention", "with_option", "without", "of_another", "no_such_option"],
)
def test_a_counter_proposal_says_one_thing(change: dict[str, object]) -> None:
    question = Question(bytes(32), 2, V2)
    good = ballot_in(bytes(32), question, Option(name="lure", command=None, text="Lead it to a honeypot"))
    assert isinstance(check_ballot(good, question), Option)
    bad = Ballot.model_validate(good.model_dump() | change)
    with pytest.raises(InvalidInputError) as caught:
        check_ballot(bad, question)
    assert caught.value.reason == "bad_choice"


def opened(council: Council, question: Question, options: tuple[Option, ...]) -> RoundOpened:
    before = Question(question.decision, question.round - 1, OPTIONS)
    return RoundOpened(
        epoch=council.epoch.digest,
        decision=question.decision,
        round=question.round,
        options=question.options,
        commit=votes(council, before, before.next(options)),
        keys=council.public_keys(council.services[:3]),
    )


def opens(
    council: Council, body: RoundOpened, scope: Scope | None = None, proposer: SpiffeId | None = None
) -> Question:
    proposal = proposal_body(council.epoch.digest, rounds=3)
    proposal = proposal.model_copy(update={"scope": scope or Scope()})
    batches = BatchVerifier(64)
    opening = verify_opened(
        body, proposal, proposer or council.admin, council.epoch, lambda _: None, council.backend, batches
    )
    return opening.question


def test_that_a_round_has_begun_is_believed_by_its_commit_alone(council: Council) -> None:
    question = question_of(council, 2, V2)
    assert opens(council, opened(council, question, V2)) == question


def test_a_key_that_the_epoch_does_not_name_counts_for_nothing(council: Council) -> None:
    body = opened(council, question_of(council, 2, V2), V2)
    for keys in ((), (council.new_key().signer.public_key,)):
        with pytest.raises(TocsinError) as caught:
            opens(council, body.model_copy(update={"keys": keys}))
        assert caught.value.reason == "unknown_key"


def test_options_that_were_not_committed_open_no_round(council: Council) -> None:
    with pytest.raises(TocsinError) as caught:
        opens(council, opened(council, question_of(council, 2, V2), OPTIONS))
    assert caught.value.reason == "wrong_options"


def test_a_round_of_another_epoch_is_none(council: Council) -> None:
    body = opened(council, question_of(council, 2, V2), V2).model_copy(update={"epoch": bytes(32)})
    with pytest.raises(TocsinError) as caught:
        opens(council, body)
    assert caught.value.reason == "wrong_epoch"


def test_a_committee_is_asked_no_command_in_a_later_round_either(council: Council) -> None:
    with pytest.raises(TocsinError) as caught:
        opens(council, opened(council, question_of(council, 2, V2), V2), Scope(role=Role.SENTINEL))
    assert caught.value.reason == "committee_cannot_command"


@pytest.mark.parametrize("role", [Role.HUNTER, Role.ANALYST])
def test_a_question_of_who_may_propose_no_command_becomes_none_in_a_later_round(
    council: Council, role: Role
) -> None:
    with pytest.raises(TocsinError) as caught:
        opens(
            council,
            opened(council, question_of(council, 2, V2), V2),
            None,
            SpiffeId.agent("tocsin.local", role, "a"),
        )
    assert caught.value.reason == "proposer_not_allowed"
