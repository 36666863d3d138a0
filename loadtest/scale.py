"""Measure how much 1, 2 and 3 routers forward: when another one is worth adding.

    python loadtest/scale.py --routers 1 2 3

Starts a stack of deploy/compose.yaml for itself, of images that are there: the broker and the routers, in containers.
Host processes on this machine carry the agents and speak to the broker's published port; the traffic is that of
routing.py. A router gets a known share of a core (``--router-cpus``), so that it is the limit and not the machine.

For each number of routers the highest rate is searched that is held: nothing lost or refused, and p99 below
``--p99-ms``. ``--rate`` measures at one rate instead. Everything that was started is removed afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _agents import DOMAIN, FleetOptions, add_options, host_names
from _compose import Container, Stack, cap, identity_of, require_here, throw_away_stack
from _fleet import Fleet, fleet_on, router_process
from _host import HostPlan
from _processes import until_terminated
from _routed import Routed, through_routers
from _search import LOWEST_PER_S, Search
from _traffic import LATE_MS, schedule
from common import (
    Environment,
    emit,
    exit_with,
    not_negative,
    positive_float,
    positive_int,
    say,
    show_table,
)

from tocsin.cli.containers import initialise

FIRST_PER_S = 200.0
"""Where the search begins for the first number of routers."""
ROUTER_CPUS = 0.15
"""So little that on two cores three routers are the limit, and not who sends and receives."""
P99_MS = 100.0
"""A container that has used up its share waits for the kernel's next period of 100 ms: once is held, twice is not."""
FEWEST_AGENTS = 6
"""That an installation can plan. Its own never run: the agents here are others."""


@dataclass
class Bench:
    """A number of routers, ready, and what has been tried with them."""

    options: argparse.Namespace
    fleet: Fleet
    hosts: dict[str, HostPlan]
    broker: Container
    routers: dict[str, Container]
    """By instance."""
    search: Search[Routed] = field(init=False)

    def __post_init__(self) -> None:
        """Search by sending."""
        self.search = Search(self.send, lambda routed: routed.run, self.options.p99_ms)

    async def send(self, rate: float) -> Routed:
        """Send at a rate."""
        options = self.options
        plan = schedule(rate=rate, warmup_s=options.warmup, seconds=options.seconds, senders=options.hosts)
        say(f"{len(self.routers)} routers, {rate:g} messages a second")
        hosts = {name: host.model_copy(update={"schedule": plan}) for name, host in self.hosts.items()}
        groups = {one.name: [one.pid] for one in (*self.routers.values(), self.broker)}
        return await through_routers(self.fleet, plan, hosts, list(self.routers), groups)

    def results(self, max_rate: float | None) -> dict[str, Any]:
        """Return the figures at the highest rate that was held, or at the lowest that was not."""
        rate, routed = self.search.shown()
        found = {} if max_rate is None else {"max_rate_per_s": max_rate}
        return {
            "routers": len(self.routers),
            **found,
            "due_per_s": rate,
            **routed.run.figures(),
            "cpu_us_per_message": routed.run.cpu_us_per_message(),
            "cpu_cores": routed.run.cpu_cores(),
            "by_router": dict(self._by_router(routed)),
            **routed.verifications(),
            "tried": self.search.steps,
        }

    def _by_router(self, routed: Routed) -> Iterator[tuple[str, dict[str, Any]]]:
        for instance, container in self.routers.items():
            process = router_process(instance)
            forwarded = routed.counted[process].get(f"routed.{self.options.type}", 0)
            share = round(forwarded / routed.plan.total, 3)
            yield container.name, {"process": process, "forwarded": forwarded, "share": share}


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options)
    with tempfile.TemporaryDirectory(prefix="tocsin-scale-") as folder:
        copies = max(options.routers)
        installation = initialise(Path(folder), DOMAIN, agents=FEWEST_AGENTS, hosts=1, copies=copies)
        with throw_away_stack(installation.folder) as stack:
            say(f"project {stack.project}, {options.agents} agents on {options.hosts} hosts")
            stack.up("broker")
            (broker,) = await stack.healthy("broker")
            require_here(broker)
            place, password = stack.broker_url(), installation.broker_token
            async with fleet_on(place, password, fleet_options, Path(folder), installation.root()) as fleet:
                return await _by_routers(stack, broker, fleet, options)


async def _by_routers(
    stack: Stack, broker: Container, fleet: Fleet, options: argparse.Namespace
) -> tuple[Environment, dict[str, Any]]:
    unused = schedule(rate=FIRST_PER_S, warmup_s=0.0, seconds=1.0, senders=options.hosts)
    hosts = {
        host: fleet.host_plan(host, unused, number, options.seed + number)
        for number, host in enumerate(host_names(fleet.agents))
    }
    await fleet.enrol()  # before the routers: they read at start who is enrolled
    backends = {fleet.options.backend.name}
    by_routers: list[dict[str, Any]] = []
    for number in options.routers:
        stack.up("router", copies=number)
        routers = {}
        for container in await stack.healthy("router", copies=number):
            identity = identity_of(container)
            routers[identity.instance] = container
            backends.add(identity.signature_backend)
        if options.router_cpus:
            cap(list(routers.values()), options.router_cpus)
        bench = Bench(options, fleet, hosts, broker, routers)
        if options.rate:
            await bench.search.run(options.rate)
            by_routers.append(bench.results(None))
        else:
            by_routers.append(bench.results(await bench.search.highest(first_rate(number, by_routers))))
    environment = Environment.here(
        backends=sorted(backends),
        algorithms=[fleet.options.algorithm.label],
        key_scope=options.key_scope,
    )
    whose = {"agents": options.agents, "hosts": options.hosts, "keys": fleet.keys}
    return environment, {**whose, "by_routers": by_routers}


def first_rate(routers: int, before: list[dict[str, Any]]) -> float:
    """Begin where the number of routers before leads to expect it."""
    each = before[-1]["max_rate_per_s"] / before[-1]["routers"] if before else FIRST_PER_S
    return float(max(round(each * routers), LOWEST_PER_S))


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, results = asyncio.run(until_terminated(measure(options)))
    _show(results["by_routers"])
    emit("loadtest/scale.py", vars(options), environment, results)


def _show(by_routers: list[dict[str, Any]]) -> None:
    names = ("due_per_s", "achieved_per_s", "lost", "duplicates", "late_sends", "batch_mean")
    rows = [[name, *(one[name] for one in by_routers)] for name in names]
    rows += [
        [f"latency {name} ms", *(one["latency_ms"][name] for one in by_routers)] for name in ("p50", "p99")
    ]
    most = max(by_routers, key=lambda one: int(one["routers"]))  # it has every container that the others have
    for figure in ("cpu_cores", "cpu_us_per_message"):
        rows += [
            [f"{figure} {name}", *(one[figure].get(name, "") for one in by_routers)] for name in most[figure]
        ]
    show_table(
        "the highest rate that was held, or the one asked for",
        ["routers", *(str(one["routers"]) for one in by_routers)],
        rows,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"A send that begins more than {LATE_MS:g} ms after it was due is counted in late_sends.",
    )
    add_options(parser)
    # Few hosts and short runs: the senders share the machine, and a search has many runs.
    parser.set_defaults(hosts=2, seconds=5.0, warmup=1.0)
    add = parser.add_argument
    add(
        "--routers", type=positive_int, nargs="+", default=[1, 2, 3], help="how many routers, one after another"
    )
    add(
        "--router-cpus",
        type=not_negative,
        default=ROUTER_CPUS,
        help="cores that each router may use; 0 for no limit",
    )
    add(
        "--rate",
        type=positive_float,
        help="messages a second, all together; without it the highest is searched",
    )
    add("--p99-ms", type=positive_float, default=P99_MS, help="a rate is held while p99 stays below")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
