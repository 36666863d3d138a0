"""Signatures, batch signing, certificates and trust: everything that decides whether bytes are believed.

The rooms, lowest first: ``signatures`` (what a signature is), ``backends`` (who computes it), ``merkle``
and ``batch`` (one signature for many contents), ``keys``, ``certificates`` and ``authority`` (who vouches
for whom), ``trust`` (whom to believe). No I/O but key files, no clock, and no exception but
:class:`~tocsin.contracts.errors.TocsinError` for any bytes from outside.
"""

from __future__ import annotations

from tocsin.crypto.authority import Authority
from tocsin.crypto.backends import available_backends, select_backend
from tocsin.crypto.batch import BATCH_CONTEXT, BatchVerifier, Proof, sign_batch, signed_message
from tocsin.crypto.certificates import MAX_CERTIFICATE_BYTES, MAX_NAMES, Certificate
from tocsin.crypto.keys import LocalKey
from tocsin.crypto.merkle import MAX_LEAVES, MerkleTree, leaf_hash, node_hash, root_from_path
from tocsin.crypto.signatures import (
    Algorithm,
    Counters,
    SignatureBackend,
    Signer,
    Verifier,
    generate_seed,
    key_id,
)
from tocsin.crypto.trust import Identity, TrustStore

__all__ = [
    "BATCH_CONTEXT",
    "MAX_CERTIFICATE_BYTES",
    "MAX_LEAVES",
    "MAX_NAMES",
    "Algorithm",
    "Authority",
    "BatchVerifier",
    "Certificate",
    "Counters",
    "Identity",
    "LocalKey",
    "MerkleTree",
    "Proof",
    "SignatureBackend",
    "Signer",
    "TrustStore",
    "Verifier",
    "available_backends",
    "generate_seed",
    "key_id",
    "leaf_hash",
    "node_hash",
    "root_from_path",
    "select_backend",
    "sign_batch",
    "signed_message",
]
