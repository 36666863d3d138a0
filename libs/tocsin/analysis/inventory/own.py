"""Tocsin's own cryptography, declared and not measured, so that an inventory does not leave out its author.

* Envelopes, certificates and decisions: ML-DSA-65 (FIPS 204).
* Sealed bodies: HPKE with MLKEM768-X25519 and AES-256-GCM (:mod:`tocsin.crypto.sealing`).
* The link to the broker: plain TCP as ``tocsin up`` starts it, so whoever can tap it reads what is not sealed,
  and needs no quantum computer for it. Probe the broker's port where it has TLS with ``handshake_first``.
"""

from __future__ import annotations

from tocsin.analysis.inventory.judging import ENVELOPE, PLAIN
from tocsin.analysis.inventory.model import Certificate, InventoryBuilder, Variant

SEALED = "tocsin-sealed-bodies"
BROKER = "tocsin-broker"
BROKER_PORT = 4222
SEAL_SUITE = "TLS_AES_256_GCM_SHA256"
"""Not TLS: the same cipher and hash, by which the classification finds them."""


def declare(builder: InventoryBuilder, *, now_s: float) -> None:
    """Add Tocsin's own parts to ``builder``; certificates live 30 days at most (services')."""
    certificate = Certificate(
        id="declared-tocsin-identity",
        subject="CN=a Tocsin identity",
        issuer="CN=the Tocsin authority",
        not_before_s=now_s,
        not_after_s=now_s + 30 * 86_400,
        key_kind="ml-dsa-65",
        key_bits=None,
        curve="",
        signature="ml-dsa-65",
    )
    builder.add_certificate(certificate)
    builder.add_session(
        SEALED,
        BROKER_PORT,
        Variant(ENVELOPE, SEAL_SUITE, "X25519MLKEM768"),
        at_s=now_s,
        source="declared",
        certificates=(certificate.id,),
    )
    builder.add_session(BROKER, BROKER_PORT, Variant(PLAIN, ""), at_s=now_s, source="declared")
