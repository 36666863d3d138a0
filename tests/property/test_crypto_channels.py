"""The channels' protocol alone: two ends agree or fail, and nothing that was changed is taken."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.channels import ANSWER_BYTES, OFFER_BYTES
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, TocsinError, UntrustedError
from tocsin.crypto.channels import (
    FRAME_BYTES,
    Answer,
    Initiation,
    Keys,
    Limits,
    Offer,
    Parties,
    Session,
    channel_of,
    respond,
)

PARTIES = Parties("spiffe://test.tocsin/agent/hunter/hunter-01", "spiffe://test.tocsin/agent/hunter/hunter-02")
KEYS = Keys(b"\x01" * 32, b"\x02" * 32)
QKD = (b"\x07" * 16, b"\x08" * 32)
OFFER_REASONS = {
    "bad_channel_offer",
    "bad_channel_limits",
    "bad_channel_answer",
    "wrong_parties",
    "wrong_offer",
    "qkd_not_offered",
}


def opened(limits: Limits = Limits(), qkd: tuple[bytes, bytes] | None = None) -> tuple[Session, Session]:  # noqa: B008 - frozen
    initiation = Initiation.begin(PARTIES, limits, qkd=qkd)
    answer, theirs = respond(initiation.offer, PARTIES, KEYS, qkd=qkd[1] if qkd else None)
    return initiation.finish(answer, KEYS), theirs


ONE, OTHER = opened()
INITIATION = Initiation.begin(PARTIES, qkd=QKD)
ANSWER, _ = respond(INITIATION.offer, PARTIES, KEYS, qkd=QKD[1])


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_the_models_bound_what_the_layouts_have() -> None:
    assert (len(INITIATION.offer), len(ANSWER)) == (OFFER_BYTES, ANSWER_BYTES)


@given(st.binary(max_size=OFFER_BYTES + 8) | st.binary(min_size=OFFER_BYTES, max_size=OFFER_BYTES))
def test_any_bytes_are_an_offer_or_one_of_our_errors(data: bytes) -> None:
    for read in (
        Offer.parse,
        lambda raw: respond(raw, PARTIES, KEYS),
        lambda raw: INITIATION.finish(raw, KEYS),
    ):
        try:
            read(data)
        except TocsinError as error:
            assert error.reason in OFFER_REASONS  # noqa: PT017 - it may pass


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_one_of_our_errors(data: bytes) -> None:
    for read in (channel_of, ONE.open):
        try:
            read(data)
        except TocsinError as error:
            assert error.reason in {"bad_frame", "unknown_channel"}  # noqa: PT017 - it may pass


@settings(max_examples=150)
@given(st.integers(0, OFFER_BYTES * 8 - 1))
def test_an_offer_that_was_changed_gives_no_channel(bit: int) -> None:
    """An envelope's signature excludes it; the transcript does so once more."""
    try:
        answer, _ = respond(flipped(INITIATION.offer, bit), PARTIES, KEYS, qkd=QKD[1])
        INITIATION.finish(answer, KEYS)
    except TocsinError:
        return
    raise AssertionError("a changed offer was taken")


@settings(max_examples=150)
@given(st.integers(0, ANSWER_BYTES * 8 - 1))
def test_an_answer_that_was_changed_gives_no_channel(bit: int) -> None:
    with pytest.raises(TocsinError) as refused:
        INITIATION.finish(flipped(ANSWER, bit), KEYS)
    assert refused.value.reason in {"bad_channel_answer", "wrong_offer", "bad_confirmation", "qkd_not_used"}


@given(st.binary(max_size=64), st.integers(min_value=0))
def test_a_frame_that_was_changed_is_refused_and_changes_nothing(plaintext: bytes, where: int) -> None:
    one, other = opened_once()
    frame = one.seal(plaintext)
    with pytest.raises(TocsinError):
        other.open(flipped(frame, where % (len(frame) * 8)))
    assert other.open(frame) == plaintext
    assert len(frame) == len(plaintext) + FRAME_BYTES


_PAIR: list[tuple[Session, Session]] = []


def opened_once() -> tuple[Session, Session]:
    if not _PAIR:
        _PAIR.append(opened())
    return _PAIR[0]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40), st.booleans()), max_size=40))
def test_each_direction_delivers_in_order_what_was_not_lost(sent: list[tuple[bool, bytes, bool]]) -> None:
    one, other = opened_once()
    for forth, data, lost in sent:
        sender, receiver = (one, other) if forth else (other, one)
        frame = sender.seal(data)
        if not lost:
            assert receiver.open(frame) == data
            with pytest.raises(UntrustedError, match="again") as refused:
                receiver.open(frame)
            assert refused.value.reason == "replayed_frame"
            with pytest.raises(UntrustedError):
                sender.open(frame)  # its own, reflected


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.booleans(), st.sampled_from(["none", "key", "id", "parties"]))
def test_two_ends_agree_or_fail(mixed: bool, same_qkd: bool, wrong: str) -> None:
    initiation = Initiation.begin(PARTIES, qkd=QKD if mixed else None)
    theirs_qkd = (QKD[1] if same_qkd else b"\x09" * 32) if mixed else None
    keys = Keys(KEYS.initiator, b"\x03" * 32) if wrong == "key" else KEYS
    parties = Parties(*reversed(PARTIES)) if wrong == "parties" else PARTIES
    try:
        answer, theirs = respond(initiation.offer, parties, keys, qkd=theirs_qkd)
        ours = initiation.finish(answer, KEYS)
    except UntrustedError as refused:
        assert (refused.reason == "wrong_parties") is (wrong == "parties")  # noqa: PT017 - it may pass
        assert wrong in {"key", "parties"} or (mixed and not same_qkd)
    else:
        assert ours.channel == theirs.channel
        assert ours.qkd is theirs.qkd is mixed
        assert theirs.open(ours.seal(b"x")) == b"x"
        assert ours.open(theirs.seal(b"y")) == b"y"


def test_reordering_is_refused_and_a_gap_is_counted() -> None:
    one, other = opened()
    first, second, third = (one.seal(bytes([n])) for n in range(3))
    assert other.open(third) == b"\x02"
    assert other.lost == 2
    for late in (first, second):
        with pytest.raises(UntrustedError) as refused:
            other.open(late)
        assert refused.value.reason == "replayed_frame"


def test_keys_seal_no_more_than_they_may() -> None:
    one, other = opened(Limits(3, 60))
    for _ in range(3):
        other.open(one.seal(b""))
    assert one.spent
    with pytest.raises(ExhaustedError) as refused:
        one.seal(b"")
    assert refused.value.reason == "channel_spent"


@pytest.mark.parametrize("limits", [Limits(0, 1), Limits(1, 0), Limits((1 << 20) + 1, 1), Limits(1, 3601)])
def test_limits_beyond_the_bound_are_refused(limits: Limits) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Initiation.begin(PARTIES, limits)
    assert refused.value.reason == "bad_channel_limits"


def test_a_required_qkd_key_must_be_used() -> None:
    initiation = Initiation.begin(PARTIES, qkd=QKD, qkd_required=True)
    answer, _ = respond(initiation.offer, PARTIES, KEYS)
    with pytest.raises(UntrustedError) as refused:
        initiation.finish(answer, KEYS)
    assert refused.value.reason == "qkd_not_used"


def test_an_x25519_key_of_small_order_is_refused() -> None:
    offer = Offer.parse(INITIATION.offer)
    weak = Offer(offer.nonce, offer.parties, offer.limits, offer.mlkem_public, bytes(32)).encode()
    with pytest.raises(InvalidInputError) as refused:
        respond(weak, PARTIES, KEYS)
    assert refused.value.reason == "bad_channel_offer"


def test_what_an_answer_says_is_what_is_read() -> None:
    parsed = Answer.parse(ANSWER)
    assert parsed.qkd
    assert parsed.encode() == ANSWER
    assert Offer.parse(INITIATION.offer).encode() == INITIATION.offer
