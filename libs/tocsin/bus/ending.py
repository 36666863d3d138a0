"""Ending tasks: a cancellation can be missed, and can come from elsewhere.

``asyncio.wait_for`` of Python 3.11 returns a result that comes at the moment of a cancellation, and the
cancellation is lost: so who ends a task asks again. The other way round, a CancelledError in a loop need not
mean the loop: something that it waited for may have been cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

ATTEMPTS = 10
AGAIN_S = 0.5


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> tuple[asyncio.Task[Any], ...]:
    """Cancel tasks, again where one has missed it; return those that would not end."""
    left = tuple(tasks)
    for _ in range(ATTEMPTS):
        if not left:
            break
        for task in left:
            task.cancel()
        _, running = await asyncio.wait(left, timeout=AGAIN_S)
        left = tuple(running)
    return left


def is_ending() -> bool:
    """Tell whether the present task is itself being cancelled, and not only what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
