"""The codec: any bytes give a value or one of our errors, and what was encoded is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import pytest
from envelopes import HOST, heartbeat, party, seal
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.bus.credentials import decode_chain
from tocsin.bus.envelope import (
    Content,
    decode_body,
    decode_content,
    decode_envelope,
    encode_body,
    encode_content,
    unpack,
)
from tocsin.bus.opener import Arrival
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import BUCKETS, REQUESTS, SUBJECTS, message_types
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.fleet import EnrolRequest
from tocsin.contracts.identifiers import SpiffeId

MODELS = [*{kind.model for kind in message_types()}, *(bucket.model for bucket in BUCKETS)]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=25,
)
packed = values.map(lambda value: bytes(msgpack.packb(value)))
bytes_of_any_kind = st.binary(max_size=400) | packed

T = TypeVar("T")


def attempt(call: Callable[[], T]) -> tuple[T | None, TocsinError | None]:
    """Return what a call returned, or our error; any other exception fails the test."""
    try:
        return call(), None
    except TocsinError as error:
        return None, error


def reason(error: TocsinError | None) -> str | None:
    return error.reason if error else None


DECODERS: list[Callable[[bytes], Any]] = [
    lambda data: decode_envelope(data, max_bytes=1 << 20),
    decode_content,
    decode_chain,
    lambda data: unpack(data, max_array=16),
    lambda data: unpack(data, max_array=len(data) + 17, max_map=len(data)),
]


@pytest.mark.parametrize("decode", DECODERS)
@given(data=bytes_of_any_kind)
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_value_or_our_error(decode: Callable[[bytes], Any], data: bytes) -> None:
    _, error = attempt(lambda: decode(data))
    assert reason(error) in {None, "malformed", "bad_version", "bad_certificate"}


@given(data=st.data(), model=st.sampled_from(MODELS))
@settings(max_examples=400, deadline=None)
def test_any_body_is_a_model_or_our_error(data: st.DataObject, model: type[Message]) -> None:
    names = st.sampled_from(sorted(model.model_fields) or ["x"])
    body = data.draw(bytes_of_any_kind | st.dictionaries(names, values, max_size=12).map(msgpack.packb))
    found, error = attempt(lambda: decode_body(model, body))
    assert reason(error) in {None, "malformed", "bad_body"}
    assert len(str(error)) <= 300
    if found is not None:
        assert decode_body(model, encode_body(found)) == found


@given(cut=st.integers(0, 4000), at=st.integers(0, 4000), insert=st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_mangled_envelope_is_a_value_or_our_error(cut: int, at: int, insert: bytes) -> None:
    whole = seal(party(HOST).key, [heartbeat(id=bytes(16))])[0]
    mangled = whole[: at % len(whole)] + insert + whole[at % len(whole) + cut % 64 :]
    _, error = attempt(lambda: decode_envelope(mangled, max_bytes=1 << 20))
    assert reason(error) in {None, "malformed", "bad_version"}


contents = st.builds(
    Content,
    id=st.binary(min_size=16, max_size=16),
    type=st.text(max_size=64),
    priority=st.integers(0, 3),
    sender=st.text(max_size=512),
    audience=st.text(max_size=160),
    issued_at=st.integers(0, 2**63 - 1),
    ttl_ms=st.integers(0, 2**63 - 1),
    correlation=st.none() | st.binary(min_size=16, max_size=16),
    trace=st.none() | st.text(max_size=128),
    sealed=st.integers(0, 1),
    body=st.binary(max_size=200),
)


@given(content=contents)
@settings(max_examples=200, deadline=None)
def test_what_was_encoded_is_decoded(content: Content) -> None:
    encoded = encode_content(content)
    assert decode_content(encoded) == content
    envelope = decode_envelope(seal(party(HOST).key, [content])[0], max_bytes=1 << 20)
    assert (envelope.content, envelope.content_bytes) == (content, encoded)
    assert envelope.key_id == party(HOST).key.signer.key_id


@pytest.mark.parametrize(
    "header",
    [b"\x91", b"\x9f", b"\xdc\xff\xff", b"\xdd\x00\x0d\xbb\xa0", b"\x81\xa1a", b"\xdf\x00\x0d\xbb\xa0"],
    ids=lambda header: header.hex(),
)
def test_nested_headers_are_refused_by_every_decoder(header: bytes) -> None:
    """900 KB of them would cost a decoder without limits 60 ms and 68 MB each time."""
    data = (header * (900_000 // len(header) + 1))[:900_000]
    decoders: list[Callable[[bytes], Any]] = [*DECODERS, lambda data: decode_body(EnrolRequest, data)]
    for decode in decoders:
        with pytest.raises(InvalidInputError) as caught:
            decode(data)
        assert caught.value.reason == "malformed"


def test_a_header_that_claims_more_than_follows_allocates_nothing() -> None:
    import tracemalloc

    data = b"\xdc\xff\xff" * 80_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError):
            decode_body(EnrolRequest, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data)


@given(text=st.text(max_size=100) | st.from_regex(r"spiffe://[a-z./-]{1,40}", fullmatch=True))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_id_that_reads_the_same_or_our_error(text: str) -> None:
    found, error = attempt(lambda: SpiffeId.parse(text))
    assert reason(error) in {None, "bad_identity"}
    assert found is None or str(found) == text


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_subject_is_an_arrival_or_our_error(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from([*SUBJECTS, *(request.subject for request in REQUESTS)]))
    tail = data.draw(st.text(max_size=60))
    subject = data.draw(st.sampled_from([tail, f"tocsin.v1.{tail}", spec.pattern() + tail, spec.pattern()]))
    subject = subject.replace("*", data.draw(st.text(max_size=12)))
    arrival, error = attempt(lambda: Arrival.on(spec, subject))
    assert reason(error) in {None, "bad_subject"}
    assert arrival is None or arrival.subject == subject
