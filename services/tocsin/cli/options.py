"""What commands in modules of their own have in common: options, and what they need of the program around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from tocsin.bus import Bus
from tocsin.cli.exits import Exit

DEFAULT_STATE = Path(platformdirs.user_state_dir("tocsin"))
StateOption = Annotated[Path, typer.Option(help="State folder of `tocsin up`, or the one of `tocsin init`.")]
RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="Broker of a stack that runs, e.g. nats://127.0.0.1:4222."),
]


@dataclass(frozen=True, slots=True)
class Shell:
    """What a command needs of the program around it."""

    bus: Callable[[Path, str | None], Bus]
    run: Callable[[Awaitable[Exit]], Exit]
    read: Callable[[Path], bytes]
    show: Callable[[str], None]
