"""Ends of decisions are heard once they are proven: an instance that lies is not believed, and silences nobody.

What is proven is remembered, so the result by two channels and the announcement cost one verification in a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tocsin.agent.epochs import SEEK_EVERY_S, EpochReader
from tocsin.agent.roles.memory import Memory
from tocsin.bus import Bus, Context
from tocsin.contracts.decisions import DecisionAnnounced, Option, Outcome
from tocsin.contracts.errors import TocsinError, UnavailableError
from tocsin.evidence.ends import verify_end
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.votes import KeyOf

MAX_PROVEN = 4096
"""Ends that are remembered; an older one is verified again."""
MAX_PROVING = 256
"""Results by core that wait for their proof; what comes beyond that is left to the stream's copy."""


class Ends:
    """Proves ends of decisions for one process.

    Args:
        bus: the process's.
        epochs: what it has come to believe.
        key_of: public keys of instances; by default those that were enrolled.
    """

    def __init__(self, bus: Bus, epochs: EpochReader, key_of: KeyOf | None = None) -> None:
        self._bus = bus
        self._epochs = epochs
        self._key_of = key_of or self._enrolled
        self._proven: Memory[bytes, tuple[int, Outcome, Option | None]] = Memory(MAX_PROVEN)
        self._verifying = asyncio.Lock()
        self._proving = 0
        self._seek_from = 0.0

    async def prove(self, announced: DecisionAnnounced) -> None:
        """Return once an end is proven.

        Raises:
            UnavailableError: ``unknown_epoch``: the epoch that it names is not known here yet.
            TocsinError: it does not hold; see :func:`~tocsin.evidence.ends.verify_end`.
        """
        said = announced.round, announced.outcome, announced.option
        async with self._verifying:
            if self._proven.get(announced.decision) == said:
                return
            epoch = await self._epoch(announced.epoch)
            backend, batches = self._bus.backend, self._bus.opener.batches
            await asyncio.to_thread(verify_end, announced, epoch, self._key_of, backend, batches)
            self._proven.keep(announced.decision, said)

    def once_proven(self, announced: DecisionAnnounced, context: Context, then: Callable[[], object]) -> None:
        """Call ``then`` once an end that came by core is proven; what does not hold is counted and audited."""
        if self._proving >= MAX_PROVING:
            self._bus.metrics.count("results_left_to_the_stream")
            return
        self._proving += 1
        self._bus.spawn(self._prove_then(announced, context, then), "result")

    async def _prove_then(
        self, announced: DecisionAnnounced, context: Context, then: Callable[[], object]
    ) -> None:
        try:
            if await self.holds(announced, context):
                then()
        except TocsinError as error:  # an inbox is full, or the host is leaving: the stream's copy comes
            self._bus.metrics.count(f"handler_refusals.{error.reason}")
        finally:
            self._proving -= 1

    async def holds(self, announced: DecisionAnnounced, context: Context) -> bool:
        """Tell whether an end is proven; one that is not is counted and audited."""
        try:
            await self.prove(announced)
        except TocsinError as error:
            self._bus.reject(error, context.subject, context.data)
            return False
        return True

    async def _epoch(self, digest: bytes) -> InstalledEpoch:
        epoch = self._epochs.known.get(digest)
        now = asyncio.get_running_loop().time()
        if epoch is None and now >= self._seek_from:
            # Who names an epoch that there is not makes nobody read the stream again and again.
            self._seek_from = now + SEEK_EVERY_S
            epoch = await self._epochs.find(digest)
        if epoch is None:
            raise UnavailableError("an end in an epoch that is not known here", reason="unknown_epoch")
        return epoch

    def _enrolled(self, key_id: bytes) -> bytes | None:
        identity = self._bus.trust.identity(key_id)
        return None if identity is None else identity.public_key
