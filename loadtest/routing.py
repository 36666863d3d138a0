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
import math
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _fleet import Fleet, FleetOptions, host_names, running_fleet
from _host import TYPES, HostPlan
from _processes import Worker, cpu_s
from _relay import RelayPlan
from _traffic import LATE_MS, Outcome, Schedule, Tally, schedule, sum_counters, tally
from _worker import TrafficPlan
from common import (
    DIGITS,
    SUMMARY,
    Environment,
    emit,
    exit_with,
    latency,
    positive_float,
    positive_int,
    ratios,
    say,
    show_table,
)

from tocsin.contracts.errors import InvariantBrokenError
from tocsin.contracts.operations import MetricsSnapshot
from tocsin.crypto import Algorithm, select_backend

LEAD_S = 0.5
"""From the word to start to the first message: all workers have heard it by then."""
QUIET_S = 2.0
"""When nothing more has arrived for so long, what is missing is lost."""
POLL_S = 0.1
OWN = ("not_sent", "late_sends", "send_lag_ms", "send_ms")
SETTLE_S = 0.3
"""After the last expected arrival: a duplicate would show."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Process ids by what they do."""

    router: list[int]
    broker: list[int]
    hosts: list[int]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time of each group so far."""
        return {"router": cpu_s(self.router), "broker": cpu_s(self.broker), "hosts": cpu_s(self.hosts)}


@dataclass(frozen=True, slots=True)
class Run:
    """One plane's traffic, ended."""

    tally: Tally
    outcomes: Sequence[Outcome]
    cpu_us: dict[str, float]
    """CPU time for each received message of the measured window, in microseconds, by group."""

    def figures(self) -> dict[str, Any]:
        """Return what both planes have."""
        counted = self.tally
        return {
            "sent": counted.sent,
            "received": counted.received,
            "lost": counted.lost,
            "duplicates": counted.duplicates,
            "not_sent": counted.not_sent,
            "late_sends": counted.late_sends,
            "achieved_per_s": counted.achieved_per_s,
            "latency_ms": latency(counted.latencies_ms),
            "send_lag_ms": latency([max(0.0, lag) for lag in counted.lags_ms]),
            "send_ms": latency(counted.took_ms),
            **{f"{group}_cpu_us_per_message": used for group, used in self.cpu_us.items()},
        }


async def drive(plan: Schedule, workers: Sequence[Worker], groups: Groups) -> Run:
    """Start the traffic, wait until it has arrived or will not any more, and collect the outcomes."""
    start_ns = time.monotonic_ns() + round(LEAD_S * 1e9)
    for worker in workers:
        worker.start(start_ns)
    await asyncio.sleep((start_ns + plan.due_ns(plan.warmup) - time.monotonic_ns()) / 1e9)
    before = groups.cpu_s()
    await _until_arrived(plan, workers)
    after = groups.cpu_s()
    await asyncio.sleep(SETTLE_S)
    outcomes = []
    for worker in workers:
        outcome = (await worker.finish()).outcome
        if outcome is None:
            raise InvariantBrokenError(f"{worker.name} ended without an outcome", reason="bad_report")
        outcomes.append(outcome)
    counted = tally(plan, start_ns, outcomes)
    share = {
        group: round((after[group] - before[group]) * 1e6 / max(counted.received, 1), 1) for group in before
    }
    return Run(counted, outcomes, share)


async def _until_arrived(plan: Schedule, workers: Sequence[Worker]) -> None:
    last, changed, told = -1, time.monotonic(), 0.0
    while True:
        for worker in workers:
            worker.check()
        received = sum(worker.said.received for worker in workers)
        sent = sum(worker.said.sent for worker in workers)
        if all(worker.said.state == "sent" for worker in workers):
            if received >= sent or time.monotonic() - changed > QUIET_S:
                return
        elif received == last:
            changed = time.monotonic()  # still sending: what is late may come
        if received != last:
            last, changed = received, time.monotonic()
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            say(f"  {received:,} of {plan.total:,} messages have arrived")
        await asyncio.sleep(POLL_S)


async def through_the_router(fleet: Fleet, plan: Schedule, seed: int) -> tuple[Run, dict[str, Any]]:
    """Run the traffic through Tocsin; return it with what only Tocsin has."""
    hosts = host_names(fleet.agents)
    plans = [fleet.host_plan(host, plan, number, seed + number) for number, host in enumerate(hosts)]
    await fleet.enrol(plans)
    await fleet.start_routers()
    async with _workers(fleet.folder, "_host.py", dict(zip(hosts, plans, strict=True))) as workers:
        groups = Groups(fleet.router_pids(), [fleet.broker.process.pid], [worker.pid for worker in workers])
        before = await fleet.router_figures()
        run = await drive(plan, workers, groups)
        after = await fleet.router_figures()
    routers = {
        name: {
            counter: value - before[name].counters.get(counter, 0) for counter, value in one.counters.items()
        }
        for name, one in after.items()
    }
    await fleet.supervisor.stop()
    verified = _verifications(run, dict(zip(hosts, run.outcomes, strict=True)), routers, plan)
    return run, verified | {"by_router": {name: _stages(one) for name, one in after.items()}}


def _stages(router: MetricsSnapshot) -> dict[str, Any]:
    """Return a router's own latencies: from a message's making to its forwarding, and the part inside.

    They are of all messages, warm-up included; the percentiles are of the last 4,096.
    """
    return {
        f"{name}_ms": {part: round(getattr(router.latencies[name], part), DIGITS) for part in SUMMARY}
        for name in ("route", "route_inside")
        if name in router.latencies
    }


def _verifications(
    run: Run, hosts: dict[str, Outcome], routers: dict[str, dict[str, int]], plan: Schedule
) -> dict[str, Any]:
    """Return what was signed, verified and refused; over all messages, warm-up included."""
    by_process = {f"host.{name}": one.counters for name, one in hosts.items()} | routers
    everything = sum_counters(by_process.values())
    signing = sum_counters(one.counters for one in run.outcomes)
    full = {name: counters.get("full_verifications", 0) for name, counters in by_process.items()}
    return {
        "messages_with_warmup": plan.total,
        "batch_mean": round(signing["envelopes_signed"] / max(signing["signatures_made"], 1), 2),
        "full_verifications": full,
        "full_verifications_per_message": round(sum(full.values()) / plan.total, 4),
        "refused": {
            name: count
            for name, count in sorted(everything.items())
            if count and name.startswith(("rejected.", "refused.", "duplicates.", "handler_"))
        },
        "send_failures": dict(sum_counters(one.failures for one in run.outcomes)),
    }


async def through_a_relay(fleet: Fleet, plan: Schedule, seed: int) -> Run:
    """Run the same traffic without envelopes, by as many relays as there were routers."""
    hosts = host_names(fleet.agents)
    everyone = tuple(agent.name for agent in fleet.agents)
    where = {"nats_url": fleet.broker.url, "nats_token_file": str(fleet.broker.token_file)}
    relays = {f"relay-{number}": RelayPlan(**where) for number in range(fleet.options.routers)}
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
        _workers(fleet.folder, "_relay.py", relays) as relaying,
        _workers(fleet.folder, "_plain.py", plans) as workers,
    ):
        groups = Groups(
            [relay.pid for relay in relaying], [fleet.broker.process.pid], [worker.pid for worker in workers]
        )
        return await drive(plan, workers, groups)


@asynccontextmanager
async def _workers(
    folder: Path, script: str, plans: dict[str, HostPlan] | dict[str, TrafficPlan] | dict[str, RelayPlan]
) -> AsyncIterator[list[Worker]]:
    """Start workers, wait until they are ready, and end them afterwards."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                Worker(name, script, plan, folder / "logs" / f"{script}.{name}.log")
            )
            for name, plan in plans.items()
        ]
        for worker in workers:
            await worker.ready()
        yield workers


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions(
        agents=options.agents,
        hosts=options.hosts,
        routers=options.routers,
        key_scope=options.key_scope,
        algorithm=Algorithm.named(options.algorithm),
        backend=select_backend(options.backend),
        type_name=options.type,
        body_bytes=options.body_bytes,
    )
    plan = schedule(rate=options.rate, warmup_s=options.warmup, seconds=options.seconds, senders=options.hosts)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-load-") as folder:
        async with running_fleet(fleet_options, Path(folder)) as fleet:
            say(f"{options.agents} agents on {options.hosts} hosts, {options.routers} routers")
            run, own = await through_the_router(fleet, plan, options.seed)
            results = {
                "agents": options.agents,
                "hosts": options.hosts,
                "keys": fleet.keys,
                "routers": options.routers,
                "due_per_s": options.rate,
                **run.figures(),
                **own,
            }
            if options.baseline:
                say("the same through a relay without envelopes")
                plain = (await through_a_relay(fleet, plan, options.seed)).figures()
                results |= {"baseline": plain, "ratio_to_baseline": ratios(_compared(run.figures()), plain)}
    return environment, results


def _compared(figures: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the senders' own clocks do: it says nothing of a system."""
    return {name: value for name, value in figures.items() if name not in OWN}


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, results = asyncio.run(_until_terminated(options))
    _show(results)
    emit("loadtest/routing.py", vars(options), environment, results)


async def _until_terminated(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Measure; a signal ends it, with everything that was started.

    Set for both: where a shell starts it in the background, SIGINT would be ignored otherwise.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in one
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await measure(options)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


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
    add = parser.add_argument
    add("--agents", type=positive_int, default=40, help="agents, all together")
    add("--rate", type=positive_float, default=1000.0, help="messages a second, all together")
    add("--seconds", type=positive_float, default=10.0, help="how long is measured")
    add("--warmup", type=_not_negative, default=2.0, help="seconds of the same traffic before, not measured")
    add("--hosts", type=positive_int, default=4, help="host processes that carry the agents")
    add("--routers", type=positive_int, default=1, help="router processes")
    add("--key-scope", choices=["host", "agent"], default="host", help="who has a signing key")
    add("--algorithm", choices=[one.label for one in Algorithm], default=Algorithm.ML_DSA_65.label)
    add("--backend", choices=["auto", "openssl", "liboqs"], default="auto", help="who computes signatures")
    add("--type", choices=sorted(TYPES), default="coordination", help="the messages' type")
    add("--body-bytes", type=positive_int, default=400, help="size of a message's body")
    add("--seed", type=int, default=1, help="fixes who writes to whom")
    add("--baseline", action="store_true", help="then the same through a relay without envelopes")
    return parser.parse_args()


def _not_negative(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is below zero")
    return value


if __name__ == "__main__":
    exit_with(main)
