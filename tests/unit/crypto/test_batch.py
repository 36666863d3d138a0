"""One signature for a batch is verified in full once, and again for whatever differs in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto import (
    BATCH_CONTEXT,
    Algorithm,
    BatchVerifier,
    LocalKey,
    SignatureBackend,
    leaf_hash,
    sign_batch,
    signed_message,
)

CONTENTS = [f"content {number}".encode() for number in range(24)]
LEAVES = [leaf_hash(content) for content in CONTENTS]


def test_the_signed_message_is_root_and_size() -> None:
    assert signed_message(b"\xab" * 32, 258) == b"\xab" * 32 + b"\x00\x00\x01\x02"


def test_a_batch_of_one_signs_its_leaf(openssl: SignatureBackend, keys: list[LocalKey]) -> None:
    (proof,) = sign_batch(keys[0].signer, [b"alone"])
    verifier = openssl.verifier(Algorithm.ML_DSA_44, keys[0].signer.public_key)
    assert (proof.index, proof.size, proof.path) == (0, 1, ())
    assert verifier.verify(proof.signature, leaf_hash(b"alone") + b"\x00\x00\x00\x01", BATCH_CONTEXT)


def test_a_batch_costs_one_signature_and_one_full_verification(backend: SignatureBackend) -> None:
    key = LocalKey.generate(backend, Algorithm.ML_DSA_44)
    verifier = backend.verifier(key.algorithm, key.signer.public_key)
    batches = BatchVerifier()
    signatures, verifications = backend.counters.signatures, backend.counters.verifications
    for leaf, proof in zip(LEAVES, sign_batch(key.signer, CONTENTS), strict=True):
        batches.verify(verifier, leaf, proof)
    assert backend.counters.signatures - signatures == 1
    assert backend.counters.verifications - verifications == 1
    assert len(batches) == 1


@pytest.mark.parametrize("count", [0, 1025])
def test_a_batch_has_1_to_1024_contents(keys: list[LocalKey], count: int) -> None:
    with pytest.raises(InvalidInputError):
        sign_batch(keys[0].signer, [b""] * count)


def test_the_largest_batch_verifies(openssl: SignatureBackend, keys: list[LocalKey]) -> None:
    contents = [str(number).encode() for number in range(1024)]
    proofs = sign_batch(keys[0].signer, contents)
    verifier = openssl.verifier(keys[0].algorithm, keys[0].signer.public_key)
    batches = BatchVerifier()
    for index in (0, 511, 512, 1023):
        batches.verify(verifier, leaf_hash(contents[index]), proofs[index])


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "after the batch was verified"])
def test_what_differs_from_a_verified_batch_is_refused(
    openssl: SignatureBackend, keys: list[LocalKey], *, warm: bool
) -> None:
    """The cache may speed up the truth only: each case is refused cold and warm, for the same reason."""
    verifier = openssl.verifier(keys[0].algorithm, keys[0].signer.public_key)
    thief = openssl.verifier(keys[1].algorithm, keys[1].signer.public_key)
    batches = BatchVerifier()
    proof = sign_batch(keys[0].signer, CONTENTS)[7]
    if warm:
        batches.verify(verifier, LEAVES[7], proof)
    cases = {
        "another content": (verifier, LEAVES[8], proof, "bad_signature"),
        "another key": (thief, LEAVES[7], proof, "bad_signature"),
        "another index": (verifier, LEAVES[7], replace(proof, index=8), "bad_signature"),
        "index out of the batch": (verifier, LEAVES[7], replace(proof, index=24), "bad_inclusion_proof"),
        "another size": (verifier, LEAVES[7], replace(proof, size=25), "bad_signature"),
        "no path": (verifier, LEAVES[7], replace(proof, path=()), "bad_inclusion_proof"),
        "another signature": (verifier, LEAVES[7], replace(proof, signature=bytes(2420)), "bad_signature"),
        "no signature": (verifier, LEAVES[7], replace(proof, signature=b""), "bad_signature"),
        "another algorithm": (
            verifier,
            LEAVES[7],
            replace(proof, algorithm=Algorithm.ML_DSA_65),
            "wrong_algorithm",
        ),
    }
    reasons = {}
    for case, (judge, leaf, candidate, _) in cases.items():
        with pytest.raises(UntrustedError) as caught:
            batches.verify(judge, leaf, candidate)
        reasons[case] = caught.value.reason
    assert reasons == {case: expected for case, (*_, expected) in cases.items()}
    batches.verify(verifier, LEAVES[7], proof)


def test_a_refused_signature_is_not_remembered(openssl: SignatureBackend, keys: list[LocalKey]) -> None:
    verifier = openssl.verifier(keys[0].algorithm, keys[0].signer.public_key)
    batches = BatchVerifier()
    forged = replace(sign_batch(keys[0].signer, CONTENTS)[0], signature=bytes(2420))
    for _ in range(2):
        with pytest.raises(UntrustedError):
            batches.verify(verifier, LEAVES[0], forged)
    assert len(batches) == 0


def test_the_split_for_worker_threads_is_what_verify_does(
    openssl: SignatureBackend, keys: list[LocalKey]
) -> None:
    verifier = openssl.verifier(keys[0].algorithm, keys[0].signer.public_key)
    batches = BatchVerifier()
    first, second, *_ = sign_batch(keys[0].signer, CONTENTS)
    root = batches.root_of(LEAVES[0], first)
    assert not batches.known(verifier.key_id, root, first)
    batches.check(verifier, root, first)
    batches.remember(verifier.key_id, root, first)
    assert batches.known(verifier.key_id, batches.root_of(LEAVES[1], second), second)
    assert not batches.known(keys[1].signer.key_id, root, first)


def test_the_cache_is_bounded_and_drops_the_least_recently_used(keys: list[LocalKey]) -> None:
    batches = BatchVerifier(max_cached=2)
    proofs = [sign_batch(keys[0].signer, [content])[0] for content in CONTENTS[:3]]
    key = keys[0].signer.key_id
    roots = LEAVES[:3]
    batches.remember(key, roots[0], proofs[0])
    batches.remember(key, roots[1], proofs[1])
    assert batches.known(key, roots[0], proofs[0])
    batches.remember(key, roots[2], proofs[2])
    assert [batches.known(key, root, proof) for root, proof in zip(roots, proofs, strict=True)] == [
        True,
        False,
        True,
    ]
    assert len(batches) == 2


def test_proofs_of_a_batch_share_their_signature(keys: list[LocalKey]) -> None:
    proofs = sign_batch(keys[0].signer, CONTENTS)
    assert all(one.signature is other.signature for one, other in pairwise(proofs))
    assert [proof.index for proof in proofs] == list(range(len(CONTENTS)))
