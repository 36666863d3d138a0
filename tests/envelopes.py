"""What tests of the bus forge envelopes with: real keys, real certificates, any content."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tocsin.bus.envelope import Content, encode_body, encode_content, encode_envelope, make_content
from tocsin.bus.opener import Arrival, Opener
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import DELIVER_ALL, HEARTBEAT
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.routing import ThreatAlert
from tocsin.contracts.subjects import Subject
from tocsin.crypto import Algorithm, Authority, LocalKey, Proof, TrustStore, select_backend, sign_batch

DOMAIN = "test.tocsin"
START = datetime(2026, 11, 23, 12, tzinfo=UTC)
MS = 1_000_000
SECOND = 1_000 * MS
NOW = int(START.timestamp()) * SECOND
"""The present of these tests."""
STARTED = NOW - 3600 * SECOND
"""When the process that opens started."""

HOST = SpiffeId.host(DOMAIN, "h1")
GUARDIAN = SpiffeId.agent(DOMAIN, Role.GUARDIAN, "guardian-1")
ROUTER = SpiffeId.service(DOMAIN, ServiceName.ROUTER, "0")
MONITOR = SpiffeId.service(DOMAIN, ServiceName.MONITOR, "0")


@dataclass(frozen=True)
class Party:
    """Somebody with a certified key."""

    id: SpiffeId
    key: LocalKey
    chain: tuple[bytes, ...] = field(repr=False)


@functools.cache
def authority() -> Authority:
    """Return the root of these tests."""
    return Authority.create_root(
        DOMAIN, backend=select_backend("openssl"), now=START - timedelta(days=10), algorithm=Algorithm.ML_DSA_44
    )


@functools.cache
def party(
    spiffe_id: SpiffeId, *, days_ago: int = 0, hours: int = 24, algorithm: Algorithm = Algorithm.ML_DSA_44
) -> Party:
    """Certify a key of its own for ``spiffe_id``, from an hour before so many days ago, for so many hours."""
    key = LocalKey.generate(select_backend("openssl"), algorithm)
    certificate = authority().issue(
        ids=(spiffe_id,),
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=1,
        now=START - timedelta(days=days_ago, hours=1),
        lifetime=timedelta(hours=hours),
    )
    return Party(spiffe_id, key, certificate.chain_der)


def opener(*known: Party) -> Opener:
    """Return a fresh opener that knows these parties."""
    backend = select_backend("openssl")
    trust = TrustStore(authority().certificate_pem, backend)
    for one in known:
        trust.add_chain(one.chain)
    return Opener(trust, backend, started_ns=STARTED)


def content(sender: SpiffeId, type_name: str, body: Message | bytes, **changes: object) -> Content:
    """Return a content that is in order but for ``changes``."""
    made = make_content(
        type_name=type_name,
        sender=str(sender),
        audience="event",
        body=body if isinstance(body, bytes) else encode_body(body),
        now_ns=NOW,
        ttl_ms=5_000,
        priority=Priority.NORMAL,
    )
    return made._replace(**changes)  # type: ignore[arg-type]  # tests put values of wrong types there on purpose


def seal(key: LocalKey, contents: Sequence[Content]) -> list[bytes]:
    """Sign contents in one batch; return their envelopes."""
    encoded = [encode_content(one) for one in contents]
    return [
        encode_envelope(data, key.signer.key_id, proof)
        for data, proof in zip(encoded, sign_batch(key.signer, encoded), strict=True)
    ]


def proof_of(key: LocalKey, encoded: Sequence[bytes], index: int) -> Proof:
    """Return one proof of a batch, for tests that bend it."""
    return sign_batch(key.signer, encoded)[index]


def heartbeat(**changes: object) -> Content:
    """Return the content of a live message."""
    made = content(HOST, "heartbeat", Heartbeat(host="h1", agents=("a1",), handled=1, failed=0))
    return made._replace(**changes)  # type: ignore[arg-type]  # as above


def alert(**changes: object) -> Content:
    """Return the content of a stored message to everyone."""
    made = content(GUARDIAN, "threat_alert", ThreatAlert(severity=Severity.HIGH, summary="x"), audience="all")
    return made._replace(**changes)  # type: ignore[arg-type]  # as above


def at(subject: Subject, **tokens: str) -> Arrival:
    """Return the arrival on a concrete subject."""
    return Arrival.on(subject, subject.at(**tokens), frozenset({"all", "role.admin"}))


AT_HEARTBEAT = at(HEARTBEAT, host="h1")
AT_ALL = at(DELIVER_ALL)
