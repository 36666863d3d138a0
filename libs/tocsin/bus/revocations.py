"""Which keys are revoked, and how fresh that knowledge is.

The root signs the numbered list of revoked keys, and whoever has the list applies it at once: nobody between
the root and a process is trusted with its entries. Fleet states every few seconds which list is the current one.
A process that has had no such word about the list it holds for ``revocations_max_age_s`` is *stale*: it cannot
know that it knows all revocations, so it refuses messages that have effects (``MessageType.effects_from``).

A process that has just started has as long to hear the first statement. There is no other exception: where
nobody states, nothing has effects.

Every process that hears of an earlier list than it holds puts its own back into the stream, if that has lost it:
whoever can purge the stream and restart fleet cannot have fresh processes told for long that nothing is revoked.
Where nobody at all holds the list any more, its copy beside the root's key remains (``tocsin ca revoke``).

Does not protect against fleet and broker together withholding a new list: fleet alone cannot hide it from those
who are connected, and the broker alone makes them stale.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tocsin.contracts.catalogue import REVOCATION_LIST, REVOCATION_STATEMENT
from tocsin.contracts.errors import TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import Priority
from tocsin.contracts.revocations import RevocationList, RevocationReason, RevocationStatement
from tocsin.telemetry import get_logger

if TYPE_CHECKING:
    from tocsin.bus.client import Bus
    from tocsin.bus.opener import Context
    from tocsin.contracts.base import Message
    from tocsin.contracts.subjects import MessageType

NS_PER_S = 1_000_000_000
WATCH_S = 1.0
"""How often a process says how old its knowledge is."""

RESTORE_WITHIN_S = 0.5
"""A process waits by chance up to so long before it looks whether the list has to be put back: one is enough."""

log = get_logger(__name__)


class RevocationBook:
    """What a process knows of revocations. No I/O and no clock.

    Args:
        max_age_ns: how old the last good statement may be.
        started_ns: when the process started, nanoseconds since the epoch.
    """

    def __init__(self, *, max_age_ns: int, started_ns: int) -> None:
        self._max_age_ns = max_age_ns
        self._confirmed_ns = started_ns
        self._stated: RevocationStatement | None = None
        self.held: RevocationList | None = None
        self.leaf: bytes | None = None
        """Leaf hash of the list that is held."""

    @property
    def number(self) -> int:
        """Number of the list that is held; 0 for none."""
        return 0 if self.held is None else self.held.number

    @property
    def confirmed(self) -> bool:
        """Whether the last statement was about the list that is held."""
        stated = self._stated
        return stated is not None and (stated.number, stated.leaf) == (self.number, self.leaf)

    def take(self, offered: RevocationList, leaf: bytes, *, now_ns: int) -> bool:
        """Take a list whose signature by the root was verified; False if it is the one that is held.

        Raises:
            UntrustedError: ``rolled_back``: a later one is held.
        """
        if leaf == self.leaf:
            return False
        if self.held is not None and _age(offered) <= _age(self.held):
            raise UntrustedError(f"list {offered.number}, {self.number} was seen", reason="rolled_back")
        self.held, self.leaf = offered, leaf
        self._confirm(now_ns=now_ns)
        return True

    def hear(self, statement: RevocationStatement, *, now_ns: int) -> bool:
        """Hear a statement; False if it is about a list that is not known here yet.

        Raises:
            UntrustedError: ``rolled_back``: it is about an earlier list than is held.
        """
        if statement.number < self.number:
            raise UntrustedError(
                f"a statement of list {statement.number}, {self.number} was seen", reason="rolled_back"
            )
        if self._stated is None or _order(statement) >= _order(self._stated):
            self._stated = statement
        return self._confirm(now_ns=now_ns)

    def age_ns(self, now_ns: int) -> int:
        """Return for how long nobody has confirmed what is held."""
        return max(0, now_ns - self._confirmed_ns)

    def stale(self, now_ns: int) -> bool:
        """Tell whether that is too long."""
        return now_ns - self._confirmed_ns > self._max_age_ns

    def check_effects(self, kind: MessageType[Message], priority: int, *, now_ns: int) -> None:
        """Refuse a message that has effects while this knowledge is stale.

        Raises:
            UnavailableError: ``revocations_stale``.
        """
        if _has_effects(kind.effects_from, priority) and self.stale(now_ns):
            raise UnavailableError(
                f"nobody has confirmed the list of revoked keys for {self.age_ns(now_ns) / NS_PER_S:.0f} s",
                reason="revocations_stale",
                advice="is fleet running?",
            )

    def _confirm(self, *, now_ns: int) -> bool:
        if self._stated is None or not self.confirmed:
            return False
        # Fleet's clock may be ahead of ours: that buys nobody time.
        self._confirmed_ns = max(self._confirmed_ns, min(self._stated.this_update_ns, now_ns))
        return True


class RevocationFollower:
    """Follows lists and statements for one bus, and applies them to its trust store."""

    def __init__(self, bus: Bus, book: RevocationBook) -> None:
        self._bus = bus
        self._reading: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._held: Context | None = None
        self._on_change: list[Callable[[], None]] = []
        self.book = book

    async def start(self) -> None:
        """Know the current list, and follow.

        Raises:
            UnavailableError: the broker does not say which list there is.
        """
        await self._bus.subscribe(REVOCATION_LIST, self.on_list)
        await self._bus.subscribe(REVOCATION_STATEMENT, self.on_statement)
        self._bus.connection.on_reconnect(self._read_soon)
        await self._read()
        self._bus.spawn(self._watch(), "revocations")

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever another list holds."""
        self._on_change.append(changed)

    async def on_list(self, offered: RevocationList, context: Context) -> None:
        """Apply a list, which the opener has found to be the root's own."""
        try:
            if not self.book.take(offered, context.leaf, now_ns=time.time_ns()):
                return
        except UntrustedError as error:
            self._bus.reject(error, context.subject, context.data)
            return
        self._held = context
        compromised = {e.key_id for e in offered.entries if e.reason is not RevocationReason.RETIRED}
        retired = {e.key_id: e.since_ns for e in offered.entries if e.key_id not in compromised}
        self._bus.trust.revoke(compromised, retired)
        self._bus.metrics.count("revocation_lists")
        log.warning("keys_revoked", number=offered.number, compromised=len(compromised), retired=len(retired))
        for changed in self._on_change:
            changed()

    async def on_statement(self, statement: RevocationStatement, context: Context) -> None:
        """Take fleet's word; a list that is not known here is looked for."""
        try:
            known = self.book.hear(statement, now_ns=time.time_ns())
        except UntrustedError as error:
            self._bus.reject(error, context.subject, context.data)
            self._restore_soon()
            return
        if not known:
            self._bus.metrics.count("revocations_behind")
            self._read_soon()

    async def _read(self) -> None:
        if (last := await self._bus.last(REVOCATION_LIST)) is not None:
            await self.on_list(*last)  # type: ignore[arg-type]  # the subject carries lists only

    def _read_soon(self) -> None:
        """Read the list once more, one reading at a time."""
        if self._reading is None or self._reading.done():
            self._reading = self._bus.spawn(self._try_to_read(), "read revocations")

    def _restore_soon(self) -> None:
        """Put the list that is held back into its stream, if that has lost it."""
        if self._restoring is None or self._restoring.done():
            self._restoring = self._bus.spawn(self._try_to_restore(), "restore revocations")

    async def _try_to_restore(self) -> None:
        await asyncio.sleep(random.uniform(0, RESTORE_WITHIN_S))  # noqa: S311 - jitter
        try:
            await self._read()
            last = await self._bus.last(REVOCATION_LIST)
            held = self._held
            if held is not None and (last is None or last[1].leaf != held.leaf):
                await self._bus.store_again(REVOCATION_LIST, held)
                self._bus.metrics.count("revocations_restored")
                log.warning("revocations_restored", number=self.book.number)
        except TocsinError as error:
            # The next such statement tries again.
            self._bus.metrics.count(f"revocation_failures.{error.reason}")

    async def _try_to_read(self) -> None:
        try:
            await self._read()
        except TocsinError as error:
            # The next statement asks again.
            self._bus.metrics.count(f"revocation_failures.{error.reason}")

    async def _watch(self) -> None:
        """Show how old the knowledge is, and say when it becomes too old and when that is over."""
        was_stale = False
        while True:
            now_ns, metrics = time.time_ns(), self._bus.metrics
            stale = self.book.stale(now_ns)
            metrics.gauge("revocations_number", self.book.number)
            metrics.gauge("revocations_age_s", self.book.age_ns(now_ns) / NS_PER_S)
            metrics.gauge("revocations_stale", int(stale))
            if stale is not was_stale:
                age_s = round(self.book.age_ns(now_ns) / NS_PER_S, 1)
                (log.error if stale else log.info)("revocations_stale", stale=stale, age_s=age_s)
            was_stale = stale
            await asyncio.sleep(WATCH_S)


def _has_effects(effects_from: Priority | None, priority: int) -> bool:
    return effects_from is not None and priority >= effects_from


def _order(one: RevocationStatement) -> tuple[int, int]:
    """Order statements by their list first: fleet's clock may step back, its numbers do not."""
    return one.number, one.this_update_ns


def _age(one: RevocationList) -> tuple[int, int]:
    return one.number, one.made_ns
