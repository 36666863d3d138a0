"""Settings of the qpu-manager."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tocsin.bus import BusSettings
from tocsin.contracts.base import Name
from tocsin.qpu_manager.calibrations import DEFAULT_POOL


class QpuManagerSettings(BusSettings):
    """Which QPUs there are, and how much of this machine their simulation may take."""

    model_config = SettingsConfigDict(env_prefix="TOCSIN_", frozen=True, extra="forbid")

    qpus: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)] = Field(
        DEFAULT_POOL, description="Names of calibration snapshots, as a JSON list."
    )
    parallel_runs: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Tasks that are simulated at once, each on one core."
    )
    warm_qubits: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(max_length=7)] = Field(
        (4, 6), description="Circuit widths that are compiled ahead of the first request, as a JSON list."
    )
