"""What a router is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings
from tocsin.contracts.routing import MAX_DEADLINE_S


class RouterSettings(BusSettings):
    """How long an emergency is pursued, and how much is remembered."""

    retry_first_s: Annotated[float, Field(ge=0.01, le=60)] = Field(
        0.5, description="Pause before an emergency is sent again to those missing, in seconds; it doubles."
    )
    retry_max_s: Annotated[float, Field(ge=0.01, le=60)] = Field(
        2.0, description="Longest such pause, in seconds."
    )
    delivery_deadline_s: Annotated[float, Field(ge=0.05, le=MAX_DEADLINE_S)] = Field(
        10.0,
        description="When an emergency that names no deadline is closed with whoever is missing, in seconds.",
    )
    standby_grace_s: Annotated[float, Field(ge=0.05, le=60)] = Field(
        2.0,
        description="How long a router leaves an emergency to the one that forwarded it, beyond each of its moments, "
        "in seconds; up to twice as long, by chance, so that several do not take over at once.",
    )
    max_emergencies: Annotated[int, Field(ge=1, le=4096)] = Field(
        1024, description="Emergencies tracked at once; those beyond are forwarded and not tracked."
    )
    refusals_per_sender_per_s: Annotated[int, Field(ge=1, le=1000)] = Field(
        5, description="Refusals that one sender is told each second; the rest are counted and audited only."
    )
    max_refusals_waiting: Annotated[int, Field(ge=1, le=65_536)] = Field(
        1024, description="Refusals that wait to be published; those beyond are counted and audited only."
    )
    messages_per_sender_per_s: Annotated[float, Field(ge=1, le=100_000)] = Field(
        500.0,
        description="Messages that one sender may send each second in the long run, at this router. "
        "Emergencies have the same allowance, for themselves.",
    )
    burst_per_sender: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1000, description="Messages that one sender may send at once."
    )
    clock_checks_per_s: Annotated[int, Field(ge=1, le=1000)] = Field(
        5,
        description="Messages refused by their time that are verified each second, to tell senders their clock.",
    )
