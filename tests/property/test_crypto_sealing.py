"""Any bytes are a sealed body or our error; whatever is changed in one is refused."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.crypto.sealing import MAX_RECIPIENTS, SealingKey, open_body, parse_sealed, seal_body

HEAD = b"head"


@functools.cache
def _key(number: int) -> SealingKey:
    return SealingKey.from_seed(bytes([number]) * 32)


@functools.cache
def _sealed() -> bytes:
    return seal_body(b"body", HEAD, [_key(1).public, _key(2).public])


def _open(data: bytes) -> bytes:
    return open_body(parse_sealed(data), HEAD, _key(1))


@given(st.binary(max_size=4000) | st.binary(max_size=4000).map(lambda data: b"\x01\x01" + data))
def test_any_bytes_are_a_sealed_body_or_our_error(data: bytes) -> None:
    try:
        sealed = parse_sealed(data)
    except InvalidInputError:
        return
    assert 1 <= len(sealed.recipients) == len(sealed.wraps) <= MAX_RECIPIENTS
    assert sealed.recipients == tuple(sorted(set(sealed.recipients)))


@settings(deadline=None)
@given(body=st.binary(max_size=2000), head=st.binary(max_size=200), others=st.sets(st.integers(2, 5)))
def test_what_is_sealed_is_opened(body: bytes, head: bytes, others: set[int]) -> None:
    data = seal_body(body, head, [_key(number).public for number in {1, *others}])
    assert all(open_body(parse_sealed(data), head, _key(number)) == body for number in {1, *others})


@settings(deadline=None)
@given(st.data())
def test_a_changed_byte_or_length_is_refused(data: st.DataObject) -> None:
    whole = _sealed()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    # The other recipient's wrap is that recipient's business; the envelope's signature covers it.
    theirs = whole.index(_key(2).public.id) + 32
    for bent in (whole[:at], whole + b"x", *(() if theirs <= at < theirs + 1168 else (bytes(flipped),))):
        with pytest.raises(TocsinError):
            _open(bent)
