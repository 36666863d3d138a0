"""Verify what all of a process's lines have received: in groups, in order, off the event loop.

A host has a line for every agent, and a batch's messages come over many of them. So signatures are verified
here for all lines together: whatever has arrived while one group was being verified is the next group, each
batch in it is verified once, and one hand-over to the worker threads serves them all.

Emergencies have a lane and a thread of their own: however much waits, they do not wait for it. Within a lane
everything keeps its order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from tocsin.bus.opener import Inspected, Opener
from tocsin.bus.pace import Pace
from tocsin.bus.replay import NotNeededError
from tocsin.contracts.errors import TocsinError, UntrustedError
from tocsin.contracts.identifiers import Priority
from tocsin.telemetry import get_logger

Proven: TypeAlias = Callable[[Inspected, str | None, TocsinError | None], None]
"""Takes an envelope whose signature was verified, its reply subject, and the error if it did not hold, or if it was not
needed any more."""
Needed: TypeAlias = Callable[[str], bool]
"""Tells whether what arrives on a subject is worth a verification now."""

GATHER_S = 0.004
"""Under load, so long lies between two groups: a process that is woken for every message spends more on waking,
with cold caches, than on the message. Emergencies are not gathered."""
GROUP = 32
"""Most envelopes of one group: the event loop is given back after a millisecond or two of handing them on, and what is
not needed any more after that is dropped while it still costs nothing."""
SPLIT = 8
"""Full verifications that are worth a second thread."""

log = get_logger(__name__)


_Outcome: TypeAlias = tuple[object, UntrustedError | None]


class _One(NamedTuple):
    inspected: Inspected
    reply: str | None
    then: Proven
    needed: Needed | None

    @property
    def unneeded(self) -> bool:
        return self.needed is not None and not self.needed(self.inspected.arrival.subject)


class Prover:
    """Verifies signatures for every line of one process. Use as a task: :meth:`run` until cancelled.

    What waits is bounded by the lines, each of which takes no more than its length.
    """

    def __init__(self, opener: Opener, *, threads: int) -> None:
        self._ordinary = _Lane(opener, threads, "verify", gather_s=GATHER_S)
        self._urgent = _Lane(opener, 1, "verify-urgent", gather_s=0.0)

    def put(self, inspected: Inspected, reply: str | None, then: Proven, needed: Needed | None = None) -> None:
        """Take an envelope after step 8; ``then`` is called when step 9 is done.

        With ``needed`` it is asked again just before the verification: what had to wait may be late by then.
        """
        urgent = inspected.envelope.content.priority == Priority.CRITICAL
        (self._urgent if urgent else self._ordinary).put(_One(inspected, reply, then, needed))

    async def run(self) -> None:
        """Verify group after group."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._ordinary.run())
            lanes.create_task(self._urgent.run())

    def close(self) -> None:
        """End the threads."""
        self._ordinary.close()
        self._urgent.close()


class _Lane:
    def __init__(self, opener: Opener, threads: int, name: str, *, gather_s: float) -> None:
        self._opener = opener
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._gather_s = gather_s
        self._pace = Pace()
        self._waiting: deque[_One] = deque()
        self._arrived = asyncio.Event()

    def put(self, one: _One) -> None:
        self._waiting.append(one)
        self._arrived.set()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self) -> None:
        group: list[tuple[_One, object]] = []
        outcomes: dict[object, UntrustedError | None] = {}
        while True:
            if not group:
                await self._arrived.wait()
                pause_s = self._pace.pause_s(self._gather_s, now_s=time.monotonic())
                if pause_s > 0 and len(self._waiting) < GROUP:
                    await asyncio.sleep(pause_s)
            # The next group's signatures are verified while this group's messages are handed on.
            following, begun = self._begin()
            for one, unproven in group:
                try:
                    one.then(one.inspected, one.reply, outcomes[unproven] if unproven else None)
                except Exception:  # all lines depend on this task: it outlives a bug in one of them
                    log.exception("line_failed", type=one.inspected.kind.name)
            outcomes = {key: error for part in begun for key, error in await part}
            group = following
            # Whoever sends must come to its turn, too.
            await asyncio.sleep(0)

    def _begin(self) -> tuple[list[tuple[_One, object]], list[asyncio.Future[list[_Outcome]]]]:
        """Take the next group, each with the name of its signature if that is to be verified, and begin."""
        group: list[tuple[_One, object]] = []
        unproven: dict[object, Inspected] = {}
        for _ in range(min(len(self._waiting), GROUP)):
            one = self._waiting.popleft()
            if one.unneeded:
                one.then(one.inspected, one.reply, NotNeededError("nothing depends on it any more"))
                continue
            key = None if self._opener.is_proven(one.inspected) else _signature(one.inspected)
            if key is not None:
                unproven[key] = one.inspected
            group.append((one, key))
        if not self._waiting:
            self._arrived.clear()
        if group:
            self._pace.began(len(group), now_s=time.monotonic())
        if not unproven:
            return group, []
        loop = asyncio.get_running_loop()
        parts = _split(list(unproven.items()), self._threads)
        return group, [loop.run_in_executor(self._pool, _prove_all, self._opener, part) for part in parts]


def _signature(inspected: Inspected) -> object:
    """Name the signature over a batch: what a full verification is about."""
    proof = inspected.envelope.proof
    return inspected.envelope.key_id, inspected.root, proof.size, proof.algorithm, proof.signature


def _split(
    unproven: Sequence[tuple[object, Inspected]], threads: int
) -> Iterable[Sequence[tuple[object, Inspected]]]:
    parts = max(1, min(threads, len(unproven) // SPLIT))
    return (unproven[part::parts] for part in range(parts))


def _prove_all(opener: Opener, unproven: Sequence[tuple[object, Inspected]]) -> list[_Outcome]:
    """Verify in a worker thread."""
    outcomes: list[_Outcome] = []
    for key, inspected in unproven:
        try:
            opener.prove(inspected)
        except UntrustedError as error:
            outcomes.append((key, error))
        else:
            outcomes.append((key, None))
    return outcomes
