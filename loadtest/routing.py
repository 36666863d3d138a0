"""Measure messages from agent to agent through the router, open loop.

    python loadtest/routing.py --agents 40 --rate 1000 --seconds 10 --baseline
    python loadtest/routing.py --find-max --routers-list 1,2
    python loadtest/routing.py --find-max --key-scope agent --presigned --agents 847

Host processes carry the agents, sign what these send and open what they get; router processes stand between
them; all speak over one embedded broker. Every message is due at a moment fixed beforehand, and its latency
counts from that moment to the recipient's handler. Nothing is turned off: every envelope passes all twelve steps
at the router and again at its recipient, and the full verifications are counted inside the backends.

``--baseline`` sends the same traffic afterwards, in the same run, over the same broker, through as many relays that
know no envelopes: the NATS client alone. ``--find-max`` searches the highest rate that is held, for each number of
routers and of relays. ``--presigned`` has the agents' envelopes signed before the traffic starts.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from _agents import FleetOptions, add_options
from _ceiling import ceilings
from _embedded import embedded
from _planes import Planes, enrolled, stages, with_cpu
from _processes import until_terminated
from _search import MAX_RATES
from _traffic import LATE_MS
from common import (
    Environment,
    emit,
    exit_with,
    positive_float,
    positive_int,
    positive_ints,
    ratios,
    say,
    show_table,
)

from tocsin.contracts.errors import InvalidInputError

OWN = ("not_sent", "late_sends", "send_lag_ms", "send_ms", "cpu_cores")
"""What the senders' own clocks do, and what else the machine does: it says nothing of a system."""
P99_MS = 50.0


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts.

    Raises:
        InvalidInputError: ``ahead_needs_agent_keys``: a host's key signs whatever waits together, and what waits
            together is known when the traffic runs.
    """
    if options.presigned and options.key_scope != "agent":
        raise InvalidInputError("--presigned needs --key-scope agent", reason="ahead_needs_agent_keys")
    fleet_options = FleetOptions.of(options)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-load-") as folder:
        async with embedded(fleet_options, Path(folder)) as system:
            say(f"{options.agents} agents on {options.hosts} hosts, {options.key_scope} keys")
            planes = await enrolled(system, options)
            whose = {"agents": options.agents, "hosts": options.hosts, "keys": system.fleet.keys}
            if options.find_max:
                baseline = options.baseline is not False
                found: dict[str, Any] = {"by_routers": await ceilings(planes, options, baseline=baseline)}
            else:
                found = await _at_one_rate(planes, options)
            return environment, {**whose, **found, "setup_s": planes.setup_s}


async def _at_one_rate(planes: Planes, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    async with planes.system.routers(options.routers) as routers:
        planes.setup_s["routers"] = round(time.monotonic() - begun, 3)
        routed = await planes.through_routers(routers, options.rate)
    figures = with_cpu(routed.run)
    results = {
        "routers": options.routers,
        "due_per_s": options.rate,
        **figures,
        **routed.verifications(),
        "by_router": {name: stages(one) for name, one in routed.routers.items()},
    }
    if options.baseline:
        plain = with_cpu(await planes.through_relays(options.routers, options.rate))
        ours = {name: value for name, value in figures.items() if name not in OWN}
        results |= {"baseline": plain, "ratio_to_baseline": ratios(ours, plain)}
    return results


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, results = asyncio.run(until_terminated(measure(options)))
    _show(results)
    emit("loadtest/routing.py", vars(options), environment, results)


def _show(results: dict[str, Any]) -> None:
    planes: dict[str, dict[str, Any]] = {}
    for one in results.get("by_routers", [results]):
        number = one["routers"]
        planes[f"tocsin {number}"] = one
        if "baseline" in one:
            planes[f"relay {number}"] = one["baseline"]
    names = ("due_per_s", "sent", "received", "lost", "duplicates", "late_sends", "router_cpu_us_per_message")
    rows = [[name, *(plane.get(name, "") for plane in planes.values())] for name in names]
    rows += [
        [f"latency {name} ms", *(plane["latency_ms"][name] for plane in planes.values())]
        for name in ("p50", "p99", "max")
    ]
    show_table(f"{results['hosts']} hosts, {results['keys']} keys", ["", *planes], rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"A send that begins more than {LATE_MS:g} ms after it was due is counted in late_sends.",
    )
    add_options(parser)
    add = parser.add_argument
    add(
        "--rate",
        type=positive_float,
        default=1000.0,
        help="messages a second, all together; with --find-max where the search begins",
    )
    add("--routers", type=positive_int, default=1, help="router processes")
    add(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        help="then the same through a relay without envelopes; --find-max does, unless --no-baseline",
    )
    add("--find-max", action="store_true", help="search the highest rate that is held")
    add(
        "--routers-list",
        type=positive_ints,
        default=[1, 2],
        help="numbers of routers to search for, as in 1,2,4",
    )
    add("--p99-ms", type=positive_float, default=P99_MS, help="a rate is held while p99 stays below")
    add("--max-rates", type=positive_int, default=MAX_RATES, help="rates that one search tries, at most")
    add(
        "--presigned",
        action="store_true",
        help="sign the agents' envelopes before the traffic starts; needs --key-scope agent",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
