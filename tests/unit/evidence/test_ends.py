"""An end is believed for the commit in it, and for nothing else."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from council import Council, proposal_body
from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.catalogue import DECISION
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome
from tocsin.contracts.errors import TocsinError
from tocsin.crypto import BatchVerifier
from tocsin.evidence.choices import Question, close_value, decide_value, insufficient_value
from tocsin.evidence.closure import Closure, is_closure, verify_closure
from tocsin.evidence.ends import ANNOUNCED_TO, verify_announcement, verify_end

OTHER = Option(name="wait", command=None, text="Wait")


@cache
def council() -> Council:
    return Council(instances=4)


def check(announced: DecisionAnnounced) -> None:
    one = council()
    keys = {one.seat(who)[1]: one.keys[str(who)].signer.public_key for who in one.services}
    verify_end(announced, one.epoch, keys.get, one.backend, BatchVerifier(8))


@cache
def end(outcome: Outcome = Outcome.DECIDED, round_number: int = 1) -> DecisionAnnounced:
    """Return a true end; of a later round, one that asked about `OTHER` and the first option."""
    one = council()
    proposal = one.propose(proposal_body(one.epoch.digest, rounds=3))
    options = proposal.body.options if round_number == 1 else (OTHER, proposal.body.options[0])
    question = Question(proposal.leaf, round_number, options)
    value = {
        Outcome.DECIDED: decide_value(proposal.leaf, round_number, question.choice(0)),
        Outcome.CLOSED: close_value(proposal.leaf, round_number),
        Outcome.INSUFFICIENT: insufficient_value(proposal.leaf, round_number),
    }[outcome]
    voters = one.services[: one.epoch.instance_quorum]
    return DecisionAnnounced(
        decision=proposal.leaf,
        epoch=one.epoch.digest,
        outcome=outcome,
        why="",
        option=options[0] if outcome is Outcome.DECIDED else None,
        certificate=None,
        certificate_bytes=0,
        object_name=None,
        round=round_number,
        options=() if round_number == 1 else options,
        participants=7,
        quorum=5,
        ballots_for=5,
        ballots_received=5,
        missing=(),
        elapsed_ms=1.0,
        commit=tuple(one.vote(proposal.leaf, value, who, round_number=round_number) for who in voters),
        keys=one.public_keys([one.admin, *one.services]),
        proposal=proposal.data,
    )


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("round_number", [1, 2])
def test_a_true_end_holds(outcome: Outcome, round_number: int) -> None:
    check(end(outcome, round_number))


FIRST, SECOND = proposal_body(bytes(32)).options


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"outcome": Outcome.CLOSED, "option": None}, "wrong_outcome"),
        ({"option": SECOND}, "wrong_outcome"),
        ({"option": None}, "wrong_outcome"),
        ({"round": 2, "options": (FIRST, SECOND)}, "bad_quorum_cert"),
        ({"commit": ()}, "no_quorum_cert"),
        ({"epoch": bytes(32)}, "wrong_epoch"),
        ({"decision": bytes(32)}, "wrong_decision"),
    ],
)
def test_a_lie_about_an_end_does_not(lie: dict[str, Any], reason: str) -> None:
    with pytest.raises(TocsinError) as caught:
        check(end().model_copy(update=lie))
    assert caught.value.reason == reason


def test_an_option_of_a_later_round_is_bound_to_all_that_the_round_asked() -> None:
    true = end(Outcome.DECIDED, 2)
    command = FIRST if FIRST.command else SECOND
    for options in [(true.options[0], SECOND), (command, true.options[1]), true.options[::-1], ()]:
        lie = true.model_copy(update={"options": options, "option": options[0] if options else OTHER})
        with pytest.raises(TocsinError) as caught:
            check(lie)
        assert caught.value.reason == "wrong_outcome"


def test_too_few_instances_or_one_twice_commit_nothing() -> None:
    true = end()
    for commit, reason in [
        (true.commit[:2], "no_quorum_cert"),
        ((*true.commit[:2], true.commit[0]), "duplicate_instance"),
    ]:
        with pytest.raises(TocsinError) as caught:
            check(true.model_copy(update={"commit": commit}))
        assert caught.value.reason == reason


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_commit_can_be_changed(position: int, bit: int) -> None:
    true = end(Outcome.CLOSED)
    whole = true.commit[0]
    changed = bytearray(whole)
    changed[position % len(whole)] ^= 1 << bit
    with pytest.raises(TocsinError):
        check(true.model_copy(update={"commit": (bytes(changed), *true.commit[1:])}))


@given(junk=st.binary(max_size=200))
def test_any_bytes_in_the_place_of_evidence_are_refused(junk: bytes) -> None:
    for update in ({"commit": (junk,) * 3}, {"proposal": junk}):
        with pytest.raises(TocsinError):
            check(end().model_copy(update=update))


# --- An announcement of any age, and the file that keeps it -------------------------------------------


def announced(body: DecisionAnnounced, by: int = 0) -> bytes:
    return council().sign([(council().services[by], DECISION, body)], audience=ANNOUNCED_TO)[0]


def verified(data: bytes) -> DecisionAnnounced:
    one = council()
    return verify_announcement(data, {one.epoch.digest: one.epoch}.get, one.backend).body


@pytest.mark.parametrize("outcome", Outcome)
def test_an_announcement_holds_by_what_it_brings(outcome: Outcome) -> None:
    body = end(outcome, 2)
    assert verified(announced(body, by=3)) == body


def test_an_announcement_without_a_key_of_an_unknown_epoch_or_of_a_stranger_does_not() -> None:
    one, body = council(), end(Outcome.CLOSED)
    for keys in [(), one.public_keys(one.services), one.public_keys([one.admin, *one.services[1:]])]:
        with pytest.raises(TocsinError) as caught:
            verified(announced(body.model_copy(update={"keys": keys})))
        assert caught.value.reason == "unknown_key"
    with pytest.raises(TocsinError) as caught:
        verified(announced(body.model_copy(update={"epoch": bytes(32)})))
    assert caught.value.reason == "unknown_epoch"
    with pytest.raises(TocsinError) as caught:
        verified(one.sign([(one.admin, DECISION, body)], audience=ANNOUNCED_TO)[0])
    assert caught.value.reason == "sender_not_allowed"


def closure(outcome: Outcome = Outcome.CLOSED) -> bytes:
    return Closure(council().epoch.data, (), announced(end(outcome))).encode()


def test_a_closure_is_verified_with_the_root_alone() -> None:
    root = council().root.certificate_pem
    data = closure()
    assert is_closure(data)
    closed = verify_closure(data, root)
    assert closed.ended.outcome is Outcome.CLOSED
    assert json.loads(closed.json())["proposer"] == str(council().admin)
    with pytest.raises(TocsinError) as caught:
        verify_closure(data, Council().root.certificate_pem)
    assert caught.value.reason == "wrong_root"
    with pytest.raises(TocsinError) as caught:
        verify_closure(closure(Outcome.DECIDED), root)
    assert caught.value.reason == "wrong_outcome"


@given(position=st.integers(0, 1_000_000), bit=st.integers(0, 7), cut=st.booleans())
def test_a_closure_with_one_bit_changed_or_its_end_cut_off_proves_nothing(
    position: int, bit: int, cut: bool
) -> None:
    data = closure()
    place = position % len(data)
    changed = bytearray(data[:place] if cut else data)
    if not cut:
        changed[place] ^= 1 << bit
    with pytest.raises(TocsinError):
        verify_closure(bytes(changed), council().root.certificate_pem)


@given(junk=st.binary(max_size=400))
def test_any_bytes_are_a_closure_or_one_of_our_errors(junk: bytes) -> None:
    begins = closure()[:16]
    for data in (junk, begins + junk):
        with pytest.raises(TocsinError):
            Closure.decode(data)
