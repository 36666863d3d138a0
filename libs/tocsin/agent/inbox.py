"""One agent's inbox: bounded, with a task of its own, so that a slow agent holds nobody else back.

Emergencies go first; among the others the order of arrival is kept. When the inbox is full, the oldest
ordinary message goes (the newest is worth more to an agent that is behind), and is counted as
``inbox_dropped``; where only emergencies wait, the new message is refused and counted as
``inbox_refused``, and nobody is told that the agent has it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tocsin.bus.ending import is_ending
from tocsin.contracts.errors import TocsinError
from tocsin.telemetry import Metrics, get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One call of one of the agent's handlers."""

    label: str
    """For logs and figures: the message's type."""
    work: Callable[[], Awaitable[None]]
    urgent: bool = False
    dropped: Callable[[], None] | None = None
    """Called if the job is dropped: for whoever waits for its outcome."""


class Inbox:
    """What waits for one agent. Use :meth:`run` as a task."""

    def __init__(self, agent: str, metrics: Metrics, *, length: int) -> None:
        self._agent = agent
        self._metrics = metrics
        self._length = length
        self._urgent: deque[Job] = deque()
        self._ordinary: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._busy_since_s: float | None = None
        self.handled = 0
        self.failed = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ordinary)

    def put(self, job: Job, *, promised: bool = False) -> bool:
        """Take a job; False if there is no room, or the agent is leaving.

        Args:
            job: What is to be done.
            promised: It was taken before, by this host's last process: there is always room, as much as that had.
        """
        if self._closed:
            return False
        if not promised and len(self) >= self._length and not self._make_room():
            self._metrics.count(f"inbox_refused.{job.label}")
            log.warning("inbox_refused", agent=self._agent, type=job.label)
            return False
        (self._urgent if job.urgent else self._ordinary).append(job)
        self._arrived.set()
        return True

    def close(self) -> None:
        """Take no more; :meth:`run` ends when what waits is done."""
        self._closed = True
        self._arrived.set()

    def busy_s(self) -> float:
        """Return for how long the present handler has been running, in seconds; 0 if none is."""
        return 0.0 if self._busy_since_s is None else time.monotonic() - self._busy_since_s

    async def run(self) -> None:
        """Work through the inbox until it is closed and empty."""
        while True:
            job = self._next()
            if job is not None:
                await self._do(job)
            elif self._closed:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _next(self) -> Job | None:
        if self._urgent:
            return self._urgent.popleft()
        return self._ordinary.popleft() if self._ordinary else None

    def _make_room(self) -> bool:
        if not self._ordinary:
            return False
        victim = self._ordinary.popleft()
        self._metrics.count(f"inbox_dropped.{victim.label}")
        if victim.dropped is not None:
            victim.dropped()
        return True

    async def _do(self, job: Job) -> None:
        self._busy_since_s = begun_s = time.monotonic()
        try:
            await job.work()
        except TocsinError as error:
            self._count_failure(job)
            log.warning(
                "agent_handler_refused",
                agent=self._agent,
                type=job.label,
                reason=error.reason,
                detail=str(error),
            )
        except (Exception, asyncio.CancelledError):  # an agent's bug is its own, and is logged with its trace
            if is_ending():
                raise
            self._count_failure(job)
            log.exception("agent_handler_failed", agent=self._agent, type=job.label)
        else:
            self.handled += 1
        finally:
            self._busy_since_s = None
            self._metrics.observe_ms(f"agent_handle.{job.label}", (time.monotonic() - begun_s) * 1e3)

    def _count_failure(self, job: Job) -> None:
        self.failed += 1
        self._metrics.count(f"agent_failures.{job.label}")
