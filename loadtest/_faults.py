"""What is broken while alerts are sent, one after another: a host is cut off, a router is killed, the broker is killed.

Killed is by SIGKILL: nothing is said, written or handed over. Each comes back with what it had on disk and on the
same port; each fault is healed, and has been for a while, before the next begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from _alerts import Fault
from _embedded import Embedded, Routers
from _link import Link
from common import say

from tocsin.bus import Broker

TURNS = {"partition": (0.10, 0.25), "router": (0.40, 0.50), "broker": (0.70, 0.80)}
"""When each fault begins and is to be healed, as shares of the time for which alerts are sent."""


async def break_in_turn(
    system: Embedded, routers: Routers, link: Link, *, start_ns: int, lasting_s: float
) -> list[Fault]:
    """Break and heal everything in turn; return what was broken when.

    Args:
        system: whose broker and router are killed.
        routers: the first of them is.
        link: of the host that is cut off.
        start_ns: when the first alert is due, by the monotonic clock.
        lasting_s: for how long alerts are sent.
    """
    cutters: dict[str, tuple[Callable[[], None], Callable[[], Awaitable[None]]]] = {
        "partition": (link.cut, lambda: _heal_link(link)),
        "router": (lambda: _kill_router(routers), lambda: _restart_router(system, routers)),
        "broker": (system.broker.kill, lambda: _restart_broker(system.broker)),
    }
    faults = []
    for name, (begin, end) in TURNS.items():
        cut, heal = cutters[name]
        await _until(start_ns + round(begin * lasting_s * 1e9))
        begun_ns = time.monotonic_ns()
        say(f"  {name}: broken")
        cut()
        await _until(start_ns + round(end * lasting_s * 1e9))
        await heal()
        faults.append(Fault(name, begun_ns, time.monotonic_ns()))
        say(f"  {name}: healed")
    return faults


async def _until(at_ns: int) -> None:
    await asyncio.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))


async def _heal_link(link: Link) -> None:
    link.heal()


def _kill_router(routers: Routers) -> None:
    process = routers.first.process
    assert process is not None  # noqa: S101 - it was started
    process.kill()
    process.wait()


async def _restart_router(system: Embedded, routers: Routers) -> None:
    routers.first.start()
    await system.answering(routers)


async def _restart_broker(broker: Broker) -> None:
    """Start it again; in this thread, since the kernel ends it with the thread that started it."""
    broker.process = Broker.start(broker.folder, port=broker.port).process
