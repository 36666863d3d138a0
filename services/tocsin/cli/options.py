"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
import typer

DEFAULT_STATE = Path(platformdirs.user_state_dir("tocsin"))
StateOption = Annotated[Path, typer.Option(help="State folder of `tocsin up`, or the one of `tocsin init`.")]
RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="Broker of a stack that runs, e.g. nats://127.0.0.1:4222."),
]
