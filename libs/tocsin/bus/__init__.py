"""The bus: envelopes, the connection, streams and records, and the harness that services are made of.

Only this package imports the NATS client. The way in is :class:`~tocsin.bus.client.Bus`; services derive from
:class:`~tocsin.bus.service.Service`.
"""

from tocsin.bus.broker import Broker
from tocsin.bus.client import Bus
from tocsin.bus.credentials import Credentials
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.bus.provision import provision
from tocsin.bus.sending import Sent
from tocsin.bus.service import (
    Service,
    StoppedError,
    consumes,
    handles,
    read_settings,
    run_guarded,
    run_service,
    serve_health,
    stop_on_signal,
    subscribes,
    unless_stopped,
)
from tocsin.bus.settings import BusSettings

__all__ = [
    "Arrival",
    "Broker",
    "Bus",
    "BusSettings",
    "Context",
    "Credentials",
    "Opener",
    "Sent",
    "Service",
    "StoppedError",
    "consumes",
    "handles",
    "provision",
    "read_settings",
    "run_guarded",
    "run_service",
    "serve_health",
    "stop_on_signal",
    "subscribes",
    "unless_stopped",
]
