"""Sign many contents with one signature, and verify that signature once however many of them arrive.

The signed message is the Merkle root of the contents and their number, under the context
``tocsin/envelope/1`` (envelope.md, "Batch signing"). Opening one content is in two parts, so that the event
loop never waits for a signature:

    root = BatchVerifier.root_of(leaf, proof)             # some hashes: on the event loop
    if not batches.known(verifier.key_id, root, proof):
        BatchVerifier.check(verifier, root, proof)        # a full verification: in a worker thread
        batches.remember(verifier.key_id, root, proof)

:meth:`BatchVerifier.verify` is the three in a row. Only a signature that was verified is remembered, so
nothing that an attacker sends can displace entries without costing a valid signature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto.merkle import MerkleTree, leaf_hash, root_from_path
from tocsin.crypto.signatures import Algorithm, Signer, Verifier

BATCH_CONTEXT = b"tocsin/envelope/1"
"""The ML-DSA context string of every envelope's signature."""


@dataclass(frozen=True, slots=True)
class Proof:
    """That a content is leaf ``index`` of a batch of ``size`` whose root was signed."""

    algorithm: Algorithm
    signature: bytes
    index: int
    size: int
    path: tuple[bytes, ...]


def signed_message(root: bytes, size: int) -> bytes:
    """Return what a batch's signature covers: ``root || size``, size as 4 bytes, big-endian."""
    return root + size.to_bytes(4, "big")


def sign_batch(signer: Signer, contents: Sequence[bytes]) -> list[Proof]:
    """Sign 1 to 1024 contents with one signature; return their proofs in the same order.

    Raises:
        InvalidInputError: reason ``bad_batch_size``, for none or too many.
    """
    tree = MerkleTree([leaf_hash(content) for content in contents])
    signature = signer.sign(signed_message(tree.root, tree.size), BATCH_CONTEXT)
    return [
        Proof(signer.algorithm, signature, index, tree.size, tree.path(index)) for index in range(tree.size)
    ]


_Key = tuple[bytes, bytes, int, Algorithm]


class BatchVerifier:
    """Remembers which batches were verified: an LRU of at most ``max_cached``. Safe in several threads.

    An entry keeps its signature (3.3 kB with ML-DSA-65), so the default is at most 15 MB.
    """

    def __init__(self, max_cached: int = 4096) -> None:
        if max_cached < 1:
            raise InvalidInputError(f"max_cached is at least 1, not {max_cached}")
        self._max_cached = max_cached
        self._verified: OrderedDict[_Key, bytes] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._verified)

    def verify(self, verifier: Verifier, content_leaf: bytes, proof: Proof) -> None:
        """Verify that the content hashed to ``content_leaf`` was signed by ``verifier``'s key.

        Raises:
            UntrustedError: reason ``bad_inclusion_proof``, ``wrong_algorithm`` or ``bad_signature``.
        """
        root = self.root_of(content_leaf, proof)
        if not self.known(verifier.key_id, root, proof):
            self.check(verifier, root, proof)
            self.remember(verifier.key_id, root, proof)

    @staticmethod
    def root_of(content_leaf: bytes, proof: Proof) -> bytes:
        """Return the root that the proof leads to: hashes only, at most ten."""
        return root_from_path(content_leaf, proof.index, proof.size, proof.path)

    @staticmethod
    def check(verifier: Verifier, root: bytes, proof: Proof) -> None:
        """Verify the signature in full: some ten to hundreds of microseconds, for a worker thread.

        Raises:
            UntrustedError: reason ``wrong_algorithm`` or ``bad_signature``.
        """
        if proof.algorithm != verifier.algorithm:
            raise UntrustedError(
                f"algorithm {proof.algorithm:d}, certified for {verifier.algorithm.label}",
                reason="wrong_algorithm",
            )
        if not verifier.verify(proof.signature, signed_message(root, proof.size), BATCH_CONTEXT):
            raise UntrustedError("the batch's signature is not valid", reason="bad_signature")

    def known(self, key_id: bytes, root: bytes, proof: Proof) -> bool:
        """Tell whether this very signature of this key over this root was verified before."""
        key = (key_id, root, proof.size, proof.algorithm)
        with self._lock:
            if self._verified.get(key) != proof.signature:
                return False
            self._verified.move_to_end(key)
            return True

    def remember(self, key_id: bytes, root: bytes, proof: Proof) -> None:
        """Record a signature that :meth:`check` has accepted; the least recently used makes room."""
        key = (key_id, root, proof.size, proof.algorithm)
        with self._lock:
            self._verified[key] = proof.signature
            self._verified.move_to_end(key)
            if len(self._verified) > self._max_cached:
                self._verified.popitem(last=False)
