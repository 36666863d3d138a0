"""What the workflow service is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings


class WorkflowSettings(BusSettings):
    """The bus's settings, and the bounds of a workflow."""

    max_workflows: Annotated[int, Field(ge=1, le=10_000)] = Field(
        64, description="Workflows at a time; a request beyond them is refused (too_many_workflows)."
    )
    ask_timeout_s: Annotated[float, Field(ge=0.1, le=25)] = Field(
        5.0, description="How long a service may take to accept a task, in seconds."
    )
    stage_timeout_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        45.0, description="How long one attempt at a stage may take, in seconds."
    )
    workflow_timeout_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        120.0, description="How long a workflow may take, in seconds; then it has failed."
    )
    retry_pause_s: Annotated[float, Field(ge=0.01, le=60)] = Field(
        0.5,
        description="Pause before the second attempt at a stage, in seconds; doubled each time, at most eightfold.",
    )
    adopt_interval_s: Annotated[float, Field(ge=0.1, le=600)] = Field(
        5.0, description="How often workflows of other instances are looked for, in seconds."
    )
