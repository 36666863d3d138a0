"""Measure emergencies from an admin to every agent, on both channels, with receipts.

    python loadtest/broadcast.py --agents 847 --alerts 50
    python loadtest/broadcast.py --agents 847 --alerts 50 --faults

One admin sends CRITICAL alerts to all, one after another, through the router; the hosts that carry the agents are
the real ones. What is measured is the time from the sending to the handler of the last agent. Who had an alert is
counted twice over: in the agents, and by the routers' verified accounts.

``--faults`` cuts a host off, kills a router and kills the broker meanwhile, and heals each. It ends with an error
if an alert is not accounted for, or was handed to an agent twice, or an account counts agents that never had it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _agents import FleetOptions, add_fleet_options
from _alerts import during, figures, told_of
from _broadcast import Measured, send_alerts
from _embedded import embedded
from _processes import until_terminated
from common import Environment, emit, exit_with, positive_float, positive_int, show_table

from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import InvariantBrokenError

WAIT_S = 25.0
"""Past the routers' own deadline of 10 s, after everything was restarted."""
MAX_TOLD = 100
"""Alerts whose own accounts are in the report."""


def results(measured: Measured) -> dict[str, Any]:
    """Return the report's figures of a run."""
    alerts = measured.alerts
    odd = [one for one in alerts if not (one.complete and one.told and one.told.account.complete)]
    found: dict[str, Any] = {
        **figures(alerts),
        **_cpu(measured),
        "full_verifications": measured.full_verifications,
        "not_simply_delivered": [told_of(alert) for alert in odd[:MAX_TOLD]],
        "setup_s": measured.setup_s,
    }
    if measured.faults:
        found["faults"] = during(measured.faults, alerts)
    return found


def _cpu(measured: Measured) -> dict[str, Any]:
    used = measured.cpu_s
    if not used:
        return {}
    alerts = len(measured.alerts)
    cores = {name: round(one / measured.window_s, 3) for name, one in used.items()}
    return {
        **{f"{name}_cpu_us_per_alert": round(one * 1e6 / alerts, 1) for name, one in used.items()},
        "cpu_cores": cores,
    }


def check(found: Mapping[str, Any]) -> None:
    """Fail where an alert's fate is unknown or told wrongly.

    Raises:
        InvariantBrokenError: ``alerts_unaccounted``.
    """
    wrong = {name: found[name] for name in ("unaccounted", "twice", "overclaimed") if found[name]}
    if wrong:
        told = ", ".join(f"{name} {count}" for name, count in wrong.items())
        raise InvariantBrokenError(f"not every alert is accounted for: {told}", reason="alerts_unaccounted")


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options, type_name=THREAT_ALERT.name, admin=True)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    with tempfile.TemporaryDirectory(prefix="tocsin-broadcast-") as folder:
        async with embedded(fleet_options, Path(folder)) as system:
            measured = await send_alerts(system, options)
            whose = {
                "agents": options.agents,
                "hosts": options.hosts,
                "keys": system.fleet.keys,
                "routers": options.routers,
                "alerts": options.alerts,
            }
            return environment, whose | results(measured)


def main() -> None:
    """Measure and print the report."""
    options = _arguments()
    environment, found = asyncio.run(until_terminated(measure(options)))
    _show(found)
    emit("loadtest/broadcast.py", vars(options), environment, found)
    check(found)


def _show(found: Mapping[str, Any]) -> None:
    names = (
        "alerts",
        "sent",
        "not_sent",
        "due",
        "delivered",
        "undelivered",
        "received",
        "twice",
        "unaccounted",
    )
    rows: list[list[object]] = [[name, found[name]] for name in names]
    rows += [
        [f"{name} {part} ms", found[f"{name}_ms"][part]]
        for name in ("first_agent", "last_agent", "account")
        for part in ("p50", "p99", "max")
    ]
    show_table(f"{found['agents']} agents on {found['hosts']} hosts", ["", "alerts to all"], rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_fleet_options(parser)
    parser.set_defaults(agents=847)
    add = parser.add_argument
    add("--alerts", type=positive_int, default=50, help="how many, one after another")
    add("--pause", type=positive_float, default=0.2, help="seconds from one alert to the next")
    add("--routers", type=positive_int, default=1, help="router processes")
    add(
        "--wait",
        type=positive_float,
        default=WAIT_S,
        help="seconds after the last alert until what has no account has none",
    )
    add("--faults", action="store_true", help="break a host's connection, a router and the broker meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
