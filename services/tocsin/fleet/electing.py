"""Asks the admins for the next epoch when the membership has changed, and not for every change alone.

A change is gathered until nothing more was added for ``epoch_quiet_s``, or ten times as long where the fleet never
rests; and no epoch is asked for within ``epoch_interval_s`` of the last. A wish goes unanswered where no admin can
propose, or no quorum agrees: what is wished for then is asked for anew after ``epoch_ask_again_s``. Nothing of this is
kept: a fleet that starts again looks at what there is.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from tocsin.agent.epochs import EpochKeeper
from tocsin.bus import Bus
from tocsin.contracts.catalogue import MEMBERSHIP, MEMBERSHIP_WISH
from tocsin.contracts.decisions import EpochChange, Equivocation, MembershipWish, Misconduct
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import RosterEntry
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import next_epoch
from tocsin.fleet.health import HealthBook
from tocsin.fleet.membership import Member, wished_change
from tocsin.fleet.settings import FleetSettings
from tocsin.telemetry import get_logger

LOOK_S = 0.5
RESTLESS = 10
"""So many quiet periods a change is gathered at most."""
MAX_PROOFS = 64
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class Elector:
    """Wishes for epochs, for one fleet instance."""

    def __init__(self, bus: Bus, settings: FleetSettings, book: HealthBook) -> None:
        self._bus = bus
        self._settings = settings
        self._book = book
        self._epochs = EpochKeeper(bus)
        self._started_ns = time.time_ns()
        self._proofs: OrderedDict[str, Misconduct] = OrderedDict()
        self._what: object = None
        """The change that is gathered, but for its time."""
        self._first_s = self._last_s = 0.0
        self._asked_s: float | None = None
        self._said = ""

    @property
    def epoch(self) -> InstalledEpoch | None:
        """The epoch that this process goes by."""
        return self._epochs.epoch

    async def start(self) -> None:
        """Learn which epoch holds, and begin to look after the next one."""
        await self._epochs.start()
        self._bus.spawn(self._run(), "next epoch")

    def convict(self, proof: Equivocation) -> None:
        """Take a proof of misconduct; it was verified."""
        seat = None if self.epoch is None else self.epoch.seats.get(proof.accused)
        identity = None if seat is None else self._bus.trust.identity(seat.key_id)
        if identity is None or self.epoch is None or proof.epoch != self.epoch.digest:
            return
        self._proofs[proof.accused] = Misconduct(proof=proof, public_key=identity.public_key)
        while len(self._proofs) > MAX_PROOFS:
            self._proofs.popitem(last=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._settings.epoch_quiet_s))
            if (epoch := self.epoch) is not None:
                await self._look(epoch)

    async def _look(self, epoch: InstalledEpoch) -> None:
        now_ns, now_s = time.time_ns(), time.monotonic()
        change = self.wished(epoch, now_ns)
        what = None if change is None else (epoch.digest, change.joined, change.removed)
        if what != self._what:
            if what is None or self._what is None or what[0] != epoch.digest:
                self._first_s, self._asked_s = now_s, None
            self._what, self._last_s = what, now_s
        quiet_s = self._settings.epoch_quiet_s
        gathered = now_s - self._last_s >= quiet_s or now_s - self._first_s >= RESTLESS * quiet_s
        due = now_ns - epoch.epoch.created_ns >= self._settings.epoch_interval_s * NS_PER_S
        waits = self._asked_s is not None and now_s - self._asked_s < self._settings.epoch_ask_again_s
        if change is not None and gathered and due and not waits:
            self._asked_s = now_s
            await self._ask(epoch, change)

    def wished(self, epoch: InstalledEpoch, now_ns: int) -> EpochChange | None:
        """Return the change that this fleet wishes for now."""
        return wished_change(
            epoch,
            [self._member(entry, now_ns) for entry in self._book.roster(now_ns=now_ns)],
            is_revoked=self._bus.trust.is_revoked,
            proofs={who: one for who, one in self._proofs.items() if one.proof.epoch == epoch.digest},
            now_ns=now_ns,
            absent_after_ns=int(self._settings.epoch_absent_after_s * NS_PER_S),
        )

    def _member(self, entry: RosterEntry, now_ns: int) -> Member:
        agent = entry.agent
        identity = self._bus.trust.identity(agent.key_id)
        heard_ns = max(entry.last_seen_ns or 0, self._started_ns)
        return Member(
            SpiffeId.agent(self._bus.trust.domain, agent.role, agent.name),
            agent.key_id,
            None if identity is None else int(identity.algorithm),
            entry.state,
            now_ns - heard_ns,
        )

    async def _ask(self, epoch: InstalledEpoch, change: EpochChange) -> None:
        """Ask the admins; what breaks a rule, as where the chain has become too long, is said once instead."""
        try:
            await asyncio.to_thread(next_epoch, epoch, change, bytes(32), self._bus.backend)
            wish = MembershipWish(previous=epoch.digest, change=change)
            await self._bus.publish(MEMBERSHIP, MEMBERSHIP_WISH, wish)
        except TocsinError as error:
            self._bus.metrics.count(f"epochs_not_wished.{error.reason}")
            if error.reason != self._said:
                log.warning("epoch_not_wished", reason=error.reason, detail=str(error), advice=error.advice())
            self._said = error.reason
            return
        self._said = ""
        self._bus.metrics.count("epochs_wished")
        log.info("epoch_wished", number=change.number, joined=len(change.joined), removed=len(change.removed))
