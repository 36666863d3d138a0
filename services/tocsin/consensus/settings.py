"""What a consensus instance is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings


class ConsensusSettings(BusSettings):
    """Where votes are kept, and the bounds."""

    state_dir: Path = Field(
        Path("state"),
        description="Folder of the vote log, on a local disk. Losing it means abstaining until the next epoch.",
    )
    max_open_decisions: Annotated[int, Field(ge=1, le=10_000)] = Field(
        256, description="Decisions that are open at once; a proposal beyond them is refused."
    )
    max_open_per_proposer: Annotated[int, Field(ge=1, le=10_000)] = Field(
        64, description="Of these, those of one admin agent."
    )
    max_open_per_asker: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4,
        description="Of these, those of one agent that is no admin; all of them together have at most a half.",
    )
    max_held_per_agent: Annotated[int, Field(ge=1, le=64)] = Field(
        4, description="Ballots of one agent that came before their proposals; further ones are refused."
    )
    tick_s: Annotated[float, Field(ge=0.001, le=1)] = Field(
        0.005, description="How often timers are looked at while a decision is open, in seconds."
    )
    view_timeout_s: Annotated[float, Field(ge=0.01, le=60)] = Field(
        0.04,
        description="How long the first leader of a decision may take, in seconds; doubles from view to view. "
        "Longer where the instances are far apart or share few cores: too short a time costs views, never safety.",
    )
    view_timeout_max_s: Annotated[float, Field(ge=0.01, le=600)] = Field(
        5.0, description="How long any leader may take, in seconds."
    )
    step_in_s: Annotated[float, Field(ge=0.01, le=600)] = Field(
        1.0, description="After how long another instance announces what the leader has not, in seconds."
    )
