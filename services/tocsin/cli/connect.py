"""How commands reach a system that runs."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from tocsin.bus import Broker, Bus
from tocsin.cli.installation import Installation
from tocsin.telemetry import Metrics

DEFAULT_STATE = Path(platformdirs.user_state_dir("tocsin"))
"""State folder of `tocsin up`."""


def open_bus(state: Path, remote: str | None) -> Bus:
    """Return the bus of a system that runs, as the `tocsin` command; not yet open."""
    installation = Installation.find(state)
    settings = installation.bus_settings(address(installation, remote), connect_timeout_s=5)
    return Bus(settings, installation.cli_credentials(), Metrics())


def address(installation: Installation, remote: str | None) -> str:
    """Return the broker's address: the one given, or that of the `tocsin up` with this folder."""
    return remote or Broker.address(installation.folder / "broker")
