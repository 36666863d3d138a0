"""The tree is that of RFC 9162: compared with the RFC's own recursive definitions, written again here."""

from __future__ import annotations

from hashlib import sha256

import pytest

from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.crypto import MAX_LEAVES, MerkleTree, leaf_hash, node_hash, root_from_path

SIZES = [*range(1, 34), 63, 64, 65, 100, 1023, 1024]


def _split(size: int) -> int:
    """The largest power of two smaller than ``size`` (RFC 9162 section 2.1.1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _root(contents: list[bytes]) -> bytes:
    """MTH(D_n) of RFC 9162 section 2.1.1."""
    if len(contents) == 1:
        return sha256(b"\x00" + contents[0]).digest()
    k = _split(len(contents))
    return sha256(b"\x01" + _root(contents[:k]) + _root(contents[k:])).digest()


def _path(index: int, contents: list[bytes]) -> list[bytes]:
    """PATH(m, D_n) of RFC 9162 section 2.1.3.1."""
    if len(contents) == 1:
        return []
    k = _split(len(contents))
    if index < k:
        return [*_path(index, contents[:k]), _root(contents[k:])]
    return [*_path(index - k, contents[k:]), _root(contents[:k])]


def _contents(size: int) -> list[bytes]:
    return [number.to_bytes(2, "big") * (number % 7) for number in range(size)]


def _tree(contents: list[bytes]) -> MerkleTree:
    return MerkleTree([leaf_hash(content) for content in contents])


def test_known_answers() -> None:
    """The tree of certificate-transparency's ``merkle_tree_test.cc``: RFC 6962's hash, kept by RFC 9162."""
    contents = [
        bytes.fromhex(text)
        for text in (
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        )
    ]
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    assert {size: _tree(contents[:size]).root.hex() for size in roots} == roots


@pytest.mark.parametrize("size", SIZES)
def test_root_and_paths_are_those_of_the_recursive_definition(size: int) -> None:
    contents = _contents(size)
    tree = _tree(contents)
    assert tree.root == _root(contents)
    assert tree.size == size
    for index in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        path = tree.path(index)
        if size <= 100:
            assert list(path) == _path(index, contents)
        assert root_from_path(leaf_hash(contents[index]), index, size, path) == tree.root


def test_leaves_and_nodes_are_hashed_apart() -> None:
    """An inner node cannot be passed off as a leaf: RFC 9162 section 2.1.1 on second preimages."""
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


@pytest.mark.parametrize("size", [0, MAX_LEAVES + 1])
def test_a_tree_has_1_to_1024_leaves(size: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        MerkleTree([bytes(32)] * size)
    assert caught.value.reason == "bad_batch_size"


@pytest.mark.parametrize("index", [-1, 3, 1000])
def test_there_is_no_path_to_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(InvalidInputError):
        _tree(_contents(3)).path(index)


@pytest.mark.parametrize(
    ("index", "size", "length"),
    [
        pytest.param(5, 5, 1, id="index equals size"),
        pytest.param(-1, 5, 3, id="negative index"),
        pytest.param(0, 0, 0, id="empty tree"),
        pytest.param(0, -1, 0, id="negative size"),
        pytest.param(0, MAX_LEAVES + 1, 11, id="too large a tree"),
        pytest.param(0, 2**64, 64, id="absurd size"),
        pytest.param(0, 1, 1, id="path in a tree of one"),
        pytest.param(0, 5, 2, id="path too short"),
        pytest.param(0, 5, 4, id="path too long"),
        pytest.param(4, 5, 2, id="path too long for the last leaf"),
        pytest.param(4, 5, 0, id="path too short for the last leaf"),
        pytest.param(0, 1024, 100_000, id="endless path"),
    ],
)
def test_a_path_of_the_wrong_shape_is_refused(index: int, size: int, length: int) -> None:
    with pytest.raises(UntrustedError) as caught:
        root_from_path(bytes(32), index, size, [bytes(32)] * length)
    assert caught.value.reason == "bad_inclusion_proof"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_hashes_of_another_length_are_refused(length: int) -> None:
    for leaf, node in ((bytes(length), bytes(32)), (bytes(32), bytes(length))):
        with pytest.raises(UntrustedError):
            root_from_path(leaf, 0, 2, [node])
