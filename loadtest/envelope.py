"""Measure how many envelopes one core makes and opens, and their size on the wire.

    python loadtest/envelope.py --seconds 1

For each signature backend that this machine has, each algorithm and batch size: one thread makes envelopes as
the bus does (body, content, one signature for the batch, inclusion proofs, bytes) and opens them as the bus does
(all twelve steps). There is no broker and no event loop. Every batch that is opened costs a full verification,
because each round begins with an opener that has seen nothing; the verifications are counted in the backend.

Rates are per second of this thread's CPU time: what a core does that has nothing else to do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from _traffic import padded
from common import Environment, emit, exit_with, positive_float, positive_int, say, show_table

from tocsin.bus import Arrival, Opener
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.catalogue import ROUTE, THREAT_ALERT
from tocsin.contracts.identifiers import Priority, Role, Severity, SpiffeId
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import (
    Algorithm,
    Authority,
    LocalKey,
    SignatureBackend,
    TrustStore,
    available_backends,
    sign_batch,
)

DOMAIN = "load.tocsin"
BATCHES = (1, 8, 64, 256)
SENDER = SpiffeId.agent(DOMAIN, Role.SENTINEL, "sentinel-01")
SUBJECT = ROUTE.at(type=THREAT_ALERT.name, priority=Priority.NORMAL.token, agent=SENDER.name)
COLUMNS = {
    "backend": "signature_backend",
    "algorithm": "signature_algorithm",
    "batch": "batch",
    "make/s": "make_per_s",
    "open/s": "open_per_s",
    "bytes": "envelope_bytes",
}
"""Of the table: heading and figure."""
POOL = 256
"""Envelopes made beforehand and opened again and again, each time by an opener that has seen none of them."""


@dataclass(frozen=True, slots=True)
class Rig:
    """One backend and algorithm: a key, and the trust of whoever opens."""

    backend: SignatureBackend
    key: LocalKey
    trust: TrustStore
    body: ThreatAlert

    @classmethod
    def build(cls, backend: SignatureBackend, algorithm: Algorithm, body: ThreatAlert) -> Rig:
        """Make a root, a key and its certificate."""
        now = datetime.now(UTC)
        root = Authority.create_root(DOMAIN, now=now, backend=backend)
        key = LocalKey.generate(backend, algorithm)
        certificate = root.issue(
            ids=[SENDER], public_key=key.signer.public_key, algorithm=algorithm, generation=1, now=now
        )
        trust = TrustStore(root.certificate_pem, backend)
        trust.add_chain(certificate.chain_der)
        return cls(backend, key, trust, body)

    def make(self, batch: int) -> list[bytes]:
        """Make one batch of envelopes, as the bus does."""
        contents = [self._content() for _ in range(batch)]
        proofs = sign_batch(self.key.signer, contents)
        key_id = self.key.signer.key_id
        return [
            encode_envelope(content, key_id, proof) for content, proof in zip(contents, proofs, strict=True)
        ]

    def _content(self) -> bytes:
        return encode_content(
            make_content(
                type_name=THREAT_ALERT.name,
                sender=str(SENDER),
                audience="all",
                body=encode_body(self.body),
                now_ns=time.time_ns(),
                ttl_ms=THREAT_ALERT.ttl_ms,
            )
        )

    def open(self, envelopes: Sequence[bytes]) -> None:
        """Open them with an opener that has seen nothing, as the bus does."""
        opener = Opener(self.trust, self.backend, started_ns=0)
        for data in envelopes:
            opener.open(data, Arrival.on(ROUTE, SUBJECT), now_ns=time.time_ns())


@dataclass(frozen=True, slots=True)
class Rate:
    """What was done in how much CPU time, and how many signatures or full verifications that took."""

    done: int
    cpu_s: float
    full: int

    @property
    def per_s(self) -> float:
        """Envelopes per second of a core."""
        return round(self.done / self.cpu_s, 1)


def measure_making(rig: Rig, batch: int, seconds: float) -> Rate:
    """Make batch after batch for so many seconds of CPU time."""
    done, before = 0, rig.backend.counters.signatures
    begun = time.thread_time()
    while (spent := time.thread_time() - begun) < seconds:
        rig.make(batch)
        done += batch
    return Rate(done, spent, rig.backend.counters.signatures - before)


def measure_opening(rig: Rig, envelopes: Sequence[bytes], seconds: float) -> Rate:
    """Open the pool round after round for so many seconds of CPU time."""
    done, before = 0, rig.backend.counters.verifications
    begun = time.thread_time()
    while (spent := time.thread_time() - begun) < seconds:
        rig.open(envelopes)
        done += len(envelopes)
    return Rate(done, spent, rig.backend.counters.verifications - before)


def measure(rig: Rig, batch: int, seconds: float) -> dict[str, Any]:
    """Measure one point."""
    rig.make(batch)  # warm: what is lazily built is built
    envelopes = [data for _ in range(max(1, POOL // batch)) for data in rig.make(batch)]
    rig.open(envelopes)
    making = measure_making(rig, batch, seconds)
    opening = measure_opening(rig, envelopes, seconds)
    return {
        "signature_backend": rig.backend.name,
        "signature_algorithm": rig.key.algorithm.label,
        "batch": batch,
        "make_per_s": making.per_s,
        "open_per_s": opening.per_s,
        "signatures_per_envelope": round(making.full / making.done, 6),
        "full_verifications_per_envelope": round(opening.full / opening.done, 6),
        "envelope_bytes": round(sum(map(len, envelopes)) / len(envelopes), 1),
    }


def body_of(size: int) -> ThreatAlert:
    """Return an alert whose body has ``size`` bytes, or as near as its text can come."""
    return _alert(padded(_alert, size))


def _alert(text: str) -> ThreatAlert:
    return ThreatAlert(severity=Severity.HIGH, summary=text)


def main() -> None:
    """Measure every point and print the report."""
    options = _arguments()
    backends = [one for one in available_backends() if options.backend in {"all", one.name}]
    algorithms = [one for one in Algorithm if options.algorithm in {"all", one.label}]
    body = body_of(options.body_bytes)
    points = []
    for backend in backends:
        for algorithm in algorithms:
            say(f"{backend.name} {algorithm.label}: batches of {', '.join(map(str, BATCHES))}")
            rig = Rig.build(backend, algorithm, body)
            points += [measure(rig, batch, options.seconds) for batch in BATCHES]
    show_table("envelopes on one core", list(COLUMNS), ([p[name] for name in COLUMNS.values()] for p in points))
    emit(
        "loadtest/envelope.py",
        {"seconds": options.seconds, "body_bytes": len(encode_body(body)), "batches": list(BATCHES)},
        Environment.here(
            backends=[one.name for one in backends],
            algorithms=[one.label for one in algorithms],
            key_scope=None,
        ),
        {"points": points},
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=positive_float, default=1.0, help="of CPU time, for each figure")
    parser.add_argument("--body-bytes", type=positive_int, default=400, help="size of a message's body")
    parser.add_argument(
        "--backend",
        choices=["all", *(b.name for b in available_backends())],
        default="all",
        help="which backend",
    )
    parser.add_argument(
        "--algorithm", choices=["all", *(a.label for a in Algorithm)], default="all", help="which algorithm"
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
