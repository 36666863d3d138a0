"""Opening: any bytes give a message or one of our errors; a valid envelope with one bit changed is refused."""

from __future__ import annotations

import functools

import pytest
from envelopes import (
    AT_ALL,
    AT_HEARTBEAT,
    DOMAIN,
    GUARDIAN,
    HOST,
    NOW,
    alert,
    content,
    heartbeat,
    opener,
    party,
    seal,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.bus.envelope import Content
from tocsin.bus.opener import Arrival, Opener
from tocsin.contracts.catalogue import AGENTS, FLEET_ENROL, REQUESTS, SUBJECTS
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import AgentSpec, EnrolRequest
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.subjects import RecordBody
from tocsin.crypto import Algorithm

SIZES = [1, 2, 3, 7, 24]
FLEET = SpiffeId.service(DOMAIN, ServiceName.FLEET, "0")
NEW = SpiffeId.host(DOMAIN, "new")


def _enrolment() -> Content:
    key = party(NEW).key
    body = EnrolRequest(
        host="new",
        agents=(AgentSpec(name="a", role=Role.CANARY),),
        algorithm=1,
        public_key=key.signer.public_key,
        token_id="t",  # noqa: S106 - a token's name
        mac=bytes(32),
    )
    return content(NEW, "fleet.enrol", body, audience="service.fleet")


def _record() -> Content:
    body = RecordBody(bucket="agents", key="a", revision=1, value=b"x")
    return content(FLEET, "record.agents", body, audience="record.agents", ttl_ms=0)


@functools.cache
def batch(kind: str, size: int) -> list[bytes]:
    """Return a batch of valid envelopes of one class."""
    make = {"live": heartbeat, "stored": alert, "record": _record, "enrol": _enrolment}[kind]
    sender = {"live": HOST, "stored": GUARDIAN, "record": FLEET, "enrol": NEW}[kind]
    return seal(party(sender).key, [make()._replace(id=bytes([number]) * 16) for number in range(size)])


ARRIVALS = {
    "live": AT_HEARTBEAT,
    "stored": AT_ALL,
    "record": Arrival.record(AGENTS, "a"),
    "enrol": Arrival.on(FLEET_ENROL.subject, FLEET_ENROL.subject.at()),
}


def fresh() -> Opener:
    return opener(party(HOST), party(GUARDIAN), party(FLEET))


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(flipped)


@pytest.mark.parametrize("kind", ARRIVALS)
@given(size=st.sampled_from(SIZES), pick=st.integers(0, 1000), bit=st.integers(0, 2**17), warm=st.booleans())
@settings(max_examples=120, deadline=None)
def test_one_changed_bit_is_refused(kind: str, size: int, pick: int, bit: int, *, warm: bool) -> None:
    """Whether or not the batch's signature has been verified before."""
    envelopes = batch(kind, size)
    by = fresh()
    if warm:
        by.open(envelopes[(pick + 1) % size], ARRIVALS[kind], now_ns=NOW)
    with pytest.raises(TocsinError):
        by.open(flip(envelopes[pick % size], bit), ARRIVALS[kind], now_ns=NOW)
    if not warm or size > 1:
        by.open(envelopes[pick % size], ARRIVALS[kind], now_ns=NOW)


def test_each_bit_outside_the_signature_is_refused() -> None:
    """All of them, on an opener that has verified the batch: what the random choice may miss."""
    first, second = batch("live", 2)
    by = fresh()
    by.open(first, AT_HEARTBEAT, now_ns=NOW)
    signature_bytes = Algorithm.ML_DSA_44.signature_bytes
    begins = second.index(b"\xc5" + signature_bytes.to_bytes(2, "big")) + 3
    bits = [bit for bit in range(len(second) * 8) if not begins <= bit // 8 < begins + signature_bytes]
    assert len(bits) > 1500
    for bit in bits:
        with pytest.raises(TocsinError):
            by.open(flip(second, bit), AT_HEARTBEAT, now_ns=NOW)
    by.open(second, AT_HEARTBEAT, now_ns=NOW)


arrivals = st.sampled_from(
    [
        *ARRIVALS.values(),
        *(
            Arrival.on(one, one.at(**dict.fromkeys(one._tokens, "x")), frozenset({"all"}))
            for one in (*SUBJECTS, *(request.subject for request in REQUESTS))
        ),
        *(Arrival.reply("inbox", request, "service.cli.0", bytes(16)) for request in REQUESTS),
    ]
)


@given(data=st.binary(max_size=600), arrival=arrivals)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_with_our_error(data: bytes, arrival: Arrival) -> None:
    with pytest.raises(TocsinError):
        fresh().open(data, arrival, now_ns=NOW)


contents = st.builds(
    lambda made, changes: made._replace(**changes),
    st.sampled_from([heartbeat(), alert(), _enrolment(), _record()]),
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.binary(min_size=16, max_size=16),
            "type": st.sampled_from(["heartbeat", "threat_alert", "fleet.enrol", "record.agents", "error", ""]),
            "priority": st.integers(0, 3),
            "sender": st.sampled_from([str(HOST), str(GUARDIAN), str(NEW), "x"]) | st.text(max_size=20),
            "audience": st.sampled_from(["all", "event", "service.fleet"]) | st.text(max_size=20),
            "issued_at": st.integers(0, 2**63 - 1),
            "ttl_ms": st.integers(0, 2**63 - 1),
            "correlation": st.none() | st.binary(min_size=16, max_size=16),
            "sealed": st.integers(0, 1),
            "body": st.binary(max_size=60),
        },
    ),
)


@given(made=contents, signer=st.sampled_from([HOST, GUARDIAN, NEW, FLEET]), arrival=arrivals)
@settings(max_examples=300, deadline=None)
def test_whatever_a_known_key_signs_is_a_message_or_our_error(
    made: Content, signer: SpiffeId, arrival: Arrival
) -> None:
    """A member that turned bad can sign anything: it must not get another exception out of anybody."""
    by = fresh()
    data = seal(party(signer).key, [made])[0]
    try:
        _, context = by.open(data, arrival, now_ns=NOW)
    except TocsinError:
        return
    assert context.content == made
    assert str(context.sender) == made.sender
    assert context.kind.senders.admit(context.sender)
    if made.type in {"heartbeat", "fleet.enrol", "threat_alert"}:
        with pytest.raises(TocsinError):
            by.open(data, arrival, now_ns=NOW)
