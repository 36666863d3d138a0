"""Hash a batch of contents to one root, and prove that a content is among them.

The tree hash of RFC 9162 section 2.1. It is built bottom up, a node without a sibling rising unchanged to
the next level, which gives the same tree as the RFC's recursive definition. A path is refused unless its
length is exactly what index and size imply, so one content has one proof.

Example:
    >>> leaves = [leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")]
    >>> tree = MerkleTree(leaves)
    >>> root_from_path(leaves[2], 2, 3, tree.path(2)) == tree.root
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from tocsin.contracts.errors import InvalidInputError, UntrustedError

MAX_LEAVES = 1024
"""Most leaves of a tree (envelope.md): a path has at most ten nodes."""

HASH_BYTES = 32
"""Length of a leaf, a node and a root."""


def leaf_hash(content: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || content)."""
    return sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """The tree over 1 to 1024 leaf hashes, all levels built once; a path is then O(log n)."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not 1 <= len(leaves) <= MAX_LEAVES:
            raise InvalidInputError(
                f"a tree has 1 to {MAX_LEAVES} leaves, not {len(leaves)}", reason="bad_batch_size"
            )
        level = list(leaves)
        self._levels = [level]
        while len(level) > 1:
            above = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            if len(level) % 2:
                above.append(level[-1])
            self._levels.append(above)
            level = above

    @property
    def root(self) -> bytes:
        """The hash of the whole tree."""
        return self._levels[-1][0]

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self._levels[0])

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the inclusion path of leaf ``index``, lowest sibling first."""
        if not 0 <= index < self.size:
            raise InvalidInputError(f"no leaf {index} in a tree of {self.size}", reason="bad_leaf_index")
        siblings: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index >>= 1
        return tuple(siblings)


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that ``leaf`` at ``index`` of ``size`` and its ``path`` lead to.

    This is RFC 9162 section 2.1.3.2 up to the comparison, which is the signature's to make.

    Raises:
        UntrustedError: reason ``bad_inclusion_proof``, unless ``0 <= index < size <= 1024``, every hash has
            32 bytes and the path is exactly as long as index and size imply.
    """
    if not 0 <= index < size <= MAX_LEAVES or len(leaf) != HASH_BYTES:
        raise _refusal()
    node, last, running = index, size - 1, leaf  # fn, sn and r of the RFC
    for sibling in path:
        if last == 0 or len(sibling) != HASH_BYTES:
            raise _refusal()
        if node & 1 or node == last:
            running = sha256(b"\x01" + sibling + running).digest()
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            running = sha256(b"\x01" + running + sibling).digest()
        node >>= 1
        last >>= 1
    if last != 0:
        raise _refusal()
    return running


def _refusal() -> UntrustedError:
    return UntrustedError("the inclusion proof does not fit its index and size", reason="bad_inclusion_proof")
