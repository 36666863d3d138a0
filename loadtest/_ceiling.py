"""The highest rate that routers hold, number by number, beside that of relays without envelopes."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from _drive import Run
from _planes import Planes, stages, with_cpu
from _routed import Routed
from _search import Search
from common import ratios, say


async def ceilings(planes: Planes, options: argparse.Namespace, *, baseline: bool) -> list[dict[str, Any]]:
    """Return what each number of routers holds, and as many relays."""
    found: list[dict[str, Any]] = []
    first = relayed_first = options.rate
    for count in options.routers_list:
        async with planes.system.routers(count) as routers:
            search = Search(partial(planes.through_routers, routers), _run_of, options.p99_ms)
            held = await search.highest(first, max_rates=options.max_rates)
        entry = {"routers": count, "max_rate_per_s": held, **_at(search)}
        first = held or first
        say(f"{count} routers hold {held:g} messages a second")
        if baseline:
            relayed = Search(partial(planes.through_relays, count), _same, options.p99_ms)
            highest = await relayed.highest(relayed_first, max_rates=options.max_rates)
            rate, run = relayed.shown()
            relayed_first = highest or relayed_first
            entry["baseline"] = {
                "max_rate_per_s": highest,
                "due_per_s": rate,
                **with_cpu(run),
                "tried": relayed.steps,
            }
            entry["ratio_to_baseline"] = ratios(_comparable(entry), entry["baseline"])
            say(f"{count} relays hold {highest:g} messages a second")
        found.append(entry)
    return found


def _at(search: Search[Routed]) -> dict[str, Any]:
    rate, routed = search.shown()
    return {
        "due_per_s": rate,
        **with_cpu(routed.run),
        **routed.verifications(),
        "by_router": {name: stages(one) for name, one in routed.routers.items()},
        "tried": search.steps,
    }


def _comparable(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is of different rates: only how high, and for how much CPU time."""
    return {
        name: value
        for name, value in entry.items()
        if name == "max_rate_per_s" or name.endswith("_cpu_us_per_message")
    }


def _run_of(routed: Routed) -> Run:
    return routed.run


def _same(run: Run) -> Run:
    return run
