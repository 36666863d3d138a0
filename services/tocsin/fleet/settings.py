"""What fleet is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings
from tocsin.bus.accounts import SYSTEM_USER


class FleetSettings(BusSettings):
    """Where the intermediate authority and the tokens are, and fleet's periods."""

    authority_dir: Path = Field(
        Path("ca"), description="Folder with fleet.key and fleet.pem, the intermediate authority."
    )
    tokens_file: Path = Field(
        Path("tokens.json"),
        description="One-time enrolment tokens, a JSON list, mode 0600; read again when it changes.",
    )
    nats_system_user: str = Field(
        SYSTEM_USER,
        description="User of the broker's system account, by which fleet hears whose connection has ended.",
    )
    nats_system_token_file: Path | None = Field(
        None, description="File with its password; without it fleet knows by missing heartbeats alone."
    )
    gone_check_s: Annotated[float, Field(ge=0.05, le=30)] = Field(
        1.0, description="How long a host whose connection has ended has to say that it lives, in seconds."
    )
    challenge_interval_s: Annotated[float, Field(ge=0.2, le=86_400)] = Field(
        60.0, description="How often a host has to prove what its agents run, in seconds."
    )
    challenge_timeout_s: Annotated[float, Field(ge=0.1, le=30)] = Field(
        5.0, description="How long a host has to answer such a challenge, in seconds."
    )
    certificate_lifetime_s: Annotated[float, Field(ge=10, le=30 * 86_400)] = Field(
        86_400.0, description="How long a host's or an agent's certificate is good, in seconds."
    )
    service_lifetime_s: Annotated[float, Field(ge=10, le=365 * 86_400)] = Field(
        30 * 86_400.0, description="How long a service's certificate is good that is renewed, in seconds."
    )
    silent_after_s: Annotated[float, Field(ge=1, le=3_600)] = Field(
        30.0, description="An agent that no heartbeat names for so long counts as silent, in seconds."
    )
    revocations_interval_s: Annotated[float, Field(ge=0.1, le=30)] = Field(
        5.0, description="How often it is said which list of revoked keys is the current one, in seconds."
    )
    epoch_quiet_s: Annotated[float, Field(ge=0.05, le=3_600)] = Field(
        5.0,
        description="How long nothing may change before the next epoch is asked for, in seconds; "
        "where that never happens, ten times as long.",
    )
    epoch_interval_s: Annotated[float, Field(ge=0, le=86_400)] = Field(
        60.0, description="How old an epoch has to be before the next one is asked for, in seconds."
    )
    epoch_ask_again_s: Annotated[float, Field(ge=1, le=3_600)] = Field(
        30.0, description="After how long the next epoch is asked for again, in seconds."
    )
    epoch_absent_after_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        600.0,
        description="An agent that was not heard for so long loses its seat in the next epoch, in seconds; "
        "without proof at most 5 % a day do.",
    )
