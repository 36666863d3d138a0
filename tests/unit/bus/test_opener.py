"""The twelve steps of opening an envelope: each refusal has its own reason, and cheap ones come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import msgpack
import pytest
from envelopes import (
    AT_ALL,
    AT_HEARTBEAT,
    DOMAIN,
    GUARDIAN,
    HOST,
    MONITOR,
    NOW,
    ROUTER,
    SECOND,
    START,
    alert,
    at,
    authority,
    content,
    heartbeat,
    opener,
    party,
    proof_of,
    seal,
)

from tocsin.bus.envelope import Content, encode_content, encode_envelope
from tocsin.bus.opener import Arrival, Opener
from tocsin.bus.replay import DuplicateError, ReplayWindow
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    AGENTS,
    ALERT_BACKUP,
    AUDIT,
    EVENT,
    FLEET_ENROL,
    HEARTBEAT,
    OBSERVE,
    PING,
    ROUTE,
)
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UntrustedError,
)
from tocsin.contracts.fleet import AgentSpec, EnrolRequest, Heartbeat
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.operations import ErrorReply, Pong, RejectedEnvelope
from tocsin.contracts.routing import Discovery
from tocsin.contracts.subjects import KIB, RecordBody
from tocsin.crypto import Algorithm, LocalKey, select_backend

EXPIRED = SpiffeId.agent(DOMAIN, Role.GUARDIAN, "expired")
CORRELATION = bytes(range(16))


def known() -> Opener:
    """Return an opener that knows everybody of this page, one of them by a certificate that has ended."""
    return opener(
        party(HOST), party(GUARDIAN), party(ROUTER), party(MONITOR), party(EXPIRED, days_ago=3, hours=24)
    )


def by_host(**changes: object) -> bytes:
    return seal(party(HOST).key, [heartbeat(**changes)])[0]


def by_guardian(**changes: object) -> bytes:
    return seal(party(GUARDIAN).key, [alert(**changes)])[0]


def raw(key: LocalKey, fields: object) -> bytes:
    """Sign whatever stands in place of a content."""
    encoded = bytes(msgpack.packb(fields))
    return encode_envelope(encoded, key.signer.key_id, proof_of(key, [encoded], 0))


def outer(**changes: object) -> bytes:
    """Return an envelope in order but for one of its four parts."""
    version, inner, key_id, proof = msgpack.unpackb(by_host())
    parts = {"version": version, "content": inner, "key_id": key_id, "proof": proof} | changes
    return bytes(msgpack.packb(list(parts.values())))


def bent_proof(**changes: object) -> bytes:
    """Return the second of a batch of three with its proof changed."""
    encoded = [encode_content(heartbeat(id=bytes([n]) * 16)) for n in range(3)]
    key = party(HOST).key
    return encode_envelope(encoded[1], key.signer.key_id, replace(proof_of(key, encoded, 1), **changes))  # type: ignore[arg-type]  # wrong types on purpose


def fields(**changes: object) -> bytes:
    """Return a well-signed envelope whose content has a field of any type."""
    return raw(party(HOST).key, list((heartbeat()._asdict() | changes).values()))


@dataclass(frozen=True)
class Case:
    """One way to be refused."""

    reason: str
    data: Callable[[], bytes]
    arrival: Arrival = AT_HEARTBEAT
    family: type[TocsinError] = UntrustedError
    name: str = ""


def malformed(name: str, data: Callable[[], bytes]) -> Case:
    return Case("malformed", data, family=InvalidInputError, name=name)


BEFORE_SIGNATURE = [
    # 1 size
    Case("too_large", lambda: bytes(AT_HEARTBEAT.max_bytes + 1), family=InvalidInputError),
    Case(
        "too_large",
        lambda: seal(party(GUARDIAN).key, [content(GUARDIAN, "discovery", bytes(64 * KIB), audience="all")])[0],
        arrival=at(ROUTE, type="discovery", priority="normal", agent="guardian-1"),
        family=InvalidInputError,
        name="for its type, though not for the subject",
    ),
    # 2 version
    Case("bad_version", lambda: outer(version=2), family=InvalidInputError),
    # 3 shape
    malformed("nothing", lambda: b""),
    malformed("truncated", lambda: by_host()[:-1]),
    malformed("bytes behind", lambda: by_host() + b"\x00"),
    malformed("no array", lambda: msgpack.packb({1: 2})),
    malformed("empty array", lambda: msgpack.packb([])),
    malformed("version is a bool", lambda: outer(version=True)),
    malformed("three parts", lambda: msgpack.packb([1, b"", bytes(32)])),
    malformed("key id of 31 bytes", lambda: outer(key_id=bytes(31))),
    malformed("content is text", lambda: outer(content="text")),
    malformed("proof is no array", lambda: outer(proof=b"")),
    malformed("proof of four", lambda: outer(proof=[1, b"", 0, 1])),
    malformed("unknown algorithm", lambda: outer(proof=[9, b"", 0, 1, []])),
    malformed("algorithm is a bool", lambda: outer(proof=[True, b"", 0, 1, []])),
    malformed("negative index", lambda: outer(proof=[1, b"", -1, 1, []])),
    malformed("node of 31 bytes", lambda: outer(proof=[1, b"", 0, 2, [bytes(31)]])),
    malformed("a path of seventeen", lambda: outer(proof=[1, b"", 0, 2, [bytes(32)] * 17])),
    malformed("extension type", lambda: msgpack.packb([1, msgpack.ExtType(5, b"x"), bytes(32), []])),
    malformed("timestamp", lambda: b"\x94\x01\xd6\xff\x00\x00\x00\x00\xc4\x00\xc0"),
    malformed("content of ten", lambda: raw(party(HOST).key, list(heartbeat())[:10])),
    malformed("id of 15 bytes", lambda: by_host(id=bytes(15))),
    malformed("id is text", lambda: fields(id="0123456789abcdef")),
    malformed("correlation of 15 bytes", lambda: by_host(correlation=bytes(15))),
    malformed("priority is a bool", lambda: fields(priority=True)),
    malformed("priority 4", lambda: by_host(priority=4)),
    malformed("issued before 1970", lambda: by_host(issued_at=-1)),
    malformed("issued_at is a float", lambda: fields(issued_at=1.5)),
    malformed("sealed 2", lambda: by_host(sealed=2)),
    malformed("sender of 513 characters", lambda: by_host(sender="s" * 513)),
    malformed("type is nil", lambda: fields(type=None)),
    malformed("trace is bytes", lambda: fields(trace=b"x")),
    Case("unknown_type", lambda: by_host(type="ballot"), family=InvalidInputError),
    Case("bad_identity", lambda: by_host(sender="h1"), family=InvalidInputError),
    # 4 key and certificate
    Case("unknown_key", lambda: seal(party(SpiffeId.host(DOMAIN, "h2")).key, [heartbeat()])[0]),
    Case(
        "certificate_expired",
        lambda: seal(
            party(EXPIRED, days_ago=3, hours=24).key,
            [content(EXPIRED, "discovery", b"\x80", audience="all")],
        )[0],
        arrival=AT_ALL,
        name="live: it is not valid now",
    ),
    Case(
        "certificate_expired",
        lambda: seal(party(EXPIRED, days_ago=3, hours=24).key, [alert(sender=str(EXPIRED))])[0],
        arrival=AT_ALL,
        name="stored: it was not valid when this was issued",
    ),
    # 5 sender
    Case("wrong_sender", lambda: by_host(sender=f"spiffe://{DOMAIN}/host/h2")),
    # 6 clock
    Case("issued_in_future", lambda: by_host(issued_at=NOW + 30 * SECOND + 1)),
    Case(
        "issued_in_future", lambda: by_guardian(issued_at=NOW + 30 * SECOND + 1), arrival=AT_ALL, name="stored"
    ),
    Case("ttl_too_long", lambda: by_host(ttl_ms=30_001)),
    Case("ttl_too_long", lambda: by_guardian(ttl_ms=3_600_001), arrival=AT_ALL, name="stored"),
    Case("expired", lambda: by_host(issued_at=NOW - 35 * SECOND - 1)),
    Case("expired", lambda: by_guardian(issued_at=NOW - 35 * SECOND - 1), arrival=AT_ALL, name="stored"),
    # 7 audience, and what else the subject says
    Case("wrong_audience", lambda: by_host(audience="all")),
    Case(
        "wrong_audience",
        lambda: by_guardian(audience="role.hunter"),
        arrival=at(ALERT_BACKUP, severity="normal"),
        name="does not include the reader",
    ),
    Case("wrong_subject", by_host, arrival=at(HEARTBEAT, host="h2"), name="of the sender"),
    Case(
        "wrong_subject",
        by_guardian,
        arrival=at(ROUTE, type="discovery", priority="normal", agent="guardian-1"),
        name="of the type",
    ),
    Case(
        "wrong_subject",
        by_guardian,
        arrival=at(ROUTE, type="threat_alert", priority="critical", agent="guardian-1"),
        name="of the priority",
    ),
    Case(
        "wrong_subject",
        lambda: seal(
            party(ROUTER).key,
            [
                content(
                    ROUTER,
                    "audit.rejected",
                    RejectedEnvelope(by="x", reason="y", subject="z", claimed_key_id=None, count=1),
                )
            ],
        )[0],
        arrival=at(AUDIT, kind="equivocation"),
        name="of the kind of audit",
    ),
    # 8 inclusion
    Case("bad_inclusion_proof", lambda: bent_proof(index=3)),
    Case("bad_inclusion_proof", lambda: bent_proof(path=()), name="path too short"),
    Case("bad_inclusion_proof", lambda: bent_proof(path=(bytes(32),) * 3), name="path too long"),
    Case("bad_inclusion_proof", lambda: bent_proof(size=1025), name="batch too large"),
]

AT_SIGNATURE = [
    # 9 signature
    Case("bad_signature", lambda: bent_proof(signature=bytes(2420))),
    Case("bad_signature", lambda: bent_proof(signature=b""), name="none"),
    Case("bad_signature", lambda: bent_proof(index=0), name="another leaf"),
    Case("wrong_algorithm", lambda: bent_proof(algorithm=Algorithm.ML_DSA_65)),
]

AFTER_SIGNATURE = [
    # 10 sender may send this here
    Case(
        "sender_not_allowed",
        lambda: seal(party(ROUTER).key, [heartbeat(sender=str(ROUTER))])[0],
        arrival=at(HEARTBEAT, host="0"),
        family=DeniedError,
    ),
    # 12 body
    Case("bad_seal", lambda: by_host(sealed=1), family=InvalidInputError),
    Case("bad_body", lambda: by_host(body=b"\x80"), family=InvalidInputError, name="fields missing"),
    Case("bad_body", lambda: by_host(body=b"\xc0"), family=InvalidInputError, name="no map"),
    Case("malformed", lambda: by_host(body=b""), family=InvalidInputError, name="empty body"),
    Case("malformed", lambda: by_host(body=b"\xdc\xff\xff" * 40_000), family=InvalidInputError, name="nested"),
    Case("malformed", lambda: by_host(body=b"\x91" * 100_000), family=InvalidInputError, name="deep"),
]


def name_of(case: Case) -> str:
    return f"{case.reason} {case.name}".strip()


def refused(case: Case, by: Opener) -> TocsinError:
    with pytest.raises(TocsinError) as caught:
        by.open(case.data(), case.arrival, now_ns=NOW)
    return caught.value


@pytest.mark.parametrize("case", BEFORE_SIGNATURE, ids=name_of)
def test_what_is_cheap_to_refuse_is_refused_before_any_signature_is_verified(case: Case) -> None:
    by = known()
    case.data()
    verified = by.backend.counters.verifications
    error = refused(case, by)
    assert (error.reason, type(error)) == (case.reason, case.family)
    assert by.backend.counters.verifications == verified


@pytest.mark.parametrize("case", [*AT_SIGNATURE, *AFTER_SIGNATURE], ids=name_of)
def test_what_is_refused_at_the_signature_or_behind_it_has_its_own_reason(case: Case) -> None:
    error = refused(case, known())
    assert (error.reason, type(error)) == (case.reason, case.family)


def test_a_live_message_is_taken_once() -> None:
    by, data = known(), by_host()
    body, context = by.open(data, AT_HEARTBEAT, now_ns=NOW)
    assert body == Heartbeat(host="h1", agents=("a1",), handled=1, failed=0)
    assert (context.sender, context.subject, context.data) == (HOST, AT_HEARTBEAT.subject, data)
    with pytest.raises(DuplicateError):
        by.open(data, AT_HEARTBEAT, now_ns=NOW)


def test_an_id_that_was_seen_on_another_content_is_refused() -> None:
    by, again = known(), heartbeat()
    by.open(seal(party(HOST).key, [again])[0], AT_HEARTBEAT, now_ns=NOW)
    with pytest.raises(UntrustedError) as caught:
        by.open(seal(party(HOST).key, [again._replace(ttl_ms=4_000)])[0], AT_HEARTBEAT, now_ns=NOW)
    assert caught.value.reason == "replayed"


def test_a_live_message_cannot_outlive_its_place_in_the_window() -> None:
    """As long as it would be accepted it is remembered."""
    by, data = known(), by_host(ttl_ms=1_000)
    last_ns = NOW + 31 * SECOND
    by.open(data, AT_HEARTBEAT, now_ns=NOW)
    for now_ns, reason in ((last_ns, "duplicate"), (last_ns + 1, "expired")):
        with pytest.raises((DuplicateError, UntrustedError)) as caught:
            by.open(data, AT_HEARTBEAT, now_ns=now_ns)
        assert caught.value.reason == reason


def test_a_live_message_of_the_time_before_the_start_is_refused() -> None:
    by = known()
    by.started_ns = NOW + 1
    with pytest.raises(UntrustedError) as caught:
        by.open(by_host(), AT_HEARTBEAT, now_ns=NOW)
    assert caught.value.reason == "issued_before_start"
    by.open(by_guardian(), AT_ALL, now_ns=NOW)


def test_a_stored_message_is_claimed_then_done_and_comes_back_when_given_back() -> None:
    by, data = known(), by_guardian()
    leaf = by.open(data, AT_ALL, now_ns=NOW)[1].leaf
    with pytest.raises(ConflictError) as caught:
        by.open(data, AT_ALL, now_ns=NOW)
    assert caught.value.reason == "claimed"
    by.ledger.done(leaf)
    with pytest.raises(ConflictError) as caught:
        by.open(data, AT_ALL, now_ns=NOW)
    assert caught.value.reason == "duplicate"
    other = by_guardian(id=bytes(16))
    by.ledger.release(by.open(other, AT_ALL, now_ns=NOW)[1].leaf)
    by.open(other, AT_ALL, now_ns=NOW)


def test_a_stored_message_is_judged_by_the_time_when_it_was_issued() -> None:
    """Its certificate has ended, its time to live has not."""
    ending = party(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "ending"), hours=2)
    by = opener(ending)
    later_ns = NOW + 3_610 * SECOND
    hello = Discovery(agent="ending", role=Role.GUARDIAN, host="h1")
    live = content(ending.id, "discovery", hello, audience="all", issued_at=later_ns)
    with pytest.raises(UntrustedError) as caught:
        by.open(seal(ending.key, [live])[0], AT_ALL, now_ns=later_ns)
    assert caught.value.reason == "certificate_expired"
    stored = alert(sender=str(ending.id), ttl_ms=3_600_000, issued_at=NOW + 20 * SECOND)
    by.open(seal(ending.key, [stored])[0], AT_ALL, now_ns=later_ns)


def test_a_stored_message_issued_before_a_renewal_still_opens() -> None:
    first = party(SpiffeId.agent(DOMAIN, Role.GUARDIAN, "renewing"))
    by = opener(first)
    renewed = authority().issue(
        ids=(first.id,),
        public_key=first.key.signer.public_key,
        algorithm=first.key.algorithm,
        generation=2,
        now=START + timedelta(hours=11),
        lifetime=timedelta(hours=24),
    )
    by.trust.add_chain(renewed.chain_der)
    later_ns = NOW + 11 * 3600 * SECOND
    stored = alert(sender=str(first.id), ttl_ms=3_600_000, issued_at=later_ns - 600 * SECOND)
    by.open(seal(first.key, [stored])[0], AT_ALL, now_ns=later_ns)


def test_a_refused_body_claims_nothing() -> None:
    by = known()
    bad = by_guardian(body=b"\x80")
    for _ in range(2):
        with pytest.raises(InvalidInputError) as caught:
            by.open(bad, AT_ALL, now_ns=NOW)
        assert caught.value.reason == "bad_body"


def test_a_key_that_fills_its_window_is_refused_and_no_other() -> None:
    by = known()
    by.replay = ReplayWindow(max_ids_per_key=2)
    for number in range(2):
        by.open(by_host(id=bytes([number]) * 16), AT_HEARTBEAT, now_ns=NOW)
    with pytest.raises(ExhaustedError) as caught:
        by.open(by_host(), AT_HEARTBEAT, now_ns=NOW)
    assert caught.value.reason == "replay_window_full"
    hello = content(
        GUARDIAN, "discovery", Discovery(agent="guardian-1", role=Role.GUARDIAN, host="h1"), audience="all"
    )
    by.open(seal(party(GUARDIAN).key, [hello])[0], AT_ALL, now_ns=NOW)


def test_a_batch_is_verified_in_full_once() -> None:
    by = known()
    batch = seal(party(HOST).key, [heartbeat(id=bytes([number]) * 16) for number in range(24)])
    before = by.backend.counters.verifications
    for data in batch:
        by.open(data, AT_HEARTBEAT, now_ns=NOW)
    assert by.backend.counters.verifications == before + 1


# --- Replies ------------------------------------------------------------------------------------


def reply_at(who: str = "service.monitor.0") -> Arrival:
    return Arrival.reply("inbox", PING[ServiceName.ROUTER], who, CORRELATION)


def answer(sender: SpiffeId, kind: str, body: Message, **changes: object) -> bytes:
    made = content(sender, kind, body, audience="reply.service.monitor.0", correlation=CORRELATION)
    return seal(party(sender).key, [made._replace(**changes)])[0]  # type: ignore[arg-type]  # wrong on purpose


PONG = Pong(process="service.router.0", version="1", signature_backend="openssl", name="0")
REFUSAL = ErrorReply(family="denied", reason="x", detail="y")


def test_an_answer_and_a_refusal_of_the_service_that_was_asked_are_taken() -> None:
    by = known()
    assert by.open(answer(ROUTER, "router.ping.reply", PONG), reply_at(), now_ns=NOW)[0] == PONG
    assert by.open(answer(ROUTER, "error", REFUSAL), reply_at(), now_ns=NOW)[0] == REFUSAL


@pytest.mark.parametrize("sender", [MONITOR, GUARDIAN], ids=str)
def test_nobody_else_can_answer_or_refuse(sender: SpiffeId) -> None:
    """An agent that sees a request go by must not be able to fail it."""
    by = known()
    for kind, body in (("router.ping.reply", PONG), ("error", REFUSAL)):
        with pytest.raises(DeniedError) as caught:
            by.open(answer(sender, kind, body), reply_at(), now_ns=NOW)
        assert caught.value.reason == "sender_not_allowed"


def test_only_the_agent_that_was_asked_can_refuse_an_observation() -> None:
    by = known()
    arrival = Arrival.reply("inbox", OBSERVE, "service.monitor.0", CORRELATION, server="sentinel-1")
    with pytest.raises(UntrustedError) as caught:
        by.open(answer(GUARDIAN, "error", REFUSAL), arrival, now_ns=NOW)
    assert caught.value.reason == "wrong_subject"
    own = Arrival.reply("inbox", OBSERVE, "service.monitor.0", CORRELATION, server="guardian-1")
    by.open(answer(GUARDIAN, "error", REFUSAL), own, now_ns=NOW)


def test_an_answer_to_somebody_else_or_to_another_request_is_refused() -> None:
    by = known()
    for data, arrival, reason in (
        (answer(ROUTER, "router.ping.reply", PONG), reply_at("service.cli.0"), "wrong_audience"),
        (answer(ROUTER, "router.ping.reply", PONG, correlation=bytes(16)), reply_at(), "wrong_correlation"),
        (answer(ROUTER, "router.ping.reply", PONG, correlation=None), reply_at(), "wrong_correlation"),
        (answer(ROUTER, "fleet.ping.reply", PONG), reply_at(), "unknown_type"),
    ):
        with pytest.raises(TocsinError) as caught:
            by.open(data, arrival, now_ns=NOW)
        assert caught.value.reason == reason


# --- Records ------------------------------------------------------------------------------------


def test_a_record_has_no_clock_and_its_own_audience() -> None:
    by = opener(party(SpiffeId.service(DOMAIN, ServiceName.FLEET, "0")))
    fleet = party(SpiffeId.service(DOMAIN, ServiceName.FLEET, "0"))
    body = RecordBody(bucket="agents", key="a", revision=1, value=b"")
    old = content(fleet.id, "record.agents", body, audience="record.agents", issued_at=0, ttl_ms=0)
    arrival = Arrival.record(AGENTS, "a")
    for _ in range(2):
        assert by.open(seal(fleet.key, [old])[0], arrival, now_ns=NOW)[0] == body
    with pytest.raises(UntrustedError) as caught:
        by.open(seal(fleet.key, [old._replace(audience="record.other")])[0], arrival, now_ns=NOW)
    assert caught.value.reason == "wrong_audience"


# --- Enrolment ----------------------------------------------------------------------------------


def enrolment(key: LocalKey, *, public_key: bytes | None = None, algorithm: int = 1) -> Content:
    body = EnrolRequest(
        host="h9",
        agents=(AgentSpec(name="a9", role=Role.GUARDIAN),),
        algorithm=algorithm,
        public_key=key.signer.public_key if public_key is None else public_key,
        token_id="t",  # noqa: S106 - a token's name
        mac=bytes(32),
    )
    return content(SpiffeId.host(DOMAIN, "h9"), "fleet.enrol", body, audience="service.fleet")


AT_ENROL = Arrival.on(FLEET_ENROL.subject, FLEET_ENROL.subject.at())


def fresh_key() -> LocalKey:
    return LocalKey.generate(select_backend("openssl"), Algorithm.ML_DSA_44)


def test_an_enrolment_is_signed_by_the_key_that_it_brings_and_taken_once() -> None:
    by, key = known(), fresh_key()
    data = seal(key, [enrolment(key)])[0]
    by.open(data, AT_ENROL, now_ns=NOW)
    with pytest.raises(DuplicateError):
        by.open(data, AT_ENROL, now_ns=NOW)


def test_an_enrolment_that_brings_another_key_is_refused() -> None:
    by, key, other = known(), fresh_key(), fresh_key()
    cases = {
        "unknown_key": seal(key, [enrolment(key, public_key=other.signer.public_key)])[0],
        "bad_public_key": seal(key, [enrolment(key, algorithm=2)])[0],
        "too_large": seal(key, [enrolment(key)._replace(body=bytes(256 * KIB))])[0],
        "malformed": seal(key, [enrolment(key)._replace(body=b"\xdc\xff\xff" * 80_000)])[0],
    }
    for reason, data in cases.items():
        with pytest.raises(TocsinError) as caught:
            by.open(data, AT_ENROL, now_ns=NOW)
        assert caught.value.reason == reason


def test_keys_that_strangers_bring_take_no_window_of_their_own() -> None:
    """Anybody can make keys: what is kept for them must have one bound, not one a key."""
    by = known()
    by.enrolments = ReplayWindow(max_ids_per_key=2)
    for _ in range(2):
        key = fresh_key()
        by.open(seal(key, [enrolment(key)])[0], AT_ENROL, now_ns=NOW)
    assert by.replay._windows == {}
    key = fresh_key()
    with pytest.raises(ExhaustedError):
        by.open(seal(key, [enrolment(key)])[0], AT_ENROL, now_ns=NOW)


def test_an_event_arrives_under_its_own_name_alone() -> None:
    arrival = at(EVENT, service="router", kind="delivery")
    assert arrival.type_name == "event.router.delivery"
