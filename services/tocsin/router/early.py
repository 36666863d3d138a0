"""Receipts that come before the emergency that they confirm: a host confirms once, so they are kept for it.

Pure and bounded: each host has room for :data:`MAX_OF_HOST` receipts and all together for :data:`MAX_EARLY`; when
that is full the oldest emergency's go. What nobody has asked for within :data:`KEPT_S` goes, too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tocsin.contracts.routing import MAX_DEADLINE_S, Receipt

MAX_EARLY = 4096
MAX_OF_HOST = 256
"""So that one host cannot push out what the others have confirmed."""
KEPT_S = MAX_DEADLINE_S
"""After so long every emergency has been closed."""


class Early(NamedTuple):
    """One receipt, and which host signed it."""

    host: str
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class _Kept:
    since_s: float
    receipts: dict[Early, int]
    """With the moment of each, nanoseconds since the epoch; in the order in which they came."""


class EarlyReceipts:
    """Receipts by the leaf that they name."""

    def __init__(self) -> None:
        self._by_leaf: OrderedDict[bytes, _Kept] = OrderedDict()
        self._of_host: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, host: str, receipt: Receipt, *, at_s: float, now_ns: int) -> bool:
        """Keep a receipt; False if its host has no room left. The same one again takes none."""
        self._forget(at_s)
        early = Early(host, receipt)
        kept = self._by_leaf.get(receipt.leaf)
        if kept is not None and early in kept.receipts:
            return True
        if self._of_host[host] >= MAX_OF_HOST:
            return False
        if self._count >= MAX_EARLY:
            self.take(next(iter(self._by_leaf)))
        kept = self._by_leaf.setdefault(receipt.leaf, _Kept(at_s, {}))
        kept.receipts[early] = now_ns
        self._of_host[host] += 1
        self._count += 1
        return True

    def take(self, leaf: bytes) -> Iterable[tuple[Early, int]]:
        """Return what is kept for an emergency, each with its moment, and keep it no longer."""
        kept = self._by_leaf.pop(leaf, None)
        if kept is None:
            return ()
        for early in kept.receipts:
            self._of_host[early.host] -= 1
            if not self._of_host[early.host]:
                del self._of_host[early.host]
        self._count -= len(kept.receipts)
        return kept.receipts.items()

    def _forget(self, at_s: float) -> None:
        while self._by_leaf and next(iter(self._by_leaf.values())).since_s < at_s - KEPT_S:
            self.take(next(iter(self._by_leaf)))
