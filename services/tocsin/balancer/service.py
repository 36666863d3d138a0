"""The shell: statuses in, operations in, work out. The choice is made in :mod:`tocsin.balancer.placement`."""

from __future__ import annotations

import asyncio

from tocsin.balancer.placement import Board, Bounds
from tocsin.balancer.settings import BalancerSettings
from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.contracts.analysis import Operation, Placement, PoolStatus, Work
from tocsin.contracts.catalogue import BALANCER_PLACE, POOL, WORK, WORK_TYPE
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import ServiceName


class BalancerService(Service[BalancerSettings]):
    """Places operations on the pool that is expected to complete them first."""

    name = ServiceName.BALANCER

    def __init__(self, bus: Bus, settings: BalancerSettings) -> None:
        super().__init__(bus, settings)
        self.board = Board(
            Bounds(
                silent_after_s=settings.silent_after_s,
                max_workers=settings.max_workers,
                max_outstanding=settings.max_outstanding,
                outstanding_s=settings.outstanding_s,
                max_remembered=settings.max_remembered,
            )
        )
        self._publishing: dict[bytes, asyncio.Task[Placement]] = {}

    @subscribes(POOL)
    async def on_status(self, status: PoolStatus, context: Context) -> None:
        """Keep a worker's status; that the worker is the sender is the subject's rule."""
        if POOL.parse(context.subject)["pool"] != status.pool:
            raise InvalidInputError("the subject names another pool", reason="wrong_subject")
        self.board.heard(status, now_ns=context.now_ns)

    @handles(BALANCER_PLACE)
    async def place(self, operation: Operation, context: Context) -> Placement:
        """Answer when the work is in its stream, however many ask for the same operation at once."""
        publishing = self._publishing.get(operation.operation)
        if publishing is None:
            known = self.board.placed(operation.operation)
            if known is not None:
                return known
            publishing = self._publish(operation, self.board.place(operation, now_ns=context.now_ns))
        return await asyncio.shield(publishing)

    def _publish(self, operation: Operation, placement: Placement) -> asyncio.Task[Placement]:
        async def publish() -> Placement:
            work = Work(operation=operation, pool=placement.pool)
            try:
                await self.bus.publish(WORK, WORK_TYPE, work, durable=True, at={"pool": placement.pool})
            except TocsinError:
                self.board.withdraw(operation.operation)
                raise
            self.metrics.count(f"placed.{placement.pool}")
            return placement

        task = asyncio.create_task(publish())
        self._publishing[operation.operation] = task
        task.add_done_callback(lambda _: self._publishing.pop(operation.operation, None))
        return task
