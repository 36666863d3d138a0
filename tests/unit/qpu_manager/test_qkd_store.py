from __future__ import annotations

import pytest

from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.qpu_manager.qkd.store import DELIVERED_S, KEY_BYTES, MAX_DELIVERED, MAX_READY_BYTES, KeyStore


def test_each_end_gets_the_same_key_once() -> None:
    store = KeyStore()
    store.add(bytes(range(2 * KEY_BYTES)))
    key = store.deliver("east", "west", "id", 0.0)
    assert store.ready == 1
    for master, slave in (("west", "east"), ("east", "east")):
        with pytest.raises(InvalidInputError) as refused:
            store.collect(master, slave, "id", 1.0)
        assert refused.value.reason == "unknown_key"
    assert store.collect("east", "west", "id", 1.0) == key
    with pytest.raises(InvalidInputError):
        store.collect("east", "west", "id", 1.0)


def test_an_empty_store_says_so() -> None:
    store = KeyStore()
    store.add(bytes(KEY_BYTES - 1))
    with pytest.raises(UnavailableError) as refused:
        store.deliver("east", "west", "id", 0.0)
    assert refused.value.reason == "no_keys"


def test_it_is_bounded_and_forgets() -> None:
    store = KeyStore()
    assert store.add(bytes(MAX_READY_BYTES + 1)) == MAX_READY_BYTES
    assert store.add(b"x") == 0
    for number in range(MAX_DELIVERED):
        store.deliver("east", "west", str(number), 0.0)
    store.add(bytes(KEY_BYTES))
    store.deliver("east", "west", "last", DELIVERED_S / 2)
    assert len(store._delivered) == MAX_DELIVERED
    with pytest.raises(InvalidInputError):
        store.collect("east", "west", "0", 1.0)
    with pytest.raises(InvalidInputError):
        store.collect("east", "west", "1", DELIVERED_S)
    assert len(store.collect("east", "west", "last", DELIVERED_S)) == KEY_BYTES
