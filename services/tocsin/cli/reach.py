"""What commands share that speak with a system that runs: where it is, and how they run and print."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated

import platformdirs
import typer
import uvloop

from tocsin.bus import Broker, Bus
from tocsin.cli.exits import Exit, NoInputError
from tocsin.cli.installation import Installation
from tocsin.contracts.errors import InvalidInputError
from tocsin.telemetry import Metrics

DEFAULT_STATE = Path(platformdirs.user_state_dir("tocsin"))
StateOption = Annotated[Path, typer.Option(help="State folder of `tocsin up`, or the one of `tocsin init`.")]
RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="Broker of a stack that runs, e.g. nats://127.0.0.1:4222."),
]


MAX_FILE_BYTES = 16 * 1024 * 1024
"""More than any envelope or certificate can have."""


def run(work: Awaitable[Exit]) -> Exit:
    """Run a command's work to its end."""

    async def whole() -> Exit:
        return await work

    return uvloop.run(whole())


def bus(state: Path, remote: str | None) -> Bus:
    """Return the bus of a system that runs, as the `tocsin` command; not yet open."""
    installation = Installation.find(state)
    settings = installation.bus_settings(address(installation, remote), connect_timeout_s=5)
    return Bus(settings, installation.cli_credentials(), Metrics())


def address(installation: Installation, remote: str | None) -> str:
    """Return the broker's address: the one given, or that of the `tocsin up` with this folder."""
    return remote or Broker.address(installation.folder / "broker")


def show(text: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(path: Path, *, most: int = MAX_FILE_BYTES) -> bytes:
    """Read a file of at most ``most`` bytes.

    Raises:
        NoInputError: it cannot be read.
        InvalidInputError: ``too_large``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise NoInputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > most:
        raise InvalidInputError(f"{path} has more than {most} bytes", reason="too_large")
    return data
