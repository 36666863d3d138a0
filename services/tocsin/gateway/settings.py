"""What the gateway is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tocsin.bus import BusSettings


class GatewaySettings(BusSettings):
    """Where it listens, who may ask, and the bounds of one request."""

    api_host: str = Field("127.0.0.1", description="Address of the REST interface; loopback unless you say so.")
    api_port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="Its port; 0 takes a free one.")
    api_token_file: Path | None = Field(
        None, description="File with the bearer token, mode 0600. Without one only /api/v1/health is served."
    )
    url_file: Path | None = Field(
        None, description="File to write the interface's address to, once it listens."
    )
    api_max_connections: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="Most clients at a time; one more is told so and cut off."
    )
    api_max_body_bytes: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        65_536, description="Largest body of a request, in bytes."
    )
    api_receive_timeout_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        5.0, description="How long a client may take to send its request, or to stay idle, in seconds."
    )
    api_request_timeout_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        10.0, description="How long one answer may take to be made and sent, in seconds."
    )
    api_bus_timeout_s: Annotated[float, Field(ge=0.1, le=30)] = Field(
        2.0, description="How long to wait for the service that knows the answer, in seconds."
    )
