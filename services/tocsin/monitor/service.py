"""The monitor's shell: figures and accounts come in, sums go out."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.contracts.catalogue import EVENT, METRICS, MONITOR_FIGURES
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import Figures, FiguresRequest, MetricsSnapshot
from tocsin.contracts.routing import Delivery
from tocsin.monitor.figures import DUE, MADE, FigureBook
from tocsin.monitor.settings import MonitorSettings

SHOWN = (
    "envelopes_signed",
    "signatures_made",
    "envelopes_sent",
    "envelopes_verified",
    "full_signatures",
    "full_verifications",
    "handler_failures",
    DUE,
    MADE,
)
"""Sums on the monitor's own /metrics, as ``tocsin_totals{kind=...}``, besides that of all rejections."""


class MonitorService(Service[MonitorSettings]):
    """Gathers every process's figures and serves them with their sums."""

    name: ClassVar[ServiceName] = ServiceName.MONITOR

    def __init__(self, bus: Bus, settings: MonitorSettings) -> None:
        super().__init__(bus, settings)
        self.book = FigureBook(
            max_processes=settings.monitor_max_processes,
            silent_after_ns=int(settings.monitor_silent_after_s * 1e9),
            max_emergencies=settings.monitor_max_emergencies,
        )

    async def started(self) -> None:
        """Follow the router's accounts from now on, and keep the gauges fresh."""
        # A durable of this instance: each instance has every account, and what comes while the broker or this
        # process is away comes afterwards.
        await self.bus.consume(
            EVENT,
            self.on_delivery,
            durable=f"monitor-{self.settings.instance}",
            only_new=True,
            at={"service": "router", "kind": "delivery"},
        )
        self.bus.spawn(self._refresh(), "gauges")

    @subscribes(METRICS)
    async def on_metrics(self, snapshot: MetricsSnapshot, context: Context) -> None:
        """Keep a process's latest figures."""
        sender = context.sender.token
        if METRICS.parse(context.subject)["process"] != sender.replace(".", "-"):
            raise DeniedError(f"{sender} sends on the subject of another process", reason="wrong_process")
        self.book.take(
            snapshot,
            sender=sender,
            issued_ns=context.content.issued_at,
            now_ns=context.now_ns,
            size_bytes=len(context.content.body),
        )

    async def on_delivery(self, delivery: Delivery, _: Context) -> None:
        """Keep the account of an emergency."""
        self.book.deliver(delivery)

    @handles(MONITOR_FIGURES)
    async def figures(self, _: FiguresRequest, context: Context) -> Figures:
        """Answer with all figures."""
        return self.book.figures(context.now_ns)

    async def _refresh(self) -> None:
        while True:
            self.book.expire(time.time_ns())
            totals = self.book.totals()
            self.metrics.gauge("processes", len(self.book))
            for name in SHOWN:
                self.metrics.gauge(f"totals.{name}", totals.get(name, 0))
            rejected = sum(count for name, count in totals.items() if name.startswith("rejected."))
            self.metrics.gauge("totals.rejected", rejected)
            await asyncio.sleep(self.settings.monitor_refresh_s)
