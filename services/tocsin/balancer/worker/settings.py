"""What a worker is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings
from tocsin.contracts.identifiers import NAME_PATTERN


class WorkerSettings(BusSettings):
    """The bus's settings, and what this worker offers."""

    pool: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")] = Field(
        "classical", description="The pool that this worker belongs to."
    )
    slots: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Tasks done at a time, each in a thread.")
    status_interval_s: Annotated[float, Field(ge=0.1, le=10)] = Field(
        0.5, description="How often the balancer is told how this worker fares, in seconds."
    )
    redeliver_after_s: Annotated[float, Field(ge=1, le=600)] = Field(
        10.0, description="A task of a worker that died goes to another one after so long, in seconds."
    )
    max_deliver: Annotated[int, Field(ge=1, le=100)] = Field(
        5, description="Times that a task is handed out at most: one that kills workers ends then."
    )
