"""Which keys are ready, and which were delivered to one end and wait for the other.

Pure: no I/O and no clock. Bounded: at most :data:`MAX_READY_BYTES` of fresh key material (a full store takes no more),
and :data:`MAX_DELIVERED` keys that wait; beyond, or after :data:`DELIVERED_S` seconds, the oldest is forgotten, and
whoever asks for it is told that it is not known. Each end gets a key once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from tocsin.contracts.errors import InvalidInputError, UnavailableError

KEY_BYTES = 32
MAX_READY_BYTES = 4096 * KEY_BYTES
MAX_DELIVERED = 4096
DELIVERED_S = 300.0


class Delivered(NamedTuple):
    """A key that its first end has."""

    master: str
    slave: str
    key: bytes
    at_s: float


class KeyStore:
    """Key material of one link."""

    def __init__(self) -> None:
        self._ready = bytearray()
        self._delivered: OrderedDict[str, Delivered] = OrderedDict()

    @property
    def ready(self) -> int:
        """How many keys can be had now."""
        return len(self._ready) // KEY_BYTES

    def add(self, material: bytes) -> int:
        """Take fresh material; return how many bytes there was room for."""
        room = max(0, MAX_READY_BYTES - len(self._ready))
        self._ready += material[:room]
        return min(room, len(material))

    def deliver(self, master: str, slave: str, key_id: str, now_s: float) -> bytes:
        """Give the master a fresh key, and keep it for the slave.

        Raises:
            UnavailableError: ``no_keys``.
        """
        if self.ready < 1:
            raise UnavailableError("no key is ready", reason="no_keys")
        self._forget(now_s)
        key = bytes(self._ready[:KEY_BYTES])
        del self._ready[:KEY_BYTES]
        self._delivered[key_id] = Delivered(master, slave, key, now_s)
        if len(self._delivered) > MAX_DELIVERED:
            self._delivered.popitem(last=False)
        return key

    def collect(self, master: str, slave: str, key_id: str, now_s: float) -> bytes:
        """Give the slave the key that the master got, once.

        Raises:
            InvalidInputError: ``unknown_key``: there is no such key for these two, or not any more.
        """
        self._forget(now_s)
        waiting = self._delivered.get(key_id)
        if waiting is None or (waiting.master, waiting.slave) != (master, slave):
            raise InvalidInputError("no such key waits for you", reason="unknown_key")
        del self._delivered[key_id]
        return waiting.key

    def _forget(self, now_s: float) -> None:
        while self._delivered and now_s - next(iter(self._delivered.values())).at_s >= DELIVERED_S:
            self._delivered.popitem(last=False)
