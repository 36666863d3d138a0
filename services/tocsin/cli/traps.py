"""``tocsin traps``: the honeypots and canaries' ports that stand now."""

from __future__ import annotations

from typing import Annotated

import typer

from tocsin.cli import reach
from tocsin.cli.exits import Exit
from tocsin.cli.livefire import standing_sensors
from tocsin.cli.reach import DEFAULT_STATE, RemoteOption, StateOption
from tocsin.contracts.observations import SensorReady
from tocsin.telemetry import configure_logging


def lines(sensors: list[SensorReady], imitates: str | None) -> list[str]:
    """Return a line for each: what it imitates, where it is, whose it is."""
    return [
        f"{one.imitates} {f'[{one.address}]' if ':' in one.address else one.address}:{one.port} {one.agent}"
        for one in sorted(sensors, key=lambda sensor: (sensor.agent, sensor.port))
        if imitates in {None, one.imitates}
    ]


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("traps")
    def traps(
        imitates: Annotated[str | None, typer.Argument(help="Only these, e.g. ssh or canary.")] = None,
        state: StateOption = DEFAULT_STATE,
        remote: RemoteOption = None,
    ) -> None:
        """List honeypots and canaries' ports: what each imitates, where it is, whose it is."""

        async def run() -> Exit:
            configure_logging("traps", level="error")
            async with reach.bus(state, remote) as bus:
                for line in lines(await standing_sensors(bus), imitates):
                    reach.show(line)
            return Exit.OK

        raise typer.Exit(reach.run(run()))
