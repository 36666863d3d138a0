"""The epoch that a host goes by: the latest that the root signed, of those that it has seen.

It is read from its stream at start and after each reconnection, and followed in between. Later means the
higher number, and of two with one number the one made later: all of them are the root's own word, so an
older one can only be a replay, and is left.

Does not protect against a broker that shows a fresh host an older epoch of the root's and hides the later.
"""

from __future__ import annotations

import asyncio

from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import CONSENSUS_EPOCHS
from tocsin.contracts.decisions import Epoch
from tocsin.contracts.errors import TocsinError
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.telemetry import get_logger

log = get_logger(__name__)


class EpochKeeper:
    """Follows the epochs that consensus has installed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.epoch: InstalledEpoch | None = None

    async def start(self) -> None:
        """Read the last epoch, if there is one, and follow."""
        await self._bus.subscribe(CONSENSUS_EPOCHS, self.on_epoch)
        self._bus.connection.on_reconnect(self._reconnected)
        await self._read_last()

    async def on_epoch(self, _: Epoch, context: Context) -> None:
        """Take an epoch record if it is later than the one held.

        Raises:
            TocsinError: it is not the root's, or breaks a rule.
        """
        offered = await asyncio.to_thread(open_epoch, context.data, self._bus.trust)
        held = self.epoch
        if held is not None and _age(offered) <= _age(held):
            return
        self.epoch = offered
        log.info("epoch_taken", number=offered.epoch.number, participants=len(offered.epoch.participants))

    def _reconnected(self) -> None:
        self._bus.spawn(self._read_last(), "read epoch")

    async def _read_last(self) -> None:
        try:
            last = await self._bus.last(CONSENSUS_EPOCHS)
            if last is not None:
                await self.on_epoch(last[0], last[1])  # type: ignore[arg-type]  # the subject carries epochs only
        except TocsinError as error:
            self._bus.metrics.count(f"epoch_failures.{error.reason}")
            log.warning("epoch_not_read", reason=error.reason, detail=str(error))


def _age(epoch: InstalledEpoch) -> tuple[int, int]:
    return epoch.epoch.number, epoch.epoch.created_ns
