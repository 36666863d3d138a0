"""Measure messages from agent to agent through the router, open loop.

    python loadtest/routing.py --agents 40 --rate 1000 --seconds 10 --baseline

Host processes carry the agents, sign what these send and open what they get; router processes stand between
them; all speak over one embedded broker. Every message is due at a moment fixed beforehand, and its latency
counts from that moment to the recipient's handler. Nothing is turned off: every envelope passes all twelve steps
at the router and again at its recipient, and the full verifications are counted inside the backends.

``--baseline`` sends the same traffic afterwards, in the same run, over the same broker, through as many relays that
know no envelopes: the NATS client alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from _drive import Run, drive, started
from _embedded import Embedded, embedded
from _fleet import FleetOptions, add_options, host_names
from _processes import until_terminated
from _relay import RelayPlan
from _routed import through_routers
from _traffic import LATE_MS, Schedule, schedule
from _worker import TrafficPlan
from common import (
    DIGITS,
    SUMMARY,
    Environment,
    emit,
    exit_with,
    positive_float,
    positive_int,
    ratios,
    say,
    show_table,
)

from tocsin.contracts.operations import MetricsSnapshot

OWN = ("not_sent", "late_sends", "send_lag_ms", "send_ms")
"""What the senders' own clocks do: it says nothing of a system."""


async def through_the_router(system: Embedded, plan: Schedule, seed: int) -> tuple[Run, dict[str, Any]]:
    """Run the traffic through Tocsin; return it with what only Tocsin has."""
    fleet = system.fleet
    plans = {
        host: fleet.host_plan(host, plan, number, seed + number)
        for number, host in enumerate(host_names(fleet.agents))
    }
    await fleet.enrol(list(plans.values()))
    await system.start_routers()
    groups = {"router": system.router_pids(), "broker": [system.broker.process.pid]}
    routed = await through_routers(fleet, plan, plans, system.routers, groups)
    await system.supervisor.stop()
    by_router = {name: _stages(one) for name, one in routed.routers.items()}
    return routed.run, routed.verifications() | {"by_router": by_router}


def _stages(router: MetricsSnapshot) -> dict[str, Any]:
    """Return a router's own latencies: from a message's making to its forwarding, and the part inside.

    They are of all messages since its start, warm-up included; the percentiles are of the last 4,096.
    """
    return {
        f"{name}_ms": {part: round(getattr(router.latencies[name], part), DIGITS) for part in SUMMARY}
        for name in ("route", "route_inside")
        if name in router.latencies
    }


async def through_a_relay(system: Embedded, plan: Schedule, seed: int) -> Run:
    """Run the same traffic without envelopes, by as many relays as there were routers."""
    fleet = system.fleet
    hosts = host_names(fleet.agents)
    everyone = tuple(agent.name for agent in fleet.agents)
    where = {"nats_url": fleet.nats_url, "nats_token_file": str(fleet.token_file)}
    relays = {f"relay-{number}": RelayPlan(**where) for number in range(len(system.routers))}
    plans = {
        host: TrafficPlan(
            **where,
            schedule=plan,
            sender=number,
            agents=tuple(agent.name for agent in fleet.agents if agent.host == host),
            everyone=everyone,
            body_bytes=fleet.options.body_bytes,
            seed=seed + number,
        )
        for number, host in enumerate(hosts)
    }
    async with (
        started(fleet.folder, "_relay.py", relays) as relaying,
        started(fleet.folder, "_plain.py", plans) as workers,
    ):
        groups = {
            "router": [relay.pid for relay in relaying],
            "broker": [system.broker.process.pid],
            "hosts": [worker.pid for worker in workers],
        }
        return await drive(plan, workers, groups)


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options)
    plan = schedule(rate=options.rate, warmup_s=options.warmup, seconds=options.seconds, senders=options.hosts)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-load-") as folder:
        async with embedded(fleet_options, options.routers, Path(folder)) as system:
            say(f"{options.agents} agents on {options.hosts} hosts, {options.routers} routers")
            run, own = await through_the_router(system, plan, options.seed)
            results = {
                "agents": options.agents,
                "hosts": options.hosts,
                "keys": system.fleet.keys,
                "routers": options.routers,
                "due_per_s": options.rate,
                **_figures(run),
                **own,
            }
            if options.baseline:
                say("the same through a relay without envelopes")
                plain = _figures(await through_a_relay(system, plan, options.seed))
                results |= {"baseline": plain, "ratio_to_baseline": ratios(_compared(_figures(run)), plain)}
    return environment, results


def _figures(run: Run) -> dict[str, Any]:
    """Return what both planes have."""
    cpu = {f"{group}_cpu_us_per_message": used for group, used in run.cpu_us_per_message().items()}
    return run.figures() | cpu


def _compared(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in OWN}


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, results = asyncio.run(until_terminated(measure(options)))
    _show(results)
    emit("loadtest/routing.py", vars(options), environment, results)


def _show(results: dict[str, Any]) -> None:
    names = (
        "sent",
        "received",
        "lost",
        "duplicates",
        "late_sends",
        "achieved_per_s",
        "router_cpu_us_per_message",
    )
    planes = {"tocsin": results} | ({"relay": results["baseline"]} if "baseline" in results else {})
    rows = [[name, *(plane[name] for plane in planes.values())] for name in names]
    rows += [
        [f"latency {name} ms", *(plane["latency_ms"][name] for plane in planes.values())]
        for name in results["latency_ms"]
    ]
    show_table(f"{results['hosts']} hosts, {results['keys']} keys", ["", *planes], rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog=f"A send that begins more than {LATE_MS:g} ms after it was due is counted in late_sends.",
    )
    add_options(parser)
    add = parser.add_argument
    add("--rate", type=positive_float, default=1000.0, help="messages a second, all together")
    add("--routers", type=positive_int, default=1, help="router processes")
    add("--baseline", action="store_true", help="then the same through a relay without envelopes")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
