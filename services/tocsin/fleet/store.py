"""What fleet must not forget: which key speaks for an id, and who is enrolled where.

Both are buckets of signed records. An enrolment is written by compare-and-set before a certificate is
issued, so that of two instances that are asked at once, for one id and two keys, only one grants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AGENTS, ENROLMENTS
from tocsin.contracts.errors import ConflictError
from tocsin.contracts.fleet import AgentRecord, Enrolment
from tocsin.contracts.identifiers import SpiffeId

AT_ONCE = 32
"""Records read or written at once: they share signatures, and the broker's line stays short."""


class FleetStore:
    """The buckets ``enrolments`` and ``agents``."""

    def __init__(self, bus: Bus) -> None:
        self._enrolments = bus.records(ENROLMENTS)
        self._agents = bus.records(AGENTS)
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def enrolments(self, ids: Sequence[SpiffeId]) -> dict[SpiffeId, Enrolment | None]:
        """Read what is held of some ids.

        Raises:
            UntrustedError: a record does not hold: nothing is granted on top of it.
        """

        async def one(spiffe_id: SpiffeId) -> Enrolment | None:
            async with self._slots:
                return await self._enrolments.get(spiffe_id.token)

        return dict(zip(ids, await asyncio.gather(*map(one, ids)), strict=True))

    async def bind(
        self, held: Mapping[SpiffeId, Enrolment | None], bound: Mapping[SpiffeId, Enrolment]
    ) -> None:
        """Write enrolments where they differ from what was held.

        Raises:
            ConflictError: ``stale``: another instance has written one meanwhile; ask again.
        """

        async def one(spiffe_id: SpiffeId, enrolment: Enrolment) -> None:
            def change(present: Enrolment | None) -> Enrolment | None:
                if present != held[spiffe_id]:
                    raise ConflictError(f"{spiffe_id} was enrolled meanwhile", reason="stale")
                return None if present == enrolment else enrolment

            async with self._slots:
                await self._enrolments.change(spiffe_id.token, change)

        await asyncio.gather(*(one(spiffe_id, enrolment) for spiffe_id, enrolment in bound.items()))

    async def put_agents(self, records: Sequence[AgentRecord]) -> None:
        """Write agents' records; one that says the same already is left."""

        async def one(record: AgentRecord) -> None:
            def change(present: AgentRecord | None) -> AgentRecord | None:
                if present is not None and _without_time(present) == _without_time(record):
                    return None
                return record

            async with self._slots:
                await self._agents.change(record.name, change)

        await asyncio.gather(*map(one, records))


def _without_time(record: AgentRecord) -> AgentRecord:
    return record.model_copy(update={"enrolled_ns": 0})
