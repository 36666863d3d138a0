"""The shell: work in, the task in a thread, its result out.

scikit-learn and numpy are imported in a thread while the worker starts, and it takes no work before that.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from tocsin.balancer.worker.ledger import WorkLedger
from tocsin.balancer.worker.settings import WorkerSettings
from tocsin.bus import Bus, Context, Service
from tocsin.contracts.analysis import ClassicalResult, ClassicalTask, PoolStatus, TaskFailed, Work, WorkDone
from tocsin.contracts.catalogue import POOL, POOL_STATUS, RESULT, WORK, WORK_DONE
from tocsin.contracts.errors import InvariantBrokenError, TocsinError, UnavailableError, family_of
from tocsin.contracts.identifiers import ServiceName
from tocsin.telemetry import get_logger

log = get_logger(__name__)


def load_tasks() -> Callable[[ClassicalTask], ClassicalResult]:
    """Import what does the tasks, which takes seconds."""
    classical = importlib.import_module("tocsin.analysis.classical")
    return cast("Callable[[ClassicalTask], ClassicalResult]", classical.run)


class WorkerService(Service[WorkerSettings]):
    """Does the classical tasks of one pool."""

    name = ServiceName.WORKER

    def __init__(self, bus: Bus, settings: WorkerSettings) -> None:
        super().__init__(bus, settings)
        self.ledger = WorkLedger()
        self._threads = ThreadPoolExecutor(settings.slots, thread_name_prefix="task")
        self._busy = 0
        self._run: Callable[[ClassicalTask], ClassicalResult] | None = None

    async def prepare(self) -> None:
        """Import the heavy libraries beside the event loop."""
        self._run = await asyncio.to_thread(load_tasks)

    async def started(self) -> None:
        """Begin to take work, then say so."""
        await self.bus.consume(
            WORK,
            self.on_work,
            durable=f"work-{self.settings.pool}",
            concurrency=self.settings.slots,
            ack_wait_s=self.settings.redeliver_after_s,
            max_deliver=self.settings.max_deliver,
            at={"pool": self.settings.pool},
        )
        self.bus.spawn(self._report(), "status")

    async def on_work(self, work: Work, _: Context) -> None:
        """Do a task and publish its result, or why there is none. Done before, it is only published again."""
        operation = work.operation
        done = self.ledger.result(operation.operation)
        if done is None:
            outcome = await self._outcome(operation.body, operation.cost_s)
            done = WorkDone(
                operation=operation.operation,
                workflow=operation.workflow,
                outcome=outcome,
                by=self.bus.id.token,
            )
            self.ledger.ended(done)
        await self.bus.publish(RESULT, WORK_DONE, done, durable=True, at={"workflow": done.workflow.hex()})
        self.metrics.count(f"tasks.{done.outcome.result}")

    async def _outcome(self, task: ClassicalTask, expected_s: float) -> ClassicalResult | TaskFailed:
        self._busy += 1
        begun = time.perf_counter()
        try:
            result = await self._in_thread(task)
        except TocsinError as error:
            return _failed(error)
        except Exception as error:  # a bug here, or a library's: whoever waits is told, not left waiting
            log.exception("task_failed", kind=task.kind.value)
            return _failed(InvariantBrokenError(f"{type(error).__name__} in the task", reason="task_crashed"))
        finally:
            self._busy -= 1
        self.ledger.timed(expected_s=expected_s, taken_s=time.perf_counter() - begun)
        return result

    async def _in_thread(self, task: ClassicalTask) -> ClassicalResult:
        if self._run is None:
            raise UnavailableError("the worker is starting", reason="starting")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, task)

    async def _report(self) -> None:
        """Tell the balancer how this worker fares, again and again."""
        while True:
            try:
                await self._tell()
            except TocsinError as error:
                self.metrics.count(f"status_failures.{error.reason}")
            await asyncio.sleep(self.settings.status_interval_s)

    async def _tell(self) -> None:
        status = PoolStatus(
            pool=self.settings.pool,
            worker=self.settings.instance,
            slots=self.settings.slots,
            busy=self._busy,
            done=self.ledger.done,
            speed=self.ledger.speed,
            recent=self.ledger.recent,
        )
        at = {"pool": status.pool, "worker": status.worker}
        await self.bus.publish(POOL, POOL_STATUS, status, at=at)


def _failed(error: TocsinError) -> TaskFailed:
    return TaskFailed(family=family_of(error), reason=error.reason[:64], detail=str(error)[:512])
