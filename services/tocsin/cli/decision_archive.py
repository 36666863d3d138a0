"""What was decided, of any age, read from stream DECISIONS and proven: an announcement that does not hold is none."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from tocsin.agent.epochs import EpochReader
from tocsin.bus import Bus
from tocsin.bus.raw import Raw
from tocsin.cli.decision_views import Ended
from tocsin.contracts.catalogue import CONSENSUS_DECISION, DECISION
from tocsin.contracts.decisions import Outcome
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError
from tocsin.evidence.closure import Closure
from tocsin.evidence.ends import ANNOUNCED_TO, verify_announcement
from tocsin.evidence.reading import read

DIGITS = frozenset("0123456789abcdef")


class Page(NamedTuple):
    """Some decisions, the youngest first."""

    found: list[Ended]
    before: int | None
    """Where the next page begins; None: there is nothing older."""
    refused: int
    """Announcements that do not hold, and are left out."""


class Archive:
    """Reads decisions for one command."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._raw = bus.raw(CONSENSUS_DECISION)
        self._epochs = EpochReader(bus)

    async def page(
        self, *, limit: int, before: int | None = None, since_ns: int = 0, outcome: Outcome | None = None
    ) -> Page:
        """Return the youngest decisions, or those before a place in the stream.

        Args:
            limit: how many at most.
            before: a place that an earlier page has named.
            since_ns: only those that were stored at this moment or later.
            outcome: only those that ended so.

        Raises:
            UnavailableError: the broker is away.
        """
        found: dict[bytes, Ended] = {}
        refused, last = 0, None
        async for record in self._raw.newest_first(before=before):
            if record.stored_ns < since_ns:
                return Page(list(found.values()), None, refused)
            if len(found) >= limit:
                return Page(list(found.values()), last, refused)
            last = record.place
            one = await self._proven(record)
            if one is None:
                refused += 1
            elif outcome in {None, one.announced.outcome}:
                # Of one that was announced twice the first one: it says when the decision ended.
                found[one.announced.decision] = one
        return Page(list(found.values()), None, refused)

    async def find(self, prefix: str) -> Ended:
        """Return the decision whose id begins so.

        Raises:
            InvalidInputError: ``bad_decision``, ``no_such_decision`` or ``ambiguous``.
            UnavailableError: the broker is away.
        """
        wanted = prefix.strip().lower()
        if not wanted or len(wanted) > 64 or set(wanted) - DIGITS:
            raise InvalidInputError(f"{prefix[:80]!r} is no id of a decision", reason="bad_decision")
        names = {wanted} if len(wanted) == 64 else await self._beginning_with(wanted)
        found = [one for name in sorted(names) if (one := await self._first(name)) is not None]
        if not found:
            raise InvalidInputError(
                f"no decision begins with {wanted}",
                reason="no_such_decision",
                advice="tocsin decision list shows them",
            )
        if len(found) > 1:
            raise InvalidInputError(
                f"{len(found)} decisions begin with {wanted}: say more of the id", reason="ambiguous"
            )
        return found[0]

    async def closure(self, one: Ended) -> Closure:
        """Return what proves that a decision which was found here ended without a choice.

        Raises:
            UnavailableError: a link of its epoch's chain is not in the store, or the broker is away.
        """
        epoch = self._epochs.known[one.announced.epoch]
        links = [await self._bus.get_certificate(link.hex()) for link in epoch.chain]
        return Closure(epoch.data, tuple(links), one.data)

    async def _beginning_with(self, wanted: str) -> set[str]:
        names = (tokens["decision"] for tokens in await self._raw.tokens())
        return {name for name in names if name.startswith(wanted)}

    async def _first(self, name: str) -> Ended | None:
        for record in await self._raw.on(decision=name):
            if (one := await self._proven(record)) is not None:
                return one
        return None

    async def _proven(self, record: Raw) -> Ended | None:
        """Return what an announcement proves; None if it proves nothing."""
        try:
            told = read(record.data, DECISION, audience=ANNOUNCED_TO)
            if told.body.decision.hex() != record.tokens["decision"]:
                return None
            await self._epochs.find(told.body.epoch)
            known = self._epochs.known.get
            told = await asyncio.to_thread(verify_announcement, record.data, known, self._bus.backend)
        except UnavailableError:
            raise
        except TocsinError as error:
            self._bus.metrics.count(f"announcements_refused.{error.reason}")
            return None
        return Ended(told.body, record.stored_ns, told.sender.name, record.data)
