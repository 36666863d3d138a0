"""The figures of all processes, and their sums: no bus, no clock.

Invariants:

* One snapshot a process, the latest by when it was issued; an older one that arrives late is no change.
* A snapshot tells of its sender alone: of another process it is refused.
* Memory is bounded: ``max_processes`` snapshots and ``max_emergencies`` accounts; an account beyond them
  leaves its numbers in the sums and can no longer change.
* Sums are of the processes that are known now: they fall when a process is dropped or starts again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from tocsin.contracts.errors import DeniedError, ExhaustedError
from tocsin.contracts.operations import Figures, MetricsSnapshot
from tocsin.contracts.routing import Delivery

MAX_TOTALS = 1024
"""Bound of the contract :class:`Figures`."""
MAX_TOTAL = 2**63 - 1
"""Where a sum stops: a process may count what it likes, and the wire has 64 bits."""
OTHER = "other"
"""The sum of counters for whose names there was no room."""
DUE = "deliveries_due"
MADE = "deliveries_made"
ANSWER_BYTES = 800 * 1024
"""Bytes of snapshots in one answer: an answer holds 900 KiB with its envelope and the sums."""


@dataclass(frozen=True, slots=True)
class _Kept:
    snapshot: MetricsSnapshot
    issued_ns: int
    taken_ns: int
    size_bytes: int


class FigureBook:
    """The latest snapshot of each process, and the accounts of emergencies."""

    def __init__(self, *, max_processes: int, silent_after_ns: int, max_emergencies: int) -> None:
        self._max_processes = max_processes
        self._silent_after_ns = silent_after_ns
        self._max_emergencies = max_emergencies
        self._kept: dict[str, _Kept] = {}
        self._accounts: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._settled = (0, 0)

    def __len__(self) -> int:
        return len(self._kept)

    def take(
        self, snapshot: MetricsSnapshot, *, sender: str, issued_ns: int, now_ns: int, size_bytes: int
    ) -> bool:
        """Keep a process's snapshot.

        Args:
            snapshot: the figures.
            sender: token of the process that signed them.
            issued_ns: when it did.
            now_ns: the present.
            size_bytes: length of the encoded snapshot.

        Returns:
            False if a later one is kept already.

        Raises:
            DeniedError: ``wrong_process``: it speaks for another process.
            ExhaustedError: ``too_many_processes``.
        """
        if snapshot.process != sender:
            raise DeniedError(f"{sender} sends figures of {snapshot.process}", reason="wrong_process")
        held = self._kept.get(sender)
        if held is not None and held.issued_ns > issued_ns:
            return False
        if held is None and len(self._kept) >= self._max_processes:
            self.expire(now_ns)
            if len(self._kept) >= self._max_processes:
                raise ExhaustedError(
                    f"{self._max_processes} processes are known already", reason="too_many_processes"
                )
        self._kept[sender] = _Kept(snapshot, issued_ns, now_ns, size_bytes)
        return True

    def deliver(self, delivery: Delivery) -> None:
        """Take the account of an emergency; a later account of the same one replaces it."""
        self._accounts.pop(delivery.leaf, None)
        self._accounts[delivery.leaf] = (delivery.due, delivery.delivered)
        if len(self._accounts) > self._max_emergencies:
            _, (due, made) = self._accounts.popitem(last=False)
            self._settled = (self._settled[0] + due, self._settled[1] + made)

    def expire(self, now_ns: int) -> int:
        """Drop the processes that are silent; return how many."""
        silent = [
            process for process, kept in self._kept.items() if now_ns - kept.taken_ns > self._silent_after_ns
        ]
        for process in silent:
            del self._kept[process]
        return len(silent)

    def totals(self) -> dict[str, int]:
        """Return the sums by name, at most :data:`MAX_TOTALS` of them."""
        sums: Counter[str] = Counter()
        for kept in self._kept.values():
            sums.update(kept.snapshot.counters)
        bounded = _bound(sums, MAX_TOTALS - 2)
        accounts = self._accounts.values()
        bounded[DUE] = self._settled[0] + sum(due for due, _ in accounts)
        bounded[MADE] = self._settled[1] + sum(made for _, made in accounts)
        return {name: min(total, MAX_TOTAL) for name, total in bounded.items()}

    def figures(self, now_ns: int) -> Figures:
        """Return all figures, by process name; those that do not fit into one answer are only counted."""
        self.expire(now_ns)
        fitting: list[MetricsSnapshot] = []
        left_bytes = ANSWER_BYTES
        for process in sorted(self._kept):
            kept = self._kept[process]
            if kept.size_bytes <= left_bytes:
                left_bytes -= kept.size_bytes
                fitting.append(kept.snapshot)
        return Figures(processes=tuple(fitting), totals=self.totals(), left_out=len(self._kept) - len(fitting))


def _bound(sums: Mapping[str, int], most: int) -> dict[str, int]:
    """Keep the first ``most`` names in order of the alphabet; the rest go into one sum."""
    names = sorted(name for name in sums if name not in {DUE, MADE})
    if len(names) <= most:
        return {name: sums[name] for name in names}
    kept = [name for name in names if name != OTHER][: most - 1]
    return {name: sums[name] for name in kept} | {OTHER: sum(sums[name] for name in {*names} - {*kept})}
