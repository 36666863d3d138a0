"""Epochs that were decided: what anyone can check of them with the root alone, and how each lie is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chains import SECOND_NS, Line
from council import Council, ballot_body

from tocsin.contracts.catalogue import BALLOT
from tocsin.contracts.decisions import EpochChange, Equivocation, Misconduct, Option, RemovalCause, Scope
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role
from tocsin.evidence.bundle import Bundle
from tocsin.evidence.certificate import MAX_CHAIN, DecisionCertificate
from tocsin.evidence.epochs import Passage, make_epoch
from tocsin.evidence.succession import (
    DAY_NS,
    allowance,
    next_epoch,
    pack_epoch,
    succession_of,
    unpack_epoch,
)
from tocsin.evidence.verification import verify, verify_within

ABSENT, QUARANTINED, RENEWED, REVOKED, MISCONDUCT = (
    RemovalCause.ABSENT,
    RemovalCause.QUARANTINED,
    RemovalCause.RENEWED,
    RemovalCause.REVOKED,
    RemovalCause.MISCONDUCT,
)


@pytest.fixture(scope="module")
def line() -> Line:
    """A root's epoch and three that were decided after it."""
    line = Line()
    for _ in range(3):
        line.go_on()
    return line


def test_a_bundle_is_verified_with_the_root_alone(line: Line) -> None:
    verified = verify(line.bundle().encode(), line.council.root.certificate_pem)
    assert (verified.epoch, verified.chain, verified.participants) == (3, 3, 24)
    assert verified.view_for_auditors()["epoch"] == {
        "number": 3,
        "digest": line.epoch.digest.hex(),
        "chain": 3,
    }


def test_who_believes_the_epoch_needs_no_links(line: Line) -> None:
    data = line.certificate().encode()
    believed = {line.epoch.digest: line.epoch}
    assert verify(data, line.council.root.certificate_pem, believed=believed).epoch == 3
    assert verify_within(data, line.epoch).epoch == 3


Lie = Callable[[Line, Bundle], Bundle]


def _other_line(line: Line) -> Line:
    other = Line(line.council)
    other.epoch = line.council.epoch
    other.go_on()
    return other


def _decided_to_keep(line: Line, bundle: Bundle) -> Bundle:
    """A link that is a decision of its epoch, and for keeping it."""
    first = Line(line.council)
    link = first.link(first.proposal(first.change([first.newcomer()])), option=1)
    (decision,) = _decisions((link,))
    certificate = DecisionCertificate.decode(bundle.certificate)
    return Bundle(replace(certificate, chain=(decision,)).encode(), (link,))


def _decisions(links: tuple[bytes, ...]) -> tuple[bytes, ...]:
    from tocsin.evidence.verification import named

    return tuple(named(link) for link in links)


def _few(link: bytes) -> bytes:
    certificate = DecisionCertificate.decode(link)
    return replace(certificate, ballots=certificate.ballots[:-3]).encode()


LIES: dict[str, tuple[str, Lie]] = {
    "no_links": ("missing_link", lambda _, b: Bundle(b.certificate, ())),
    "a_link_left_out": ("missing_link", lambda _, b: Bundle(b.certificate, (b.links[0], b.links[2]))),
    "wrong_order": ("wrong_order", lambda _, b: Bundle(b.certificate, tuple(reversed(b.links)))),
    "a_link_too_many": (
        "wrong_link",
        lambda line, b: Bundle(b.certificate, (*b.links, _other_line(line).links[0])),
    ),
    "a_link_twice": ("wrong_link", lambda _, b: Bundle(b.certificate, (*b.links, b.links[0]))),
    "a_certificate_of_another_record": (
        "missing_link",
        lambda line, b: Bundle(b.certificate, (*b.links[:2], _other_line(line).links[0])),
    ),
    "a_chain_of_another_record": (
        "wrong_epoch",
        lambda line, b: _rechained(b, (_other_line(line).links[0],)),
    ),
    "a_chain_that_is_shorter": ("wrong_epoch", lambda _, b: _rechained(b, b.links[:2])),
    "a_link_of_another_chain": ("wrong_chain", lambda _, b: _rechained(b, b.links[1:])),
    "a_link_without_its_quorum": (
        "no_quorum",
        lambda _, b: Bundle(b.certificate, (_few(b.links[0]), *b.links[1:])),
    ),
    "a_decision_to_keep_the_epoch": ("no_next_epoch", _decided_to_keep),
    "an_ordinary_decision_as_a_link": (
        "no_next_epoch",
        lambda line, b: _rechained(b, (line.council.certificate().encode(),)),
    ),
    "another_root": (
        "wrong_root",
        lambda _, b: Bundle(
            replace(DecisionCertificate.decode(b.certificate), epoch=Council(agents=21).epoch.data).encode(),
            b.links,
        ),
    ),
}


def _rechained(bundle: Bundle, links: tuple[bytes, ...]) -> Bundle:
    certificate = DecisionCertificate.decode(bundle.certificate)
    return Bundle(replace(certificate, chain=_decisions(links)).encode(), links)


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_about_a_chain_has_its_own_reason(line: Line, lie: str) -> None:
    reason, tell = LIES[lie]
    with pytest.raises(TocsinError) as refused:
        verify(tell(line, line.bundle()).encode(), line.council.root.certificate_pem)
    assert refused.value.reason == reason


def test_a_certificate_without_its_links_says_where_to_get_them(line: Line) -> None:
    with pytest.raises(TocsinError) as refused:
        verify(line.certificate().encode(), line.council.root.certificate_pem)
    assert refused.value.reason == "missing_link"
    assert "export" in (refused.value.advice() or "")


@pytest.mark.parametrize("keep", [0, 1, 100, -1], ids=["nothing", "a_byte", "a_hundred", "all_but_one"])
def test_a_truncated_bundle_is_malformed(line: Line, keep: int) -> None:
    with pytest.raises(TocsinError) as refused:
        verify(line.bundle().encode()[:keep], line.council.root.certificate_pem)
    assert refused.value.reason == "malformed"


def test_forged_signatures_in_a_link_are_found(line: Line) -> None:
    bundle = line.bundle()
    forged = bytearray(bundle.links[1])
    certificate = DecisionCertificate.decode(bundle.links[1])
    forged[forged.index(certificate.votes[0]) + len(certificate.votes[0]) - 20] ^= 1
    with pytest.raises(TocsinError) as refused:
        verify(
            Bundle(bundle.certificate, (bundle.links[0], bytes(forged), bundle.links[2])).encode(),
            line.council.root.certificate_pem,
        )
    assert refused.value.reason in {"bad_signature", "bad_inclusion_proof", "malformed"}


def test_a_chain_ends_with_an_advice_to_have_the_root_sign() -> None:
    line = Line()
    full = replace(line.epoch, chain=tuple(bytes([i]) * 32 for i in range(MAX_CHAIN)))
    with pytest.raises(TocsinError) as refused:
        next_epoch(full, line.change([line.newcomer()]), bytes(32), line.council.backend)
    assert refused.value.reason == "chain_too_long"
    assert "checkpoint" in (refused.value.advice() or "")


# --- The rule -----------------------------------------------------------------------------------

Change = Callable[[Line], EpochChange]


def _renewed(line: Line, cause: RemovalCause = RENEWED) -> EpochChange:
    who = line.council.voters[1]
    seat = line.newcomer().model_copy(update={"sender": str(who)})
    return line.change([seat], [(who, cause)])


BROKEN: dict[str, tuple[str, Change]] = {
    "nothing": ("bad_change", lambda line: line.change()),
    "not_the_next": (
        "wrong_number",
        lambda line: line.change([line.newcomer()]).model_copy(update={"number": 2}),
    ),
    "not_later": ("wrong_order", lambda line: line.change([line.newcomer()], after_s=0)),
    "two_absent_of_21": (
        "too_many_removals",
        lambda line: line.change((), [(who, ABSENT) for who in line.council.voters[1:3]]),
    ),
    "one_absent_and_one_quarantined": (
        "too_many_removals",
        lambda line: line.change((), [(line.council.voters[1], ABSENT), (line.council.voters[2], QUARANTINED)]),
    ),
    "who_has_no_seat_goes": (
        "unknown_seat",
        lambda line: line.change((), [(line.council.services[0], ABSENT)]),
    ),
    "who_has_a_seat_joins": (
        "duplicate_participant",
        lambda line: line.change([line.seat(line.council.voters[1])]),
    ),
    "out_and_in_with_one_key": (
        "bad_change",
        lambda line: line.change([line.seat(line.council.voters[1])], [(line.council.voters[1], QUARANTINED)]),
    ),
    "renewed_and_gone": ("bad_change", lambda line: line.change((), [(line.council.voters[1], RENEWED)])),
    "misconduct_without_proof": (
        "bad_change",
        lambda line: line.change((), [(line.council.voters[1], MISCONDUCT)]),
    ),
    "not_in_order": (
        "bad_change",
        lambda line: line.change([line.newcomer()]).model_copy(
            update={"joined": (line.newcomer(), line.newcomer())[::-1]}
        ),
    ),
    "an_instance_joins": (
        "bad_epoch",
        lambda line: line.change([line.seat(line.council.services[0])]),
    ),
    "an_instance_s_key_joins": (
        "shared_key",
        lambda line: line.change(
            [line.newcomer().model_copy(update={"key_id": line.seat(line.council.services[0]).key_id})]
        ),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_change_that_breaks_the_rule_makes_no_epoch(what: str) -> None:
    line = Line()
    reason, change = BROKEN[what]
    with pytest.raises(TocsinError) as refused:
        next_epoch(line.epoch, change(line), bytes(32), line.council.backend)
    assert refused.value.reason == reason


def test_one_of_21_may_be_absent_a_day_and_a_renewal_counts_like_it() -> None:
    line = Line()
    assert allowance(line.epoch, line.epoch.epoch.created_ns) == 1
    line.go_on(_renewed(line))
    assert len(line.epoch.seats) == 21
    assert allowance(line.epoch, line.epoch.epoch.created_ns + DAY_NS - 1) == 0
    assert allowance(line.epoch, line.epoch.epoch.created_ns + DAY_NS) == 1


def test_the_daily_share_is_of_the_fewest_seats_of_the_day() -> None:
    line = Line()
    passages = (
        Passage(0, 30, 0),
        Passage(10 * SECOND_NS, 100, 3),
        Passage(20 * SECOND_NS, 97, 2),
    )
    epoch = replace(line.epoch, passages=passages)
    at_ns = DAY_NS + 10 * SECOND_NS  # epoch 1 was made a day ago: its removals are past, and it was in force
    assert allowance(epoch, at_ns) == 97 * 5 // 100 - 2
    assert allowance(epoch, at_ns - 1) == 0, "the epoch of 30 was in force then: one, and five are gone"


def test_a_revoked_key_is_replaced_without_counting() -> None:
    line = Line()
    line.go_on(_renewed(line, REVOKED))
    assert allowance(line.epoch, line.epoch.epoch.created_ns) == 1


def proven(line: Line, position: int = 1) -> Misconduct:
    """Return the proof that a voter has signed two ballots."""
    council = line.sitting()
    who = council.voters[position]
    decision = bytes([7]) * 32
    first, second = (
        council.sign([(who, BALLOT, ballot_body(council.epoch.digest, decision, option))])[0]
        for option in (0, 1)
    )
    proof = Equivocation(
        epoch=council.epoch.digest, decision=decision, round=1, accused=str(who), first=first, second=second
    )
    return Misconduct(proof=proof, public_key=council.keys[str(who)].signer.public_key)


def test_who_is_proven_to_have_broken_its_word_goes_without_counting_and_anyone_can_check() -> None:
    line = Line()
    proof = proven(line)
    line.go_on(line.change((), [(line.council.voters[1], MISCONDUCT)], [proof]))
    assert proof.proof.accused not in line.epoch.seats
    assert allowance(line.epoch, line.epoch.epoch.created_ns) == 1
    assert verify(line.bundle().encode(), line.council.root.certificate_pem).participants == 20


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("no_contradiction", {"second": None}),
        ("wrong_epoch", {"epoch": bytes(32)}),
    ],
    ids=["the_same_ballot_twice", "of_another_epoch"],
)
def test_a_proof_of_misconduct_that_does_not_hold_removes_nobody(
    reason: str, spoil: dict[str, bytes | None]
) -> None:
    line = Line()
    proof = proven(line)
    update = {key: value if value is not None else proof.proof.first for key, value in spoil.items()}
    lie = proof.model_copy(update={"proof": proof.proof.model_copy(update=update)})
    change = line.change((), [(line.council.voters[1], MISCONDUCT)], [lie])
    with pytest.raises(TocsinError) as refused:
        next_epoch(line.epoch, change, bytes(32), line.council.backend)
    assert refused.value.reason == reason


# --- The proposal -------------------------------------------------------------------------------


def test_a_proposal_names_the_record_that_its_change_makes() -> None:
    line = Line()
    body = line.proposal(line.change([line.newcomer()]))
    keep, install = body.options[1], body.options[0]
    named = install.model_copy(update={"epoch": bytes(32)})
    lies: dict[str, dict[str, Any]] = {
        "wrong_record": {"options": (named, keep)},
        "wrong_epoch": {"epoch": bytes(32)},
        "bad_epoch_proposal": {"options": (keep, install)},
    }
    for reason, update in lies.items():
        with pytest.raises(TocsinError) as refused:
            succession_of(body.model_copy(update=update), bytes(32), line.epoch, line.council.backend)
        assert refused.value.reason == reason
    shapes: tuple[dict[str, Any], ...] = (
        {"change": None},
        {"scope": Scope(role=Role.SENTINEL)},
        {"options": (install, keep, Option(name="more", command=None, text=""))},
    )
    for shape in shapes:
        with pytest.raises(TocsinError) as refused:
            succession_of(body.model_copy(update=shape), bytes(32), line.epoch, line.council.backend)
        assert refused.value.reason == "bad_epoch_proposal"


def test_the_record_does_not_depend_on_who_computes_it_and_names_the_one_before() -> None:
    line = Line()
    change = line.change([line.newcomer()])
    one, other = (next_epoch(line.epoch, change, bytes([i]) * 32, line.council.backend) for i in (1, 2))
    assert one.digest == other.digest
    assert one.epoch == make_epoch(
        number=1,
        trust_domain=line.epoch.epoch.trust_domain,
        participants=[*map(line.council.seat, line.council.voters)],
        instances=[*map(line.council.seat, line.council.services)],
        created_ns=change.created_ns,
        previous=line.epoch.digest,
    )


def test_a_decided_epoch_comes_back_from_the_log_of_who_kept_it(line: Line) -> None:
    kept = pack_epoch(line.epoch)
    assert unpack_epoch(kept, line.council.trust) == line.epoch
    with pytest.raises(TocsinError):
        unpack_epoch(kept, Council().trust)
    with pytest.raises(TocsinError):
        unpack_epoch(kept[:-1], line.council.trust)
