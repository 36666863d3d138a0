"""What a specialist tells of an endpoint's cryptography."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tocsin.contracts.base import Message, Port
from tocsin.contracts.identifiers import Severity

MAX_REASONS = 6
MAX_EXPOSURES = 16
"""Endpoints in one message: with everything at its longest some 40 kB."""


class CryptoExposure(Message):
    """One endpoint whose cryptography a quantum computer breaks, or that is weak already."""

    host: Annotated[str, Field(max_length=253)]
    port: Port
    rank: Annotated[int, Field(ge=1)]
    """Its place in the specialist's list, of ``of`` endpoints."""
    of: Annotated[int, Field(ge=1)]
    severity: Severity
    sessions: Annotated[int, Field(ge=0)]
    exposure_session_years: Annotated[float, Field(ge=0)]
    """Vulnerable sessions x max(0, x + y - z): docs/explanation/quantum-vulnerability.md."""
    exchange: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=8)]
    """What its keys come from, e.g. ``ECDH-x25519``."""
    reasons: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=MAX_REASONS)]
    """Worst first."""
