"""Take an inventory from where the operator says: logs, endpoints to ask, Tocsin's own parts. Thin: I/O only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tocsin.agent.roles.probe import Probed, Target, probe
from tocsin.analysis.inventory import own, zeek_tls
from tocsin.analysis.inventory.model import Inventory, InventoryBuilder
from tocsin.analysis.inventory.zeek_tls import LogStatistics
from tocsin.contracts.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the inventory comes from."""

    ssl_log: Path | None = None
    """Zeek's ssl.log."""
    x509_log: Path | None = None
    """Zeek's x509.log; without it the sessions' certificates are not known."""
    targets: tuple[Target, ...] = ()
    own: bool = False
    """Whether Tocsin's own cryptography is declared beside."""


@dataclass(frozen=True, slots=True)
class Survey:
    """An inventory, and what there is to say of its making."""

    inventory: Inventory
    logs: dict[str, LogStatistics]
    """By name of the log: ``x509``, ``ssl``."""
    probed: tuple[Probed, ...]

    @property
    def incomplete(self) -> tuple[Probed, ...]:
        """Endpoints of which the key exchange or the certificate could not be learnt."""
        return tuple(one for one in self.probed if one.problem)


async def take(sources: Sources, now_s: Callable[[], float], *, timeout_s: float = 5.0) -> Survey:
    """Read the logs in a thread, then ask the endpoints.

    Args:
        sources: Where from.
        now_s: Seconds since the epoch.
        timeout_s: Of each connection of a probe.

    Raises:
        UnavailableError: ``no_log``: a log cannot be read.
        InvalidInputError: ``unknown_format``, ``too_many_endpoints``.
    """
    builder = InventoryBuilder()
    logs = await asyncio.to_thread(_read_logs, sources, builder)
    probed = await probe(sources.targets, now_s=now_s, timeout_s=timeout_s)
    for one in probed:
        for certificate in one.certificates:
            builder.add_certificate(certificate)
        for variant in one.variants:
            builder.add_session(
                one.address,
                one.target.port,
                variant,
                at_s=one.at_s,
                source="probe",
                server_name=one.target.server_name or "",
                certificates=[certificate.id for certificate in one.certificates],
            )
    if sources.own:
        own.declare(builder, now_s=now_s())
    return Survey(builder.build(), logs, probed)


def _read_logs(sources: Sources, builder: InventoryBuilder) -> dict[str, LogStatistics]:
    logs = {}
    # The certificates first: sessions name them.
    if sources.x509_log is not None:
        logs["x509"] = _read(sources.x509_log, partial(zeek_tls.read_certificates, builder=builder))
    if sources.ssl_log is not None:
        logs["ssl"] = _read(sources.ssl_log, partial(zeek_tls.read_sessions, builder=builder))
    return logs


def _read(path: Path, read: Callable[[BinaryIO], LogStatistics]) -> LogStatistics:
    try:
        with path.open("rb") as stream:
            return read(stream)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", reason="no_log") from error
