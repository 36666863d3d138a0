"""What the monitor is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings


class MonitorSettings(BusSettings):
    """Bounds of what the monitor keeps."""

    monitor_max_processes: Annotated[int, Field(ge=1, le=4096)] = Field(
        1024, description="Most processes whose figures are kept; further ones are refused."
    )
    monitor_silent_after_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        60.0, description="A process that is silent for so long is dropped, in seconds."
    )
    monitor_max_emergencies: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Emergencies whose account may still change; older ones are only in the sums."
    )
    monitor_refresh_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        1.0, description="How often the gauges on /metrics are set anew, in seconds."
    )
