"""Try again, for a while: for what can fail because somebody is not there yet, or is too busy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tocsin.contracts.errors import ExhaustedError, UnavailableError

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


async def patiently(attempt: Callable[[], Awaitable[T]], *, within_s: float) -> T:
    """Return what ``attempt`` returns; repeat it while a peer is unavailable or has no room.

    Pauses double from 0.1 s to 2 s, each shortened at random by up to a half so that many who wait for one
    service do not come back together.

    Args:
        attempt: Makes one attempt. May run several times: its effect must bear that.
        within_s: No attempt begins later than this, in seconds.

    Raises:
        TocsinError: of the last attempt.
    """
    clock = asyncio.get_running_loop().time
    until_s = clock() + within_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except (UnavailableError, ExhaustedError):
            wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, protects nothing
            if clock() + wait_s > until_s:
                raise
        await asyncio.sleep(wait_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
