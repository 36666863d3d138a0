"""What every message model is made of: the frozen base and the bounded field types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tocsin.contracts.identifiers import NAME_PATTERN


class Message(BaseModel):
    """Base of every body: frozen, no unknown fields, finite numbers, bytes as hex in JSON."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_bytes="hex",
        val_json_bytes="hex",
    )


Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
"""A DNS label: the name of an agent, host, instance, QPU, pool or mission."""

Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
"""A SHA-256 digest, or the key id that is one."""

MessageId = Annotated[bytes, Field(min_length=16, max_length=16)]
"""A UUIDv7, as bytes."""

Address = Annotated[str, Field(pattern=r"^[0-9A-Fa-f:.%a-z]{2,64}$")]
"""An IPv4 or IPv6 address, as text (parsed where it matters)."""

Text = Annotated[str, Field(max_length=512)]
"""A line for people."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
"""A number from 0 to 1; the field's docstring says of what."""

Nanoseconds = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Nanoseconds since the epoch, UTC."""

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP or UDP port; 0 where the protocol has none."""
