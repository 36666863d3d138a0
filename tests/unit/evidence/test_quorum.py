"""The numbers of a vote, and the record that fixes who counts."""

from __future__ import annotations

import pytest
from council import DOMAIN, NOW_NS, Council

from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Authority, TrustStore
from tocsin.evidence.choices import choice_digest, close_value, decide_value
from tocsin.evidence.epochs import make_epoch, open_epoch
from tocsin.evidence.quorum import Quorum, instance_faults, instance_quorum, weakness


@pytest.mark.parametrize(
    ("n", "f", "q"),
    [(3, 0, 3), (4, 1, 3), (7, 2, 5), (40, 13, 27), (100, 33, 67), (847, 282, 568), (1500, 499, 1005)],
)
def test_numbers(n: int, f: int, q: int) -> None:
    quorum = Quorum.of(n)
    assert (quorum.tolerated_faults, quorum.needed, quorum.tolerated_silent) == (f, q, n - q)


def test_two_quorums_share_more_than_the_faulty() -> None:
    for n in range(1, 4097):
        quorum = Quorum.of(n)
        assert 2 * quorum.needed - n > quorum.tolerated_faults
        assert quorum.needed <= n or n < 3
        assert 100 * quorum.needed >= 67 * n


def test_numbers_of_instances() -> None:
    assert [(instance_quorum(m), instance_faults(m)) for m in (1, 4, 7)] == [(1, 0), (3, 1), (5, 2)]


def test_why_a_set_is_not_byzantine_tolerant() -> None:
    assert "f = 0" in weakness(Quorum.of(3), [b"a", b"b", b"c"])
    assert "3 of 7 seats" in weakness(Quorum.of(7), [b"a"] * 3 + [b"b", b"c", b"d", b"e"])
    assert weakness(Quorum.of(7), [b"a", b"a", b"b", b"b", b"c", b"c", b"d"]) == ""


def test_choices_and_outcomes_differ_wherever_they_should() -> None:
    a, b = bytes(32), bytes([1]) * 32
    values = [choice_digest(d, r, o) for d in (a, b) for r in (1, 2) for o in (None, 0, 1)]
    values += [decide_value(d, r, v) for d in (a, b) for r in (1, 2) for v in values[:2]]
    values += [close_value(d, r) for d in (a, b) for r in (1, 2)]
    assert len(set(values)) == len(values)


def test_an_epoch_is_opened_by_its_root_alone() -> None:
    council = Council()
    assert council.epoch.quorum == Quorum.of(7)
    assert council.epoch.byzantine_tolerant
    assert [seat.sender for seat in council.epoch.epoch.participants] == sorted(map(str, council.voters))
    stranger = Council()
    with pytest.raises(TocsinError) as caught:
        open_epoch(council.epoch.data, stranger.trust)
    assert caught.value.reason == "wrong_root"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quorum": 4}, "wrong_numbers"),
        ({"tolerated_faults": 1}, "wrong_numbers"),
        ({"instance_quorum": 2}, "wrong_numbers"),
        ({"trust_domain": "other.tocsin"}, "wrong_domain"),
    ],
)
def test_a_record_is_recomputed_though_the_root_signed_it(change: dict[str, object], reason: str) -> None:
    council = Council()
    record = council.epoch_record().model_copy(update=change)
    with pytest.raises(TocsinError) as caught:
        open_epoch(council.sign_epoch(record), council.trust)
    assert caught.value.reason == reason


def test_seats_that_break_a_rule_are_refused() -> None:
    council = Council()
    record = council.epoch_record()
    seats = record.participants
    for participants, reason in (
        ((*seats[:-1], seats[0]), "duplicate_participant"),
        (seats[::-1], "bad_epoch"),
        ((*seats[:-1], record.instances[0]), "bad_epoch"),
    ):
        broken = record.model_copy(update={"participants": participants})
        with pytest.raises(TocsinError) as caught:
            open_epoch(council.sign_epoch(broken), council.trust)
        assert caught.value.reason == reason


def test_fewer_than_three_participants_are_too_few() -> None:
    council = Council()
    agents = [council.seat(who) for who in council.voters[:2]]
    with pytest.raises(TocsinError) as caught:
        make_epoch(
            number=0,
            trust_domain=DOMAIN,
            participants=agents,
            instances=[council.seat(council.services[0])],
            created_ns=NOW_NS,
        )
    assert caught.value.reason == "too_few_participants"


def test_an_instance_has_a_key_of_its_own() -> None:
    council = Council()
    agents = [council.seat(who) for who in council.voters]
    shared = (council.services[0], agents[0][1], agents[0][2])
    with pytest.raises(TocsinError) as caught:
        make_epoch(number=0, trust_domain=DOMAIN, participants=agents, instances=[shared], created_ns=NOW_NS)
    assert caught.value.reason == "shared_key"


def test_a_seat_wants_its_own_key() -> None:
    council = Council()
    _, key_id, _ = council.seat(council.voters[1])
    for who, reason in (
        (council.admin, "wrong_key"),
        (SpiffeId.agent(DOMAIN, Role.GUARDIAN, "nobody"), "not_a_participant"),
    ):
        with pytest.raises(TocsinError) as caught:
            council.epoch.seat(who, key_id)
        assert caught.value.reason == reason


def test_the_store_of_another_domain_is_another_root() -> None:
    council = Council()
    other = Authority.create_root("else.tocsin", now=council.root.certificate.certificate.not_valid_before_utc)
    with pytest.raises(TocsinError) as caught:
        open_epoch(council.epoch.data, TrustStore(other.certificate_pem))
    assert caught.value.reason == "wrong_root"
