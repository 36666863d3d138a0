"""How agents ballot on the next epoch: by one rule, whatever their role.

An agent supports a change only if the record follows from its own epoch by :mod:`tocsin.evidence.succession`, and

* the change is of now;
* it does not remove the agent itself, which is there;
* each new seat's key is certified for it under the root, with the algorithm that the record names, and neither
  revoked nor of one that is quarantined;
* each key that is removed as revoked is on the root's list, and who is removed as quarantined is;
* it supports no other change of this epoch: one whose decision has not ended, within :data:`HELD_ROUNDS` deadlines and
  a minute.

Else it ballots for keeping the epoch. The last rule makes that two changes of one epoch seldom come to compete; what
keeps them from both being decided is the consensus instances' rule (:mod:`tocsin.consensus.succession`). It stands on
the disk before the ballot does.

Does not protect against a certificate that fleet's authority, stolen, has issued: who can certify agents can seat them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tocsin.agent.agent import BallotChoice
from tocsin.bus import Bus, Context
from tocsin.contracts.decisions import DecisionAnnounced, EpochChange, Participant, Proposal, RemovalCause
from tocsin.contracts.errors import InvariantBrokenError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.journal import Journal, JournalWriter
from tocsin.evidence.succession import INSTALL, succession_of
from tocsin.telemetry import get_logger

KEEP = 1
"""The option that keeps the epoch."""
CLOCKS_NS = 60_000_000_000
"""How far a change's time may be from this machine's."""
CERTIFICATE_WITHIN_S = 3.0
"""How long a new agent's certificate may still be on its way here."""
IMPATIENT_S = 30.0
"""How long after a certificate that did not come none is waited for."""
HELD_ROUNDS = 10
HELD_NS = 60_000_000_000
NS_PER_MS = 1_000_000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Support:
    epoch: bytes
    decision: bytes
    until_ns: int


class SupportLog:
    """Which change of which epoch this host's agents support, and until when they support no other: on the disk.

    The constructor reads the file: open it before the event loop is busy, or in a thread.
    """

    def __init__(self, path: Path) -> None:
        self._writer = JournalWriter(Journal(path))
        self._last: _Support | None = None
        for _, entry in self._writer.journal.entries():
            if len(entry) != 72:
                raise InvariantBrokenError(f"{path.name} holds no support", reason="damaged_log")
            self._last = _Support(entry[:32], entry[32:64], int.from_bytes(entry[64:], "big"))

    def supports_other(self, epoch: bytes, decision: bytes, now_ns: int) -> bool:
        """Tell whether another change of this epoch is supported still."""
        last = self._last
        return last is not None and last.epoch == epoch and last.decision != decision and now_ns < last.until_ns

    async def withdraw(self, decision: bytes) -> None:
        """Support a change no more: its decision has ended without it."""
        last = self._last
        if last is not None and last.decision == decision and last.until_ns:
            await self.support(last.epoch, bytes(32), 0)

    async def support(self, epoch: bytes, decision: bytes, until_ns: int) -> None:
        """Support a change; when this returns it is on the disk.

        Raises:
            UnavailableError: ``log_failed``: the disk refuses.
        """
        if self._last is not None and (self._last.epoch, self._last.decision) == (epoch, decision):
            return
        self._last = _Support(epoch, decision, until_ns)
        await self._writer.append([epoch + decision + until_ns.to_bytes(8, "big")])

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Electorate:
    """Judges changes of the epoch for the agents of one host."""

    def __init__(self, bus: Bus, supported: SupportLog) -> None:
        self._bus = bus
        self._supported = supported
        self._judging = asyncio.Lock()
        self._patient_from = 0.0
        self._judged: tuple[bytes, str] = (b"", "")
        """The last change, and why it is refused; the agents of a host need it computed once."""

    async def judge(
        self, agent: SpiffeId, epoch: InstalledEpoch, proposal: Proposal, context: Context
    ) -> BallotChoice:
        """Return an agent's choice on a change of the epoch.

        Raises:
            UnavailableError: ``log_failed``: the disk refuses; nothing is to be cast.
        """
        decision = context.leaf
        async with self._judging:
            if self._judged[0] != decision:
                self._judged = decision, await self._why_not(epoch, proposal, context)
            why_not = self._judged[1] or _removes(agent, proposal.change)
            if not why_not and self._supported.supports_other(epoch.digest, decision, context.now_ns):
                why_not = "supports_another"
            if why_not:
                self._bus.metrics.count(f"epochs_refused.{why_not}")
                log.warning("epoch_refused", agent=agent.name, decision=decision.hex(), reason=why_not)
                return BallotChoice(KEEP, why_not)
            held_ns = HELD_ROUNDS * proposal.deadline_ms * NS_PER_MS + HELD_NS
            await self._supported.support(epoch.digest, decision, context.content.issued_at + held_ns)
        return BallotChoice(INSTALL, "follows from the epoch by the rule")

    async def ended(self, announced: DecisionAnnounced) -> None:
        """Take note that a decision has ended, as is proven: whoever supported its change may support another one."""
        if announced.option is None or announced.option.epoch is None:
            await self._supported.withdraw(announced.decision)

    async def _why_not(self, epoch: InstalledEpoch, proposal: Proposal, context: Context) -> str:
        """Return the reason for which no agent here may support the change; empty if there is none."""
        try:
            following = await asyncio.to_thread(succession_of, proposal, context.leaf, epoch, self._bus.backend)
            if following is None:
                return "bad_epoch_proposal"
            if abs(following.change.created_ns - context.now_ns) > CLOCKS_NS:
                return "wrong_time"
            self._check_removed(epoch, following.change)
            await self._check_joined(following.change)
        except TocsinError as error:
            return error.reason
        return ""

    def _check_removed(self, epoch: InstalledEpoch, change: EpochChange) -> None:
        for removal in change.removed:
            name = SpiffeId.parse(removal.sender).name
            key_id = epoch.seats[removal.sender].key_id
            if removal.cause is RemovalCause.REVOKED and not self._bus.trust.is_revoked(key_id):
                raise UntrustedError(f"the key of {name} is not revoked", reason="not_revoked")
            if removal.cause is RemovalCause.QUARANTINED and not self._bus.standings.is_quarantined(name):
                raise UntrustedError(f"{name} is not quarantined", reason="not_quarantined")

    async def _check_joined(self, change: EpochChange) -> None:
        now = asyncio.get_running_loop().time()
        until = now
        if now >= self._patient_from:
            until += CERTIFICATE_WITHIN_S
        for seat in change.joined:
            while not self._is_certified(seat):
                if asyncio.get_running_loop().time() > until:
                    # The agents' inboxes wait meanwhile: nobody shall make them do so again and again.
                    self._patient_from = until + IMPATIENT_S
                    raise UntrustedError(f"the key of {seat.sender} is not certified", reason="not_certified")
                await asyncio.sleep(0.05)
            if self._bus.standings.is_quarantined(SpiffeId.parse(seat.sender).name):
                raise UntrustedError(f"{seat.sender} is quarantined", reason="quarantined")

    def _is_certified(self, seat: Participant) -> bool:
        identity = self._bus.trust.identity(seat.key_id)
        return (
            identity is not None
            and identity.names(seat.sender)
            and int(identity.algorithm) == seat.algorithm
            and not self._bus.trust.is_revoked(seat.key_id)
        )


def _removes(agent: SpiffeId, change: EpochChange | None) -> str:
    """Return why an agent refuses for itself: it is to go, and is here."""
    removed = () if change is None else change.removed
    return "removes_itself" if any(one.sender == str(agent) for one in removed) else ""
