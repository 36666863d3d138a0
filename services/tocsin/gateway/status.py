"""The state of the system as its services' pings tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tocsin.contracts.base import Message
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import Pong


class ServiceStatus(Message):
    """One service: the instance that answered, or why none did."""

    service: ServiceName
    ready: bool
    process: str | None = None
    version: str | None = None
    signature_backend: str | None = None
    reason: str | None = None


class SystemStatus(Message):
    """All services. ``ok`` only if each has an instance that is ready."""

    status: Literal["ok", "degraded"]
    version: str
    services: tuple[ServiceStatus, ...]


def system_status(answers: Mapping[ServiceName, Pong | TocsinError], *, version: str) -> SystemStatus:
    """Put the answers together, in the order of the services' names."""
    services = tuple(_service_status(name, answers[name]) for name in sorted(answers))
    everything = all(one.ready for one in services)
    return SystemStatus(status="ok" if everything else "degraded", version=version, services=services)


def _service_status(name: ServiceName, answer: Pong | TocsinError) -> ServiceStatus:
    if isinstance(answer, TocsinError):
        return ServiceStatus(service=name, ready=False, reason=answer.reason)
    return ServiceStatus(
        service=name,
        ready=True,
        process=answer.process,
        version=answer.version,
        signature_backend=answer.signature_backend,
    )
