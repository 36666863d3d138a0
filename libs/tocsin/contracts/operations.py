"""Running the system: metrics, the monitor's figures, rejected envelopes, errors in replies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Digest, Message, Name, Text

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A counter's value: an integer that JSON's readers keep exactly (RFC 8259 section 6)."""


class ErrorReply(Message):
    """Why a request failed; becomes the same family of error at the caller."""

    family: Annotated[str, Field(max_length=32)]
    reason: Annotated[str, Field(max_length=64)]
    detail: Text


class LatencySummary(Message):
    """Percentiles of a latency, in milliseconds."""

    count: Annotated[int, Field(ge=0)]
    p50: float
    p95: float
    p99: float
    max: float
    mean: float


class MetricsSnapshot(Message):
    """One process's figures since its start: subject ``metrics.<service>.<instance>``, every second."""

    process: Annotated[str, Field(max_length=160)]
    """Token of the process."""
    uptime_s: Annotated[float, Field(ge=0)]
    counters: Annotated[dict[Annotated[str, Field(max_length=128)], Count], Field(max_length=512)]
    latencies: Annotated[dict[Annotated[str, Field(max_length=128)], LatencySummary], Field(max_length=128)]
    cpu_s: Annotated[float, Field(ge=0)]
    memory_bytes: Annotated[int, Field(ge=0)]


class FiguresRequest(Message):
    """Ask the monitor for its figures."""


class Figures(Message):
    """All processes' latest figures, and their sums."""

    processes: Annotated[tuple[MetricsSnapshot, ...], Field(max_length=4096)]
    totals: Annotated[dict[Annotated[str, Field(max_length=128)], int], Field(max_length=1024)]
    left_out: Annotated[int, Field(ge=0)] = 0
    """Processes that are in the sums, and for whose own figures there was no room in one answer."""


class RejectedEnvelope(Message):
    """An envelope that a process refused: subject ``audit.rejected``. Its reason, never its body."""

    by: Annotated[str, Field(max_length=160)]
    reason: Annotated[str, Field(max_length=64)]
    subject: Annotated[str, Field(max_length=256)]
    claimed_key_id: Digest | None
    """Claimed: nothing below the signature check proves it."""
    count: Annotated[int, Field(ge=1)]
    """Equal rejections since the last report."""


class PingRequest(Message):
    """Ask a service whether it is ready."""


class Pong(Message):
    """A service is ready."""

    process: Annotated[str, Field(max_length=160)]
    version: Annotated[str, Field(max_length=32)]
    signature_backend: Annotated[str, Field(max_length=32)]
    name: Name
