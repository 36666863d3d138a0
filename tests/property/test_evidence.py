"""Any bytes in: a verified decision or one of our errors out; and no bit of a certificate is idle."""

from __future__ import annotations

from functools import cache

import msgpack
import pytest
from council import Council
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import TocsinError
from tocsin.crypto import BatchVerifier
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import open_epoch
from tocsin.evidence.verification import verify


@cache
def made() -> tuple[Council, bytes, BatchVerifier]:
    """Return a council, a certificate of it, and a memory in which its signatures are verified.

    The memory makes the test quick and no weaker: it knows exact signatures over exact roots only.
    """
    council = Council(agents=4)
    data, batches = council.certificate().encode(), BatchVerifier()
    verify(data, council.root.certificate_pem, backend=council.backend, batches=batches)
    return council, data, batches


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 7))
def test_a_flipped_bit_is_refused(place: int, bit: int) -> None:
    """Not even an equivalent reading is left: every byte is signed, hashed, or fixed by the one encoding."""
    council, data, batches = made()
    flipped = bytearray(data)
    flipped[place % len(data)] ^= 1 << bit
    with pytest.raises(TocsinError):
        verify(bytes(flipped), council.root.certificate_pem, backend=council.backend, batches=batches)


def test_every_header_and_small_number_counts() -> None:
    """Flip bits wherever a byte looks like a header of msgpack, a version, an index or a size."""
    council, data, batches = made()
    headers = [i for i in range(len(data)) if data[i] in {0xC5, 0xC6, 0xC4, 0x94, 0x95, 0x96, 0x9B, 0x01, 0x02}]
    for place in headers:
        for bit in (0, 3, 6):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(TocsinError):
                verify(bytes(flipped), council.root.certificate_pem, backend=council.backend, batches=batches)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_certificate(data: bytes) -> None:
    council, _, _ = made()
    with pytest.raises(TocsinError):
        verify(data, council.root.certificate_pem, backend=council.backend)
    with pytest.raises(TocsinError):
        open_epoch(data, council.trust)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_parts_in_any_other_order_or_number_are_refused(data: st.DataObject) -> None:
    """Well-formed certificates made of true parts: only all of them, each once, verify."""
    council, whole, batches = made()
    true = DecisionCertificate.decode(whole)
    parts = [true.epoch, true.proposal, *true.ballots, *true.votes, *true.keys, b""]
    some = st.lists(st.sampled_from(parts), max_size=8).map(tuple)
    forged = DecisionCertificate(
        epoch=data.draw(st.sampled_from(parts)),
        proposal=data.draw(st.sampled_from(parts)),
        ballots=data.draw(st.one_of(st.just(true.ballots), some)),
        votes=data.draw(st.one_of(st.just(true.votes), some)),
        keys=data.draw(st.one_of(st.just(true.keys), some)),
    )
    try:
        decided = verify(
            forged.encode(), council.root.certificate_pem, backend=council.backend, batches=batches
        )
    except TocsinError:
        return
    assert sorted(forged.ballots) == sorted(true.ballots)
    assert decided.ballots_verified == len(true.ballots)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.text()),
        lambda inner: st.one_of(st.lists(inner, max_size=7), st.dictionaries(st.text(), inner, max_size=3)),
        max_leaves=20,
    )
)
def test_other_msgpack_is_no_certificate(value: object) -> None:
    with pytest.raises(TocsinError):
        DecisionCertificate.decode(msgpack.packb(value))
