"""What every process on the bus is told, from the environment (prefix ``TOCSIN_``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tocsin.bus.accounts import SERVICE_USER
from tocsin.contracts.identifiers import NAME_PATTERN


class BusSettings(BaseSettings):
    """Connection, credentials and observability. Secrets are files, never values."""

    model_config = SettingsConfigDict(env_prefix="TOCSIN_", frozen=True, extra="forbid")

    nats_url: str = Field("nats://127.0.0.1:4222", description="Where the broker listens.")
    nats_user: str = Field(
        SERVICE_USER,
        description="Account on the broker; empty for a broker that knows a token only.",
    )
    nats_token_file: Path | None = Field(
        None, description="File with the account's password, or with the token."
    )
    credentials_dir: Path = Field(
        Path("credentials"), description="Folder with ca.pem, this process's key and its certificate chain."
    )
    instance: Annotated[str, Field(pattern=rf"^({NAME_PATTERN}|\*)$")] = Field(
        "0",
        description="Name of this instance of the service; unique among its copies. * takes the identity in "
        "credentials_dir that no other copy on this machine has.",
    )
    signature_backend: Annotated[str, Field(pattern="^(auto|openssl|liboqs)$")] = Field(
        "auto", description="auto, openssl or liboqs."
    )
    connect_timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        30.0, description="How long to wait for the broker and for the records at start, in seconds."
    )
    verify_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="Worker threads that verify signatures."
    )
    metrics_interval_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        1.0, description="How often this process publishes its figures, in seconds."
    )
    revocations_max_age_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        30.0,
        description="Without word from fleet on revoked keys for so long, in seconds, messages that have effects "
        "are refused.",
    )
    health_host: str = Field("127.0.0.1", description="Address of /healthz, /readyz and /metrics.")
    health_port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="Its port; 0 takes a free one.")
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = Field(
        "info", description="debug, info, warning or error."
    )
