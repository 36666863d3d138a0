"""Measure what an idle fleet costs: time until all are enrolled and ready, then memory and CPU per 1,000 agents.

    python loadtest/agents.py --agents 1000
    python loadtest/agents.py --agents 5000 --hosts 5

Broker, fleet, router and agent hosts are the real ones, each a process of its own; the hosts carry the reference
agents of seven roles, enrol with one-time tokens as on their first day, and then have nothing to do but their
heartbeats. The report names the first limit: of every bound that the fleet comes closer to as it grows, the one of
which it uses the largest share.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from _enrolled import Enrolled, Usage, enrolling, plan
from _limits import first, limits
from _processes import until_terminated
from common import Environment, cores, emit, exit_with, not_negative, positive_float, positive_int, show_table

from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST
from tocsin.crypto import Algorithm, select_backend

MIB = 1024 * 1024


def results(
    system: Enrolled,
    empty: Mapping[str, Usage],
    before: Mapping[str, Usage],
    after: Mapping[str, Usage],
    window_s: float,
) -> dict[str, Any]:
    """Return the report's figures.

    Args:
        system: what ran.
        empty: usage of broker and services before there were agents.
        before: at the beginning of the idle time that is measured.
        after: at its end.
        window_s: how long that was, in seconds.
    """
    thousands = len(system.agents) / 1000
    groups: dict[str, Any] = {}
    grown: dict[str, float] = {}
    for name, used in after.items():
        cpu = (used.cpu_s - before[name].cpu_s) / window_s
        without = empty[name].uss_mib if name in empty else 0.0
        grown[name] = used.uss_mib - without
        groups[name] = {
            "processes": len(system.pids(name)),
            "rss_mib": round(used.rss_mib, 1),
            "uss_mib": round(used.uss_mib, 1),
            "cpu_cores": round(cpu, 4),
            "uss_mib_before_agents": round(without, 1),
            "per_1000_agents": {
                "uss_mib": round(grown[name] / thousands, 1),
                "cpu_cores": round(cpu / thousands, 4),
            },
            "threads": used.threads,
            "files_of_one_process": used.files,
        }
    whole = {
        part: sum(group[part] for group in groups.values()) for part in ("rss_mib", "uss_mib", "cpu_cores")
    }
    found = limits(
        agents=len(system.agents),
        hosts=len(system.pids("hosts")),
        keys=len(system.bus.trust),
        cpu_cores=whole["cpu_cores"],
        cores=cores(),
        uss_mib=whole["uss_mib"],
        memory_mib=psutil.virtual_memory().total / MIB,
        usage=after,
    )
    return {
        "agents": len(system.agents),
        "setup_s": {name: round(took, 3) for name, took in system.setup_s.items()},
        "agents_ready_per_s": round(len(system.agents) / system.setup_s["ready"], 1),
        "idle_s": round(window_s, 1),
        **groups,
        "whole": {
            **{name: round(value, 4) for name, value in whole.items()},
            "per_1000_agents": {
                "uss_mib": round(sum(grown.values()) / thousands, 1),
                "cpu_cores": round(whole["cpu_cores"] / thousands, 4),
            },
        },
        "first_limit": first(found).told(),
        "limits": [one.told() for one in found],
    }


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    backend = select_backend(options.backend)
    environment = Environment.here(
        backends=[backend.name], algorithms=[Algorithm.ML_DSA_65.label], key_scope=options.key_scope
    )
    hosts = options.hosts or -(-options.agents // 1000)
    if not hosts <= options.agents <= hosts * MAX_AGENTS_PER_HOST:
        raise InvalidInputError(
            f"{hosts} hosts for {options.agents} agents: a host carries 1 to {MAX_AGENTS_PER_HOST}",
            reason="bad_hosts",
        )
    with ExitStack() as folders:
        folder = options.keep or Path(
            folders.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-agents-"))
        )
        async with enrolling(plan(options.agents, hosts), folder, backend) as system:
            await system.start_services(timeout_s=options.timeout)
            empty = system.usage()
            await system.start_hosts(key_scope=options.key_scope, timeout_s=options.timeout)
            await asyncio.sleep(options.settle)
            loop = asyncio.get_running_loop()
            begun, before = loop.time(), system.usage()
            await asyncio.sleep(options.seconds)
            after = system.usage()
            return environment, results(system, empty, before, after, loop.time() - begun)


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, found = asyncio.run(until_terminated(measure(options)))
    _show(found)
    parameters = vars(options) | {"keep": str(options.keep) if options.keep else None}
    emit("loadtest/agents.py", parameters, environment, found)


def _show(found: Mapping[str, Any]) -> None:
    groups = ("hosts", "fleet", "router", "broker", "whole")
    rows = [
        [name, found[name]["uss_mib"], found[name]["cpu_cores"], *found[name]["per_1000_agents"].values()]
        for name in groups
    ]
    setup = found["setup_s"]
    title = f"{found['agents']} agents, enrolled after {setup['enrolled']:.1f} s, ready after {setup['ready']:.1f} s"
    show_table(title, ["", "MiB", "cores", "MiB / 1,000", "cores / 1,000"], rows)
    show_table(
        "what they use of each bound, most first",
        ["bound", "used", "of", "share", "agents at the bound"],
        [[one["what"], one["used"], one["most"], one["share"], one["agents_there"]] for one in found["limits"]],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--agents", type=positive_int, default=1000, help="agents, all together")
    add("--hosts", type=positive_int, default=None, help="host processes; by default one for each 1,000 agents")
    add("--key-scope", choices=["host", "agent"], default="host", help="who has a signing key")
    add("--backend", choices=["auto", "openssl", "liboqs"], default="auto", help="who computes signatures")
    add("--seconds", type=positive_float, default=20.0, help="how long the idle fleet is measured")
    add("--settle", type=not_negative, default=5.0, help="seconds from ready to the measurement")
    add("--timeout", type=positive_float, default=300.0, help="seconds until all have to be ready")
    add("--keep", type=Path, default=None, help="keep the run's folder, with all logs, there")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
