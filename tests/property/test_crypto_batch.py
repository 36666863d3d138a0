"""Whatever is changed in a signed batch is refused, and any bytes give a root or our error."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.contracts.errors import UntrustedError
from tocsin.crypto import (
    Algorithm,
    BatchVerifier,
    MerkleTree,
    Proof,
    Signer,
    Verifier,
    leaf_hash,
    root_from_path,
    select_backend,
    sign_batch,
)

REASONS = {"bad_inclusion_proof", "bad_signature", "wrong_algorithm"}


@functools.cache
def _pair() -> tuple[Signer, Verifier]:
    backend = select_backend("openssl")
    signer = backend.signer(Algorithm.ML_DSA_44, bytes(range(32)))
    return signer, backend.verifier(Algorithm.ML_DSA_44, signer.public_key)


@functools.cache
def _batch(size: int) -> tuple[list[bytes], list[Proof]]:
    contents = [f"content {number} of {size}".encode() for number in range(size)]
    return contents, sign_batch(_pair()[0], contents)


def _flip(text: bytes, bit: int) -> bytes:
    bit %= len(text) * 8
    flipped = bytearray(text)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


sizes = st.sampled_from([1, 2, 3, 5, 8, 13, 24])


@given(size=sizes, pick=st.integers(0, 2**16), bit=st.integers(0, 2**16), warm=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_refused(size: int, pick: int, bit: int, *, warm: bool, data: st.DataObject) -> None:
    contents, proofs = _batch(size)
    index = pick % size
    content, proof = contents[index], proofs[index]
    verifier = _pair()[1]
    batches = BatchVerifier()
    if warm:
        batches.verify(verifier, leaf_hash(content), proof)
    parts = ["content", "signature", "index", "size", "algorithm", *(["path"] if proof.path else [])]
    match data.draw(st.sampled_from(parts)):
        case "content":
            content = _flip(content, bit)
        case "signature":
            proof = replace(proof, signature=_flip(proof.signature, bit))
        case "path":
            place = bit % len(proof.path)
            path = [*proof.path]
            path[place] = _flip(path[place], bit)
            proof = replace(proof, path=tuple(path))
        case "index":
            proof = replace(proof, index=proof.index ^ 1 << bit % 10)
        case "size":
            proof = replace(proof, size=proof.size ^ 1 << bit % 11)
        case "algorithm":
            proof = replace(proof, algorithm=Algorithm.ML_DSA_87)
    with pytest.raises(UntrustedError) as caught:
        batches.verify(verifier, leaf_hash(content), proof)
    assert caught.value.reason in REASONS


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=70), st.data())
@settings(max_examples=100, deadline=None)
def test_every_leaf_leads_to_the_root_by_one_shape_of_path_only(
    contents: list[bytes], data: st.DataObject
) -> None:
    leaves = [leaf_hash(content) for content in contents]
    tree = MerkleTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = tree.path(index)
    assert root_from_path(leaves[index], index, tree.size, path) == tree.root
    for wrong in (path[:-1] if path else (bytes(32),), (*path, bytes(32))):
        with pytest.raises(UntrustedError):
            root_from_path(leaves[index], index, tree.size, wrong)


@given(
    leaf=st.binary(max_size=40),
    index=st.integers(-(2**70), 2**70) | st.integers(0, 30),
    size=st.integers(-(2**70), 2**70) | st.integers(0, 30),
    path=st.lists(st.binary(max_size=40) | st.just(bytes(32)), max_size=16),
)
@settings(max_examples=300, deadline=None)
def test_any_proof_gives_a_root_or_our_error(leaf: bytes, index: int, size: int, path: list[bytes]) -> None:
    try:
        root = root_from_path(leaf, index, size, path)
    except UntrustedError:
        return
    assert len(root) == 32
    assert 0 <= index < size <= 1024


@given(signature=st.binary(max_size=5000), message=st.binary(max_size=100), context=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_no_signature(signature: bytes, message: bytes, context: bytes) -> None:
    assert _pair()[1].verify(signature, message, context) is False
