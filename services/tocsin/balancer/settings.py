"""What the balancer is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings


class BalancerSettings(BusSettings):
    """The bus's settings, and the bounds of the placement."""

    silent_after_s: Annotated[float, Field(ge=0.5, le=300)] = Field(
        3.0, description="A worker that was not heard of for so long is gone, in seconds."
    )
    max_workers: Annotated[int, Field(ge=1, le=65536)] = Field(
        1024, description="Workers that are kept in mind; statuses of further ones are refused."
    )
    max_outstanding: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        10_000, description="Operations of one pool that are not done; a pool with more gets no work."
    )
    outstanding_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        600.0, description="An operation of which nothing is heard counts no longer than this, in seconds."
    )
    max_remembered: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        20_000, description="Placements remembered, so that the same operation is placed once."
    )
