"""What tests of the router share: one in this process, and what the outside hears of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from support import World

from tocsin.bus import Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import AUDIT, EVENT
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import RejectedEnvelope
from tocsin.contracts.routing import Delivery, Refusal
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings


@dataclass
class Outside:
    """What a monitor is told: the router's events, and every process's rejections."""

    deliveries: list[Delivery] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    audited: list[RejectedEnvelope] = field(default_factory=list)

    @classmethod
    async def of(cls, world: World) -> Outside:
        """Listen, as a monitor of its own."""
        outside = cls()
        bus = await world.service(ServiceName.MONITOR, "outside")
        await bus.subscribe(EVENT, outside._on_event, at={"service": "router"})
        await bus.subscribe(AUDIT, outside._on_audit, at={"kind": "rejected"})
        return outside

    def times_audited(self, by: str, reason: str, subject: str) -> int:
        """Return how many envelopes a process said it had rejected for this reason on this subject."""
        return sum(
            one.count for one in self.audited if (one.by, one.reason, one.subject) == (by, reason, subject)
        )

    async def _on_event(self, body: Message, _: Context) -> None:
        if isinstance(body, Delivery):
            self.deliveries.append(body)
        elif isinstance(body, Refusal):
            self.refusals.append(body)

    async def _on_audit(self, body: RejectedEnvelope, _: Context) -> None:
        self.audited.append(body)


@asynccontextmanager
async def running_router(world: World, instance: str = "0", **settings: Any) -> AsyncIterator[RouterService]:
    """Run a router that stops as on SIGTERM."""
    bus = await world.service(ServiceName.ROUTER, instance)
    values = {**world.settings().model_dump(), "instance": instance, **settings}
    service = RouterService(bus, RouterSettings(**values))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
