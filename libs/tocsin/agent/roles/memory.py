"""A bounded memory: what was kept longest ago is forgotten when it is full."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from tocsin.contracts.errors import InvalidInputError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """At most ``size`` values by key. Keeping a value again makes it the youngest; reading does not."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InvalidInputError(f"a memory of {size}", reason="bad_size")
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def keep(self, key: K, value: V) -> None:
        """Remember ``value``, and forget the oldest if there is no room."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def get(self, key: K) -> V | None:
        """Return what is remembered of ``key``."""
        return self._kept.get(key)

    def take(self, key: K) -> V | None:
        """Return what is remembered of ``key``, and forget it."""
        return self._kept.pop(key, None)

    def values(self) -> list[V]:
        """Return everything that is remembered, the oldest first."""
        return list(self._kept.values())

    def items(self) -> list[tuple[K, V]]:
        """Return everything that is remembered with its keys, the oldest first."""
        return list(self._kept.items())

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)
