"""Which pool gets an operation: the one that is expected to complete it first.

    wait = outstanding seconds / capacity          capacity = sum of slots * speed over the pool's workers
    completion = wait + cost / speed               speed = capacity / slots, of one slot

Seconds are those of a reference core; a worker measures its own speed against them. Of equal pools the first
by name is taken. On the reference workload (13,847 operations on 64 resources) this greedy rule comes within
1.3% of the bound where speeds are related, and 17.7% where costs are noisy (quantum.md of the design).

Outstanding is what was placed here and is not reported done. It is an estimate: another balancer's placements
are not in it, an operation whose end was not heard counts until it is too old, and one that was begun counts
in full until it ends.

No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

from tocsin.contracts.analysis import Operation, Placement, PoolStatus
from tocsin.contracts.errors import ExhaustedError, UnavailableError

MAX_CONSIDERED = 64
"""Pools that a placement names, best first."""

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the board keeps, and for how long; see the settings of the same names."""

    silent_after_s: float = 3.0
    max_workers: int = 1024
    max_outstanding: int = 10_000
    outstanding_s: float = 600.0
    max_remembered: int = 20_000


@dataclass(frozen=True, slots=True)
class _Heard:
    status: PoolStatus
    at_ns: int


@dataclass(frozen=True, slots=True)
class _Outstanding:
    cost_ns: int
    placed_ns: int


@dataclass(slots=True)
class _Line:
    """What one pool was given and has not done, oldest first. Whole nanoseconds, so that sums are exact."""

    operations: OrderedDict[bytes, _Outstanding] = field(default_factory=OrderedDict)
    total_ns: int = 0

    def add(self, operation: bytes, cost_s: float, now_ns: int) -> None:
        self.remove(operation)
        outstanding = _Outstanding(round(cost_s * _NS), now_ns)
        self.operations[operation] = outstanding
        self.total_ns += outstanding.cost_ns

    def remove(self, operation: bytes) -> None:
        outstanding = self.operations.pop(operation, None)
        if outstanding is not None:
            self.total_ns -= outstanding.cost_ns

    def drop_older(self, than_ns: int) -> None:
        while self.operations:
            oldest, outstanding = next(iter(self.operations.items()))
            if outstanding.placed_ns >= than_ns:
                return
            self.remove(oldest)


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that lives: its workers together."""

    name: str
    slots: int
    capacity: float
    """Reference seconds of work that it does in one second."""
    outstanding_s: float

    @property
    def wait_s(self) -> float:
        """When it is expected to begin something new, in seconds."""
        return self.outstanding_s / self.capacity

    def completion_s(self, cost_s: float) -> float:
        """When it is expected to have done something new, in seconds."""
        return self.wait_s + cost_s * self.slots / self.capacity


class Board:
    """What is known of the workers, what they were given, and the choice that follows."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._workers: dict[str, _Heard] = {}
        self._lines: dict[str, _Line] = {}
        self._placements: OrderedDict[bytes, Placement] = OrderedDict()

    def heard(self, status: PoolStatus, *, now_ns: int) -> None:
        """Take a worker's status; what it has ended is outstanding no longer.

        Raises:
            ExhaustedError: ``too_many_workers``.
        """
        self._drop_silent(now_ns)
        if status.worker not in self._workers and len(self._workers) >= self._bounds.max_workers:
            raise ExhaustedError(
                f"{self._bounds.max_workers} workers are known already", reason="too_many_workers"
            )
        self._workers[status.worker] = _Heard(status, now_ns)
        line = self._lines.get(status.pool)
        if line is not None:
            for operation in status.recent:
                line.remove(operation)

    def place(self, operation: Operation, *, now_ns: int) -> Placement:
        """Place an operation; one that was placed before gets the same placement, and counts once.

        Raises:
            UnavailableError: ``no_pool``: no pool lives.
            ExhaustedError: ``pools_full``: those that live have too much outstanding.
        """
        known = self.placed(operation.operation)
        if known is not None:
            return known
        pools = self._open_pools(now_ns)
        considered = {pool.name: pool.completion_s(operation.cost_s) for pool in pools}
        best = min(pools, key=lambda pool: (considered[pool.name], pool.name))
        names = heapq.nsmallest(MAX_CONSIDERED, considered, key=lambda name: (considered[name], name))
        placement = Placement(
            operation=operation.operation,
            pool=best.name,
            expected_wait_s=best.wait_s,
            considered={name: considered[name] for name in names},
        )
        self._lines.setdefault(best.name, _Line()).add(operation.operation, operation.cost_s, now_ns)
        self._placements[operation.operation] = placement
        if len(self._placements) > self._bounds.max_remembered:
            self._placements.popitem(last=False)
        return placement

    def placed(self, operation: bytes) -> Placement | None:
        """Return where an operation was placed, as far back as is remembered."""
        return self._placements.get(operation)

    def withdraw(self, operation: bytes) -> None:
        """Forget a placement that came to nothing: its work could not be published."""
        placement = self._placements.pop(operation, None)
        line = self._lines.get(placement.pool) if placement else None
        if line is not None:
            line.remove(operation)

    def pools(self, now_ns: int) -> tuple[Pool, ...]:
        """Return the pools that live, by name."""
        self._drop_silent(now_ns)
        for line in self._lines.values():
            line.drop_older(now_ns - round(self._bounds.outstanding_s * _NS))
        members: dict[str, list[PoolStatus]] = {}
        for heard in self._workers.values():
            members.setdefault(heard.status.pool, []).append(heard.status)
        return tuple(self._pool(name, members[name]) for name in sorted(members))

    def _pool(self, name: str, workers: list[PoolStatus]) -> Pool:
        line = self._lines.get(name)
        return Pool(
            name,
            slots=sum(worker.slots for worker in workers),
            capacity=sum(worker.slots * worker.speed for worker in workers),
            outstanding_s=line.total_ns / _NS if line else 0.0,
        )

    def _open_pools(self, now_ns: int) -> tuple[Pool, ...]:
        alive = self.pools(now_ns)
        if not alive:
            raise UnavailableError(
                "no pool of workers lives",
                reason="no_pool",
                advice="start a worker: python -m tocsin.balancer.worker",
            )
        pools = tuple(p for p in alive if self._outstanding(p.name) < self._bounds.max_outstanding)
        if not pools:
            raise ExhaustedError(
                f"every pool has {self._bounds.max_outstanding} operations outstanding", reason="pools_full"
            )
        return pools

    def _outstanding(self, pool: str) -> int:
        line = self._lines.get(pool)
        return len(line.operations) if line else 0

    def _drop_silent(self, now_ns: int) -> None:
        heard_since = now_ns - round(self._bounds.silent_after_s * _NS)
        self._workers = {name: heard for name, heard in self._workers.items() if heard.at_ns > heard_since}
        # A pool without workers and without work would otherwise be remembered for ever.
        alive = {heard.status.pool for heard in self._workers.values()}
        self._lines = {name: line for name, line in self._lines.items() if line.operations or name in alive}
